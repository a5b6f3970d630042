"""Fits, for many resamples at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit


def ends(values: np.ndarray, confidence: float, **how: Any) -> tuple[Any, Any]:
    """Both ends of the percentile interval of resampled ``values``, of which NaN (a resample that has none) are left out;
    ``how``: numpy's ``axis`` and ``method``."""
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(values, [tail, 100 - tail], **how)
    return low, high


def log_fit(n: Sequence[float], y_SR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of y = a + b·ln n over S sizes, for each of R columns: a [R], b [R]. Sizes must differ."""
    assert len(set(n)) > 1, n
    design = np.stack([np.ones(len(n)), np.log(np.asarray(n, dtype=np.float64))], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, y_SR, rcond=None)
    return a, b


def line_fit(x_KR: np.ndarray, y_KR: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of y = a + b·x through K points and Pearson's r, for each of R columns: a, b, r [R]. A column whose x
    or y are all the same has a flat line and no correlation: b and r are 0."""
    x, y = x_KR - x_KR.mean(0), y_KR - y_KR.mean(0)
    xx, xy, yy = (x * x).sum(0), (x * y).sum(0), (y * y).sum(0)
    b = np.divide(xy, xx, out=np.zeros_like(xy), where=xx > 0)
    spread = np.sqrt(xx * yy)
    r = np.divide(xy, spread, out=np.zeros_like(xy), where=spread > 0)
    return y_KR.mean(0) - b * x_KR.mean(0), b, r


def more_for(gain: float, n: float, b: np.ndarray) -> np.ndarray:
    """How many beyond ``n`` lift y = a + b·ln n by ``gain``; infinite where the curve does not rise."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(b > 0, n * np.expm1(gain / np.where(b > 0, b, 1)), np.inf)


def even_length(x: np.ndarray, y: np.ndarray, weights_RN: np.ndarray, steps: int = 25) -> np.ndarray:
    """σ(a) of the weighted logistic regression y ~ σ(a + b·x/sd(x)), y in [0, 1], for each of R weightings: [R].

    Newton's method; a ridge of one observation's thousandth on b keeps it finite where x separates y.
    """
    scaled = x / (x.std() or 1.0)
    a, b = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
    for _ in range(steps):
        p_RN = expit(a[:, None] + b[:, None] * scaled)
        residual_RN, curve_RN = weights_RN * (y - p_RN), weights_RN * np.maximum(p_RN * (1 - p_RN), 1e-9)
        g0, g1 = residual_RN.sum(1), residual_RN @ scaled - 1e-3 * b
        h00, h01, h11 = curve_RN.sum(1), curve_RN @ scaled, curve_RN @ scaled**2 + 1e-3
        determinant = h00 * h11 - h01**2
        a, b = a + (h11 * g0 - h01 * g1) / determinant, b + (h00 * g1 - h01 * g0) / determinant
    return np.asarray(expit(a))
