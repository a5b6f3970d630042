"""What the tables and figures of several studies are made of."""

from __future__ import annotations

from collections.abc import Sequence

from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.study.result import Column, Interval, Kind, Series

LABELS = {TEACHER: "teacher", INITIAL: "initial student"}
ARM = Column(key="arm", label="", unit="text")
TEMPERATURE = Column(key="temperature", label="temperature")
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


def interval(found: Interval) -> str:
    """A difference of shares in points: ``+1.3 [-0.2, +2.8]``."""
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def told_apart(found: Interval, confidence: float) -> str:
    """What a sentence adds where chance explains a difference."""
    return "" if found.p is not None and found.p <= 1 - confidence else ", not told apart from none"
