"""A study's result as one self-contained page, in the look of the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import yaml
from markupsafe import Markup

from plad_ray.report import graph, svg
from plad_ray.report.charts import COLOURS, Chart
from plad_ray.report.cost import by_stage
from plad_ray.report.figure import alone
from plad_ray.report.html import document
from plad_ray.report.sentences import Sentence, percent
from plad_ray.report.sources import Sources
from plad_ray.study.result import Axis, Column, Figure, Interval, Series, StudyResult, Table
from plad_ray.study.shown import number

SIZE = (540, 300)
#: rows of a list of artifacts that is open when the page is
FEW = 30
P = Column(key="p", label="p", unit="p")
FACTOR = {"percent": 100, "points": 100}


@dataclass(frozen=True)
class Shown:
    """A table's cell as text; ``note`` stands below it, ``p`` is set apart; ``sign`` of an interval that leaves 0 out."""

    text: str
    note: str = ""
    p: str = ""
    sign: int = 0


def render_study(result: StudyResult, sources: Sources | None = None) -> str:
    """The page as one HTML document. Without ``sources`` the artifacts' names alone are on it."""
    sources = sources or Sources()
    nodes = graph.fold(sources.steps)
    return document(
        "study.html.j2",
        result=result,
        sentences=[Sentence("result", _unbroken(s)) for s in result.summary]
        + [Sentence("warning", _unbroken(s)) for s in result.warnings],
        charts=[_chart(figure)[0] for figure in result.drawn],
        shown=partial(_cells, chance=1 - result.confidence),
        level=percent(result.confidence, 0),
        settings=yaml.safe_dump(result.settings, sort_keys=False, allow_unicode=True) if result.settings else "",
        samples=sources.samples,
        artifacts=len(sources.steps),
        few=FEW,
        nodes=nodes,
        graph=graph.draw(nodes) if nodes else Markup(),
        costs=by_stage(sources.steps),
        is_text=_is_text,
    )


def _unbroken(sentence: str) -> str:
    """Without a line break between a number and its unit."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def _cells(table: Table, chance: float) -> list[list[Shown]]:
    """A p-value stands below its estimate where it is corrected for its family and no column of the table holds it."""
    listed = any(column.unit == "p" for column in table.columns)
    rows = [[shown(c, k, chance) for c, k in zip(row, table.columns, strict=True)] for row in table.rows]
    return [[replace(cell, p="") for cell in row] for row in rows] if listed else rows


def shown(cell: Interval | float | int | str | None, column: Column, chance: float) -> Shown:
    """How a cell is written in its column's unit. A difference (``points``) whose interval leaves 0 out has a sign, unless
    its corrected p-value is above ``chance``."""
    if cell is None:
        return Shown("–")
    if isinstance(cell, str):
        return Shown(cell)
    if isinstance(cell, int | float):
        return Shown(_number(cell, column))
    sign = 1 if cell.low > 0 else -1 if cell.high < 0 else 0
    if cell.adjusted and cell.p is not None and cell.p > chance:
        sign = 0
    p = f"p {_number(cell.p, P)} (corrected)" if cell.p is not None and cell.adjusted else ""
    between = f"[{_number(cell.low, column, bare=True)}, {_number(cell.high, column, bare=True)}]"
    return Shown(_number(cell.mean, column), between, p, sign if column.unit == "points" else 0)


def _number(value: float, column: Column, bare: bool = False) -> str:
    return number(value, column, bare).replace("<", "< ")


def _is_text(table: Any, place: int) -> bool:
    """Whether a column is aligned to the left."""
    return table.columns[place].unit == "text"


def draw(figure: Figure) -> str:
    """``figure`` as an SVG file; equal figures give equal text."""
    return alone(*_chart(figure))


def _chart(figure: Figure) -> tuple[Chart, tuple[float, float]]:
    """The chart and its drawing's size."""
    colours = {g: i % COLOURS for i, g in enumerate(dict.fromkeys(s.group or s.name for s in figure.series))}
    series = [_series(s, colours[s.group or s.name], figure.y) for s in figure.series]
    rules = [svg.Rule(line.label, line.x, line.y, line.diagonal) for line in figure.lines]
    x, y = _axis(figure.x), _axis(figure.y)
    drawing, size = svg.xy_sized(figure.title, series, x, y, rules, SIZE)
    legend = [(s.colour, s.name, s.dashed) for s in series] if len(series) > 1 else []
    return Chart(figure.title, Markup(drawing), legend, figure.note), size


def _axis(axis: Axis) -> svg.Axis:
    unit = {"percent": "%", "points": "points"}.get(axis.unit)
    label = axis.label + (f", {unit}" if unit and axis.label else "")
    return svg.Axis(label, lambda value: svg.short(_scaled(value, axis.unit)), axis.log, tuple(axis.categories))


def _scaled(value: float, unit: str) -> float:
    return round(FACTOR.get(unit, 1) * value, 10)


def _series(series: Series, colour: int, y: Axis) -> svg.Series:
    notes = [f"{_said(series, i, y)}\n{note}" for i, note in enumerate(series.notes)]
    return svg.Series(
        series.name,
        series.x,
        series.y,
        colour,
        series.kind,
        series.low,
        series.high,
        notes,
        dashed=series.kind == "band",
    )


def _said(series: Series, i: int, y: Axis) -> str:
    mean, *ends = (svg.short(_scaled(v[i], y.unit)) for v in (series.y, series.low, series.high) if v)
    return f"{mean} [{ends[0]}, {ends[1]}]" if len(ends) == 2 else mean
