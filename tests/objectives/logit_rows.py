"""Rows of logits for tests of objectives that read a frozen model's, without a model around them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def random_logits(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=scale, size=shape)).float()


def values(objective, student_BKTV: Tensor, frozen: dict[str, Tensor], ids_BKT: Tensor) -> dict[str, Tensor]:
    """``per_token`` of every position, [B, K, T] by name."""
    V = student_BKTV.shape[-1]
    flat = {name: z_BKTV.reshape(-1, V) for name, z_BKTV in frozen.items()}
    found = objective.per_token(student_BKTV.reshape(-1, V), flat, ids_BKT.reshape(-1))
    return {name: value_N.view(ids_BKT.shape) for name, value_N in found.items()}


def total(objective, found: dict[str, Tensor], mask_BKT: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The step's loss as the loop makes it, and its metrics."""
    terms = objective.loss(found, mask_BKT, torch.zeros(mask_BKT.shape[:2]))
    counts = objective.counts(mask_BKT)
    assert set(terms.sums) == set(counts)
    loss = torch.stack([terms.sums[name] / counts[name].clamp(min=1) for name in counts]).sum()
    return loss, {name: float(s / n) for name, (s, n) in terms.metrics.items()}


def probs(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    """Softmax over the last axis in float64, by numpy."""
    z = logits.detach().numpy().astype(np.float64) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def np_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)
