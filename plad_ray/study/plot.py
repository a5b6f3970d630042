"""A figure of a study as a static SVG."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from plad_ray.study.result import Axis, Figure, Series

STYLE: Any = {"svg.fonttype": "path", "svg.hashsalt": "plad", "axes.grid": True, "grid.alpha": 0.3, "font.size": 9}
SCALES = {"percent": (100, " %"), "points": (100, "")}


def svg(figure: Figure) -> bytes:
    """The drawing; equal figures give equal bytes."""
    with rc_context(STYLE):
        canvas = Canvas(figsize=(7, 4.2), layout="constrained")
        axes = canvas.add_subplot()
        groups = list(dict.fromkeys(series.group or series.name for series in figure.series))
        for place, series in enumerate(figure.series):
            _draw(axes, series, f"C{groups.index(series.group or series.name)}", place, len(figure.series))
        for line in figure.lines:
            _reference(axes, line.x, line.y, line.diagonal, line.label)
        axes.set_title(figure.title, loc="left")
        _axis(axes, "x", figure.x)
        _axis(axes, "y", figure.y)
        if len(figure.series) + len(figure.lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        out = io.BytesIO()
        canvas.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _draw(axes: Any, series: Series, colour: str, place: int, count: int) -> None:
    if series.kind == "band":
        axes.plot(series.x, series.y, color=colour, label=series.name, linewidth=1)
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
        return
    if series.kind == "bars":
        width = 0.8 / count
        x = [value - 0.4 + width * (place + 0.5) for value in series.x]
        axes.bar(x, series.y, width, color=colour, label=series.name)
    else:
        x = list(series.x)
        style = {"points": "o", "line": "-", "line+points": "o-"}[series.kind]
        axes.plot(x, series.y, style, color=colour, label=series.name, markersize=4)
    if series.low:
        axes.vlines(x, series.low, series.high, color="black" if series.kind == "bars" else colour, linewidth=1)


def _reference(axes: Any, x: float | None, y: float | None, diagonal: bool, label: str) -> None:
    style: dict[str, Any] = {"color": "grey", "linestyle": "--", "linewidth": 1, "label": label}
    if diagonal:
        axes.axline((0, 0), slope=1, **style)
    if y is not None:
        axes.axhline(y, **style)
    if x is not None:
        axes.axvline(x, **style)


def _axis(axes: Any, which: str, axis: Axis) -> None:
    getattr(axes, f"set_{which}label")(axis.label)
    if axis.log:
        getattr(axes, f"set_{which}scale")("log")
    if axis.categories:
        ticks = {"ticks": range(len(axis.categories)), "labels": axis.categories}
        getattr(axes, f"set_{which}ticks")(**ticks)
    elif axis.unit in SCALES:
        factor, sign = SCALES[axis.unit]
        formatter = FuncFormatter(lambda value, _: f"{factor * value:g}{sign}")
        getattr(axes, f"{which}axis").set_major_formatter(formatter)
