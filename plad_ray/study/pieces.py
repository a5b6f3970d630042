"""What the tables and figures of several studies are made of."""

from __future__ import annotations

from collections.abc import Sequence

from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.study.result import Interval, Kind, Series

LABELS = {TEACHER: "teacher", INITIAL: "initial student"}


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
