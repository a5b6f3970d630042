"""Paired bootstrap over prompts: all statistics of one resample see the same prompts.

Several runs (seeds) are strata: each is resampled within itself, and the pooled mean is over all prompts of all runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` prompts with its percentile interval; ``p`` is two-sided, against ``null``."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def resampled_means(strata: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """Means [M, R] of M statistics over R resamples. ``strata``: one array [M, N_s] a run; NaN is a missing value.

    A statistic's mean is over the values it has. NaN where a resample has none.
    """
    rng = np.random.default_rng(seed)
    measures = strata[0].shape[0]
    totals, counts = np.zeros((measures, resamples)), np.zeros((measures, resamples))
    for values in strata:
        n = values.shape[1]
        if n == 0:
            continue
        present = (~np.isnan(values)).astype(np.float64)
        filled = np.nan_to_num(values)
        step = max(1, CHUNK_BYTES // (8 * n))
        for start in range(0, resamples, step):
            r = min(step, resamples - start)
            drawn = rng.integers(0, n, (r, n)) + np.arange(r)[:, None] * n
            weights = np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)
            totals[:, start : start + r] += filled @ weights.T
            counts[:, start : start + r] += present @ weights.T
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def estimate(
    strata: Sequence[np.ndarray], resamples: int, seed: int, confidence: float, null: Sequence[float] | float = 0.0
) -> list[Estimate | None]:
    """An estimate for each of the M statistics; None for one without any value."""
    means_MR = resampled_means(strata, resamples, seed)
    nulls = np.broadcast_to(np.asarray(null, dtype=np.float64), (len(means_MR),))
    found: list[Estimate | None] = []
    for measure, (means, zero) in enumerate(zip(means_MR, nulls, strict=True)):
        values = np.concatenate([stratum[measure] for stratum in strata])
        values, means = values[~np.isnan(values)], means[~np.isnan(means)]
        if not len(values):
            found.append(None)
            continue
        low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
        p = two_sided_p(means, float(zero))
        found.append(Estimate(float(values.mean()), float(low), float(high), p, len(values)))
    return found


def two_sided_p(means: np.ndarray, null: float = 0.0) -> float:
    """Twice the smaller share of resampled means on the far side of ``null`` (one added to both counts), at most 1."""
    tolerance = 1e-12
    below, above = (means <= null + tolerance).sum(), (means >= null - tolerance).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1)))
