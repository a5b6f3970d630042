"""Histograms as JSON, and as a line of text."""

from __future__ import annotations

import numpy as np

BINS = 20
BAR = "▁▂▃▄▅▆▇█"


def histogram(values: np.ndarray) -> dict[str, list[float]] | None:
    """``edges`` (n + 1) and ``counts`` (n) over the range of ``values``; bins of whole numbers have one in their middle
    (0 among them), so a gap of 0 stands at 0."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if np.all(values == np.round(values)) and high - low <= 4 * BINS:
        width = int(np.ceil((high - low + 1) / BINS)) // 2 * 2 + 1
        first, last = np.round(low / width), np.round(high / width)
        edges = (np.arange(first, last + 2) - 0.5) * width
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts, edges = np.histogram(values, edges)
    return {"edges": [float(e) for e in edges], "counts": [int(c) for c in counts]}


def sparkline(bins: dict[str, list[float]]) -> str:
    """``-3 ▁▅█▂ 4``: the histogram between its lowest and highest value."""
    counts, edges = bins["counts"], bins["edges"]
    top = max(counts)
    bars = "".join(BAR[round(c / top * (len(BAR) - 1))] if c else " " for c in counts)
    return f"{edges[0]:.3g} {bars} {edges[-1]:.3g}"
