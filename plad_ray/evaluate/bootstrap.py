"""Paired bootstrap over prompts: all statistics of one resample see the same prompts.

The pooled mean of several runs (seeds) is over all their prompts. Runs that have prompts in common are one stratum, the
others one each. A stratum is resampled within itself by prompt, and a drawn prompt brings its values of all runs that have
it (a cluster bootstrap), so runs on the same prompts count as one sample of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

CHUNK_BYTES = 1 << 24
#: of the resampled means that an estimate holds at once
MEANS_BYTES = 1 << 27

Ids = Sequence[pa.StringArray]  # [N_s] a run, each prompt once


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` values, one a prompt and run, with its percentile interval; ``p`` is two-sided, against ``null``."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def resampled_means(strata: Sequence[np.ndarray], resamples: int, seed: int, ids: Ids | None = None) -> np.ndarray:
    """Means [M, R] of M statistics over R resamples. ``strata``: one array [M, N_s] a run; NaN is a missing value. ``ids``:
    the runs' prompts; None: no two runs have a prompt in common.

    A statistic's mean is over the values it has. NaN where a resample has none.
    """
    places, groups = _prompts([values.shape[1] for values in strata], ids)
    filled, present = np.zeros((2, strata[0].shape[0], sum(map(len, groups))))
    for values, place in zip(strata, places, strict=True):
        filled[:, place] += np.nan_to_num(values)
        present[:, place] += ~np.isnan(values)
    totals, counts = np.zeros((2, len(filled), resamples))
    for group, start, weights in _drawn(groups, resamples, seed):
        totals[:, start : start + len(weights)] += filled[:, group] @ weights.T
        counts[:, start : start + len(weights)] += present[:, group] @ weights.T
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def resampled_weights(ids: Ids, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt of each run is drawn, run after run, in the resamples of ``resampled_means``: [R, ΣN_s]."""
    places, groups = _prompts([len(own) for own in ids], ids)
    drawn = np.zeros((resamples, sum(map(len, groups))))
    for group, start, weights in _drawn(groups, resamples, seed):
        drawn[start : start + len(weights), group] = weights
    return drawn[:, np.concatenate(places)]


def _prompts(sizes: Sequence[int], ids: Ids | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Where each run's prompts lie among those of all, and the strata; both in the order in which they come up."""
    every = np.arange(sum(sizes)) if ids is None else pa.concat_arrays(ids).dictionary_encode().indices.to_numpy()
    places = np.split(every, np.cumsum(sizes)[:-1])
    member = np.zeros((len(sizes), int(every.max(initial=-1)) + 1), bool)
    for run, place in enumerate(places):
        member[run, place] = True
    linked = np.linalg.matrix_power(member @ member.T, len(sizes))  # by common prompts, over any number of runs
    stratum = linked.argmax(1)[member.argmax(0)]
    return places, [np.flatnonzero(stratum == found) for found in dict.fromkeys(stratum.tolist())]


def _drawn(groups: Sequence[np.ndarray], resamples: int, seed: int) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Of each stratum, chunk by chunk: its prompts, the number of the first resample, how often they are drawn [r, n]."""
    rng = np.random.default_rng(seed)
    for group in groups:
        n = len(group)
        step = max(1, CHUNK_BYTES // (8 * n))
        for start in range(0, resamples, step):
            r = min(step, resamples - start)
            drawn = rng.integers(0, n, (r, n)) + np.arange(r)[:, None] * n
            yield group, start, np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def estimate(
    strata: Sequence[np.ndarray],
    resamples: int,
    seed: int,
    confidence: float,
    null: Sequence[float] | float = 0.0,
    ids: Ids | None = None,
) -> list[Estimate | None]:
    """An estimate for each of the M statistics; None for one without any value. Arguments as of ``resampled_means``."""
    nulls = np.broadcast_to(np.asarray(null, dtype=np.float64), (len(strata[0]),))
    found: list[Estimate | None] = []
    step = max(1, MEANS_BYTES // (8 * resamples))
    for start in range(0, len(nulls), step):
        some = [values[start : start + step] for values in strata]
        means_MR = resampled_means(some, resamples, seed, ids)
        for values, means in zip(np.concatenate(some, axis=1), means_MR, strict=True):
            null_of = float(nulls[len(found)])
            found.append(_estimate(values[~np.isnan(values)], means[~np.isnan(means)], confidence, null_of))
    return found


def _estimate(values: np.ndarray, means: np.ndarray, confidence: float, null: float) -> Estimate | None:
    if not len(values):
        return None
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return Estimate(float(values.mean()), float(low), float(high), two_sided_p(means, null), len(values))


def two_sided_p(means: np.ndarray, null: float = 0.0) -> float:
    """Twice the smaller share of resampled means on the far side of ``null`` (one added to both counts), at most 1."""
    tolerance = 1e-12
    below, above = (means <= null + tolerance).sum(), (means >= null - tolerance).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1)))
