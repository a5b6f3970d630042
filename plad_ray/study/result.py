"""What a study found, as data: tables, figures and sentences that any page can draw.

``files/result.json`` of the artifact ``study-<name>`` holds one ``StudyResult``. Nothing in it is formatted: numbers are
as computed, shares between 0 and 1; ``Column.unit`` and ``Axis.unit`` say how to show them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from plad_ray.config.base import Section

#: ``percent``: a share shown as 61.3 %; ``points``: a difference of shares, shown as +1.3; the others as they are.
Unit = Literal["text", "number", "percent", "points", "p", "count"]
Kind = Literal["points", "line", "line+points", "bars", "band"]


class Finite(Section):
    """Refuses NaN and infinity, which JSON would hold as null and nobody could read again."""

    model_config = ConfigDict(allow_inf_nan=False)


class Interval(Finite):
    """An estimate with its interval at ``StudyResult.confidence``; ``p`` is two-sided and, where ``adjusted``, corrected
    for the family of comparisons that the table's note names. ``n``: values behind it, one a prompt and run."""

    mean: float
    low: float
    high: float
    p: float | None = None
    adjusted: bool = False
    n: int | None = None


Cell = Interval | float | int | str | None


class Column(Section):
    key: str
    label: str
    unit: Unit = "number"
    digits: int = Field(1, description="decimals to show, of percent and points too")


class Table(Finite):
    """``rows`` hold one cell a column, in the columns' order; None is an empty cell."""

    key: str
    title: str
    note: str = Field("", description="what the numbers are, how intervals and p-values are made")
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @model_validator(mode="after")
    def _rectangular(self) -> Table:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table {self.key}: {len(wrong[0])} cells in a row of {len(self.columns)} columns")
        return self

    def column(self, key: str) -> list[Cell]:
        place = [column.key for column in self.columns].index(key)
        return [row[place] for row in self.rows]


class Axis(Section):
    """``categories``: the axis is made of these names, and its coordinates are their places 0, 1, …"""

    label: str
    unit: Unit = "number"
    log: bool = False
    categories: tuple[str, ...] = ()


class Series(Finite):
    """Points (x, y) with whiskers ``low``–``high``, or a curve with a band of them. All of one length; text shown on
    hovering in ``notes``."""

    name: str
    kind: Kind = "line+points"
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    group: str = Field("", description="series of one group share a colour (a fit and its points)")

    @model_validator(mode="after")
    def _same_length(self) -> Series:
        for name in ("y", "low", "high", "notes"):
            values = getattr(self, name)
            if len(values) != len(self.x) and (name == "y" or values):
                raise ValueError(f"series {self.name}: {len(values)} {name} for {len(self.x)} x")
        return self


class Line(Finite):
    """A reference line: horizontal at ``y``, vertical at ``x``, or with ``diagonal`` the line y = x."""

    label: str
    x: float | None = None
    y: float | None = None
    diagonal: bool = False


class Figure(Section):
    key: str
    title: str
    note: str = ""
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    lines: tuple[Line, ...] = ()


class Findings(Finite):
    """What a study's artifacts say. ``summary``: plain sentences, the most important first. ``chosen``: YAML files that
    ``plad run`` takes, by file name."""

    summary: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    chosen: dict[str, str] = Field(default_factory=dict)
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95

    @property
    def drawn(self) -> tuple[Figure, ...]:
        """The figures that have a point."""
        return tuple(figure for figure in self.figures if any(series.x for series in figure.series))


class StudyResult(Findings):
    """The findings and where they come from. ``artifacts``: by what it was used for, the name of each artifact in the
    store that the numbers were computed from. ``settings``: the study's own, complete. ``experiment``: as YAML."""

    study: str
    name: str = Field(description="of the experiment")
    title: str
    paper: str = Field("", description="the table or figure of the paper that it redoes")
    settings: dict[str, object] = Field(default_factory=dict)
    experiment: str = ""
    artifacts: dict[str, str] = Field(default_factory=dict)
