"""Which policy is better than which: paired bootstrap over prompts, corrected for the number of comparisons (Holm)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from plad_ray.evaluate.bootstrap import Estimate, estimate
from plad_ray.evaluate.frame import Frame
from plad_ray.evaluate.holm import enough, holm
from plad_ray.evaluate.winrate import wins


@dataclass(frozen=True)
class Comparison:
    """``better`` against ``worse`` on the same prompts. ``rate``: share of prompts that the first wins, ties half.
    ``difference``: of mean scores (of mean ROUGE-L where nothing is scored). ``p`` is Holm-corrected."""

    better: str
    worse: str
    temperature: float
    rate: Estimate | None
    difference: Estimate
    p: float

    @property
    def clear(self) -> bool:
        return self.p < 0.05


def compare(
    frame: Frame, policies: Sequence[str], temperatures: Sequence[float], resamples: int, seed: int, confidence: float
) -> list[Comparison]:
    """Every two of ``policies`` at equal temperature, the one with the higher mean first; one family of tests, on at least
    ``resamples``, and on ``enough`` for so many."""
    scored = any(not np.isnan(cell["score"]).all() for cell in frame.cells.values())
    measure = "score" if scored else "rougeL"
    keys = [
        (*_ordered(frame.cells, measure, a, b, t), t)
        for t in temperatures
        for a, b in combinations(policies, 2)
        if (a, t) in frame.cells and (b, t) in frame.cells
    ]
    values = [(frame.cells[a, t][measure], frame.cells[b, t][measure]) for a, b, t in keys]
    kept = [i for i, (x, y) in enumerate(values) if not np.isnan(x - y).all()]
    if not kept:
        return []
    keys, values = [keys[i] for i in kept], [values[i] for i in kept]
    resamples = enough(resamples, len(keys), confidence)
    differences = _estimates([x - y for x, y in values], 0.0, resamples, seed, confidence)
    rates = _estimates([wins(x, y) for x, y in values], 0.5, resamples, seed, confidence)
    corrected = holm([d.p for d in differences])
    return [
        Comparison(*key, rate if scored else None, difference, p)
        for key, rate, difference, p in zip(keys, rates, differences, corrected, strict=True)
    ]


def _ordered(
    cells: Mapping[tuple[str, float], Mapping[str, np.ndarray]], measure: str, a: str, b: str, t: float
) -> tuple[str, str]:
    difference = cells[a, t][measure] - cells[b, t][measure]
    return (a, b) if np.isnan(difference).all() or np.nanmean(difference) >= 0 else (b, a)


def _estimates(values: list[np.ndarray], null: float, resamples: int, seed: int, confidence: float) -> list[Estimate]:
    found = estimate([np.stack(values)], resamples, seed, confidence, null)
    return [e for e in found if e is not None]
