"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from plad_ray.config import Training


def learning_rate(training: Training, step: int, total: int) -> float:
    """Rate of ``step`` (from 0) of ``total``: linear warm-up over ``warmup_ratio``, then linear | cosine | constant.

    Linear and cosine would reach 0 one step after the last, as in transformers.
    """
    warmup = math.ceil(training.warmup_ratio * total)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)
    factor = {"linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))), "constant": 1.0}[training.schedule]
    return training.learning_rate * factor
