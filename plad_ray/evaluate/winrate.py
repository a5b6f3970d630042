"""Win rates: the share of prompts where one text scores higher than another; a tie counts half."""

from __future__ import annotations

import numpy as np


def wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where ``ours`` scores higher, 0.5 where both score the same, 0 where lower; NaN where either is missing. [N]"""
    missing = np.isnan(ours) | np.isnan(theirs)
    return np.where(missing, np.nan, np.where(ours > theirs, 1.0, np.where(ours == theirs, 0.5, 0.0)))


def tie_rate(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Share of ties among the prompts that have both scores; None without any."""
    values = wins(ours, theirs)
    values = values[~np.isnan(values)]
    return float((values == 0.5).mean()) if len(values) else None
