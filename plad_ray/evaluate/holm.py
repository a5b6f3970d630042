"""Correction for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down p-values of a family (Holm 1979): the k-th smallest of m times m − k + 1, never falling."""
    order = np.argsort(ps, kind="stable")
    steps = np.asarray(ps, dtype=np.float64)[order] * np.arange(len(ps), 0, -1)
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(ps) else steps
    return [float(p) for p in adjusted]


def enough(resamples: int, tests: int, confidence: float) -> int:
    """``resamples``, or as many as it takes for the smallest p of a bootstrap, 2 / (resamples + 1), to be a twentieth of
    1 − ``confidence`` after the correction for ``tests``."""
    return max(resamples, round(40 * tests / (1 - confidence)))
