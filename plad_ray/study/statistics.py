"""Corrections for many comparisons, and fits with their uncertainty."""

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


def log_fit(n: Sequence[float], y_SR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of y = a + b·ln n over S sizes, for each of R columns: a [R], b [R]. Sizes must differ."""
    design = np.stack([np.ones(len(n)), np.log(np.asarray(n, dtype=np.float64))], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, y_SR, rcond=None)
    return a, b


def more_for(gain: float, n: float, b: np.ndarray) -> np.ndarray:
    """How many beyond ``n`` lift y = a + b·ln n by ``gain``; infinite where the curve does not rise."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(b > 0, n * np.expm1(gain / np.where(b > 0, b, 1)), np.inf)
