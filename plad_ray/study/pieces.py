"""What the tables and figures of several studies are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.study.result import Column, Interval, Kind, Series
from plad_ray.study.statistics import ends

Verdict = Literal["above", "below", "not told apart from"]
LABELS = {TEACHER: "teacher", INITIAL: "initial student"}
ARM = Column(key="arm", label="", unit="text")
TEMPERATURE = Column(key="temperature", label="temperature")
AGAINST = Column(key="arm", label="against", unit="text")
DIFFERENCE = Column(key="difference", label="difference", unit="points")
P_HOLM = Column(key="p", label="p (Holm)", unit="p")


def how(temperature: float) -> str:
    return "Greedy" if temperature == 0 else f"Sampled at {temperature:g}"


def points(name: str, found: Sequence[tuple[float, Interval]], kind: Kind = "line+points", group: str = "") -> Series:
    """A series from places and the estimates there."""
    return Series(
        name=name,
        kind=kind,
        group=group,
        x=tuple(float(x) for x, _ in found),
        y=tuple(e.mean for _, e in found),
        low=tuple(e.low for _, e in found),
        high=tuple(e.high for _, e in found),
    )


def band(name: str, x: np.ndarray, y: np.ndarray, y_XR: np.ndarray, confidence: float) -> Series:
    """A curve fitted to the points of ``name``, in their colour, with the interval of its R resamples at each x."""
    low, high = ends(y_XR, confidence, axis=1)
    values = {key: tuple(map(float, v)) for key, v in {"x": x, "y": y, "low": low, "high": high}.items()}
    return Series(name=f"{name}, fitted", kind="band", group=name, **values)


def interval(found: Interval) -> str:
    """A difference of shares in points: ``+1.3 [-0.2, +2.8]``."""
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def verdict(found: Interval, confidence: float) -> Verdict | None:
    """Of a difference, by its p-value; None where it has none."""
    if found.p is None:
        return None
    return "not told apart from" if found.p > 1 - confidence else "above" if found.mean > 0 else "below"


def told_apart(found: Interval, confidence: float) -> str:
    """What a sentence adds where chance explains a difference."""
    return "" if found.p is not None and found.p <= 1 - confidence else ", not told apart from none"
