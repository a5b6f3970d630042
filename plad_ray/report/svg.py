"""Inline SVG plots. Colours are CSS variables of the page, so one drawing serves light, dark and print.

``report.js`` makes them answer the mouse: it reads what a mark says from ``data-tip``, and the points of a curve from
``data-points``. Without it the page is complete, only still.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape as escape_html
from itertools import pairwise
from typing import Literal

from plad_ray.report.text import visible

WIDTH, HEIGHT = 330, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 26
LETTER = 6.5  # width, about
#: more room above a long label of the y axis, and below for a label of the x axis that has a line of its own
OVER, UNDER = 10, 17
SLANT = 35  # degrees, of names that would run into each other
POINTS = 240
Kind = Literal["line", "points", "line+points", "bars", "band"]


@dataclass(frozen=True)
class Axis:
    """``show`` writes a coordinate; with ``names`` coordinates are their places 0, 1, …"""

    label: str = ""
    show: Callable[[float], str] | None = None
    log: bool = False
    names: tuple[str, ...] = ()
    ends: tuple[float, float] | None = None  # the axis covers at least these

    def text(self, value: float) -> str:
        if self.names:
            return self.names[round(value)] if 0 <= round(value) < len(self.names) else ""
        return (self.show or short)(value)


@dataclass(frozen=True)
class Series:
    """``colour``: 0.. picks the page's ``--s0``..; ``dashed`` sets a second line of one colour apart without colour.
    ``low`` and ``high`` are whiskers of points and bars, and a band around a line. ``notes``: what hovering says of each
    point (default: its y)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    kind: Kind = "line"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    notes: Sequence[str] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Rule:
    """A reference line: horizontal at ``y``, vertical at ``x``, or y = x."""

    label: str = ""
    x: float | None = None
    y: float | None = None
    diagonal: bool = False


@dataclass(frozen=True)
class Dot:
    """One estimate with its interval; ``hollow`` sets a second dot of one row apart. ``tip`` is said on hovering."""

    value: float
    low: float
    high: float
    colour: int
    hollow: bool = False
    text: str = ""
    tip: str = ""


def escape(text: str) -> str:
    return escape_html(visible(text), quote=True)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about ``count`` of them."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(count - 1, 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(s * magnitude for s in (1, 2, 2.5, 5, 10) if s * magnitude >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten from at most ``low`` to at least ``high`` (both above 0)."""
    marks = [
        m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    first = max(i for i, mark in enumerate(marks) if mark <= low * 1.0001)
    last = next(i for i, mark in enumerate(marks) if mark >= high * 0.9999)
    return [float(f"{mark:.6g}") for mark in marks[first : max(last, first + 1) + 1]]


def short(value: float) -> str:
    """A number for a small place: 0.25, 12, 15k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}" if abs(value) < 100 else f"{value:.6g}"


def xy(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    rules: Sequence[Rule] = (),
) -> str:
    """Curves, points with whiskers, bands and bars over one pair of axes."""
    return xy_sized(title, series, x, y, rules, (WIDTH, HEIGHT))[0]


def xy_sized(
    title: str, series: Sequence[Series], x: Axis, y: Axis, rules: Sequence[Rule], size: tuple[int, int]
) -> tuple[str, tuple[float, float]]:
    """The same in a ``size``, which grows by what labels take; the drawing's own is given back."""
    series = [s for s in series if len(s.x)]
    width, height = size
    bottom = height - BOTTOM
    xs, ys = _span_x(series, x, rules), _span_y(series, y, rules)
    y_marks = list(range(len(y.names))) if y.names else log_ticks(*ys) if y.log else ticks(*ys)
    left = max(LEFT, 14 + 6.2 * max(len(y.text(t)) for t in y_marks))
    top = TOP + (OVER if _wider(y.label, left - 7) else 0)
    under = bool(x.label) and (bool(x.names) or _wider(x.label, 0.4 * (width - RIGHT - left)))
    below = _slanted(x, width - RIGHT - left)
    place_x = Scale(*xs, left, width - RIGHT, x.log)
    place_y = Scale(min(ys[0], y_marks[0]), max(ys[1], y_marks[-1]), bottom, top, y.log)
    parts = [*_grid(y, y_marks, place_y, left, width), *_axis_x(x, xs, place_x, bottom, left, width, under, below)]
    parts += [_rule(rule, place_x, place_y, (left, width - RIGHT), (top, bottom)) for rule in rules]
    bars, drawn = ([s for s in series if (s.kind == "bars") is wanted] for wanted in (True, False))
    parts += [_bars(s, bars, x, y, place_x, place_y, bottom) for s in bars]
    parts += [_band(s, place_x, place_y) for s in drawn]
    parts += [_line(s, x, y, place_x, place_y) for s in drawn]
    parts += [_points(s, x, y, place_x, place_y) for s in drawn]  # on top, so that they answer the pointer
    height += round(below) + (UNDER if under else 0)
    return _svg(title, parts, height, width), (width, height)


def dots(title: str, rows: Sequence[tuple[str, Sequence[Dot]]], middle: float | None, unit: str = "%") -> str:
    """Rows of estimates with whiskers; a dashed line marks ``middle`` (no difference)."""
    every = [d for _, dots in rows for d in dots]
    names = 24 + 6.6 * min(26, max(len(name) for name, _ in rows))
    spread = [v for d in every for v in (d.low, d.high)] + ([middle] if middle is not None else [])
    marks = ticks(min(spread), max(spread))
    width, right, step = 460, 58, 17
    heights = [len(d) * step + 10 for _, d in rows]
    height = TOP + sum(heights) + BOTTOM
    place = Scale(marks[0], marks[-1], names, width - right)
    parts = [
        f'<path class="grid" d="M{place(t):.1f} {TOP}V{height - BOTTOM}"/>'
        f'<text class="axis" x="{place(t):.1f}" y="{height - BOTTOM + 15}" text-anchor="middle">{short(t)}{unit}</text>'
        for t in marks
    ]
    if middle is not None:
        parts.append(f'<path class="middle" d="M{place(middle):.1f} {TOP}V{height - BOTTOM}"/>')
    y = float(TOP)
    for (name, found), tall in zip(rows, heights, strict=True):
        shown = name if len(name) <= 26 else name[:25] + "…"
        parts.append(
            f'<text class="name" x="{names - 12:.1f}" y="{y + tall / 2 + 4:.1f}" text-anchor="end">{escape(shown)}</text>'
        )
        parts += [_dot(name, dot, place, y + 5 + step * (i + 0.5), width) for i, dot in enumerate(found)]
        y += tall
    return _svg(title, parts, height, width)


def bars(title: str, edges: Sequence[float], counts: Sequence[float], colour: int, x_label: str) -> str:
    """A histogram; a dashed line marks 0 where the range holds it."""
    y_ticks, bottom = ticks(0, max(counts), 4), HEIGHT - BOTTOM
    place_x, place_y = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT), Scale(0, y_ticks[-1], bottom, TOP)
    parts = _grid(Axis(), y_ticks, place_y, LEFT, WIDTH)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        x, y = place_x(low), place_y(count)
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(place_x(high) - x - 1, 0.5):.1f}" height="{bottom - y:.1f}"'
        tip = escape(f"{short(low)} to {short(high)} {x_label}\n{count:,}")
        parts.append(f'<rect class="mark" {place} style="fill:var(--s{colour})" data-tip="{tip}"/>')
    parts += _axis_x(Axis(x_label), (edges[0], edges[-1]), place_x, bottom, LEFT, WIDTH)
    if edges[0] < 0 < edges[-1]:
        parts.append(f'<path class="middle" d="M{place_x(0):.1f} {TOP}V{bottom}"/>')
    return _svg(title, parts, HEIGHT)


class Scale:
    """Map of values to pixels, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False):
        self.of: Callable[[float], float] = math.log10 if log else float
        self.low, high = self.of(low), self.of(high)
        self.factor, self.start = (end - start) / ((high - self.low) or 1), start

    def __call__(self, value: float) -> float:
        return self.start + (self.of(value) - self.low) * self.factor


def _span_x(series: Sequence[Series], axis: Axis, rules: Sequence[Rule]) -> tuple[float, float]:
    if axis.names:
        return (-0.5, len(axis.names) - 0.5)
    values = [v for s in series for v in s.x] + [r.x for r in rules if r.x is not None] + list(axis.ends or ())
    low, high = min(values), max(values)
    if any(s.kind != "line" for s in series):  # a marker needs room on both sides
        room = 0.04 * ((math.log10(high / low) if axis.log else high - low) or 1)
        return (low / 10**room, high * 10**room) if axis.log else (low - room, high + room)
    return (low, high)


def _span_y(series: Sequence[Series], axis: Axis, rules: Sequence[Rule]) -> tuple[float, float]:
    if axis.names:
        return (-0.5, len(axis.names) - 0.5)
    values = [v for s in series for part in (s.y, s.low, s.high) for v in part]
    values += [r.y for r in rules if r.y is not None] + list(axis.ends or ())
    if any(s.kind == "bars" for s in series) and not axis.log:
        values.append(0.0)
    return (min(values), max(values))


def _grid(axis: Axis, marks: Sequence[float], place: Scale, left: float, width: float) -> list[str]:
    at = 'x="0" y="9"' if _wider(axis.label, left - 7) else f'x="{left - 7:.1f}" y="9" text-anchor="end"'
    title = f'<text class="axis" {at}>{escape(axis.label)}</text>'
    lines = [
        f'<path class="grid" d="M{left:.1f} {place(t):.1f}H{width - RIGHT}"/>'
        f'<text class="axis" x="{left - 7:.1f}" y="{place(t) + 4:.1f}" text-anchor="end">{escape(axis.text(t))}</text>'
        for t in marks
    ]
    return [*lines, title] if axis.label else lines


def _axis_x(
    axis: Axis,
    span: tuple[float, float],
    place: Scale,
    bottom: float,
    left: float,
    width: float,
    under: bool = False,
    below: float = 0,
) -> list[str]:
    """Names or round numbers under the axis; its label at their right, where no number stands, or ``under`` them. Names
    that reach down by ``below`` are slanted."""
    y, end = bottom + 15, width - RIGHT
    at = (
        f'x="{(left + end) / 2:.1f}" y="{y + 15 + below:.0f}" text-anchor="middle"'
        if under
        else f'x="{end}" y="{y}" text-anchor="end"'
    )
    label = [f'<text class="axis" {at}>{escape(axis.label)}</text>'] if axis.label else []
    if axis.names:
        marks: list[float] = list(range(len(axis.names)))
    else:
        room = end if under else end - LETTER * len(axis.label) - 14
        count = 6 if width <= WIDTH else 9
        marks = log_ticks(*span) if axis.log else ticks(*span, count=count)
        marks = [t for t in marks if span[0] <= t <= span[1] and place(t) <= room]
    shown = [f'<text class="axis" {_at(place(t), y, below)}>{escape(axis.text(t))}</text>' for t in marks]
    return [*shown, *label]


def _at(x: float, y: float, below: float) -> str:
    """Where a name under the axis stands: centred, or slanted with its end under its place."""
    if not below:
        return f'x="{x:.1f}" y="{y}" text-anchor="middle"'
    return f'x="{x + 4:.1f}" y="{y - 3}" text-anchor="end" transform="rotate(-{SLANT} {x + 4:.1f} {y - 3})"'


def _slanted(axis: Axis, room: float) -> float:
    """How far slanted names reach down below upright ones; 0 where these have room side by side."""
    longest = max(map(len, axis.names), default=0)
    if not _wider(" " * (longest + 1), room / max(1, len(axis.names))):
        return 0
    return LETTER * longest * math.sin(math.radians(SLANT))


def _wider(text: str, room: float) -> bool:
    return LETTER * len(text) > room


def _rule(rule: Rule, place_x: Scale, place_y: Scale, xs: tuple[float, float], ys: tuple[float, float]) -> str:
    tip = f' data-tip="{escape(rule.label)}"' if rule.label else ""
    if rule.y is not None:
        text = f'<text class="axis" x="{xs[1]}" y="{place_y(rule.y) - 4:.1f}" text-anchor="end">{escape(rule.label)}</text>'
        return f'<path class="middle"{tip} d="M{xs[0]:.1f} {place_y(rule.y):.1f}H{xs[1]:.1f}"/>' + text
    if rule.x is not None:
        text = f'<text class="axis" x="{place_x(rule.x) + 4:.1f}" y="{ys[0] + 9}">{escape(rule.label)}</text>'
        return f'<path class="middle"{tip} d="M{place_x(rule.x):.1f} {ys[0]}V{ys[1]}"/>' + text
    at = [(x, place_y(_inverse(place_x, x))) for x in xs]
    return f'<path class="middle"{tip} d="M{at[0][0]:.1f} {at[0][1]:.1f}L{at[1][0]:.1f} {at[1][1]:.1f}"/>'


def _inverse(place: Scale, pixel: float) -> float:
    return place.low + (pixel - place.start) / place.factor


def _line(s: Series, x: Axis, y: Axis, place_x: Scale, place_y: Scale) -> str:
    if s.kind not in ("line", "line+points"):
        return ""
    keep = _thinned(len(s.x))
    at = [(place_x(s.x[i]), place_y(s.y[i])) for i in keep]
    dash = ' stroke-dasharray="5 4"' if s.dashed else ""
    hover = ""
    if s.kind == "line":
        said = [[round(p, 1), round(q, 1), x.text(s.x[i]), _note(s, i, y)] for i, (p, q) in zip(keep, at, strict=True)]
        hover = f' data-label="{escape(x.label)}" data-points="{escape(json.dumps(said, ensure_ascii=False))}"'
    return (
        f'<path class="line" d="M{"L".join(f"{p:.1f} {q:.1f}" for p, q in at)}" style="stroke:var(--s{s.colour})"{dash}'
        f' data-name="{escape(s.name)}"{hover}/>'
    )


def _points(s: Series, x: Axis, y: Axis, place_x: Scale, place_y: Scale) -> str:
    if s.kind not in ("points", "line+points"):
        return ""
    drawn, whiskers = [], s.kind == "points" or len(s.x) <= 24
    for i, (u, v) in enumerate(zip(s.x, s.y, strict=True)):
        p, q = place_x(u), place_y(v)
        if s.low and whiskers:
            drawn.append(
                f'<path class="whisker" data-name="{escape(s.name)}" style="stroke:var(--s{s.colour})" '
                f'd="M{p:.1f} {place_y(s.low[i]):.1f}V{place_y(s.high[i]):.1f}"/>'
            )
        drawn.append(_circle(p, q, s.colour, s.dashed, s.name, _tip(s, i, x, y)))
    return "".join(drawn)


def _circle(x: float, y: float, colour: int, hollow: bool, name: str, tip: str) -> str:
    fill = "var(--page)" if hollow else f"var(--s{colour})"
    return (
        f'<circle class="mark" tabindex="0" cx="{x:.1f}" cy="{y:.1f}" r="4.2" stroke-width="1.8" data-name="{escape(name)}" '
        f'style="fill:{fill};stroke:var(--s{colour})" data-tip="{escape(tip)}"/>'
    )


def _band(s: Series, place_x: Scale, place_y: Scale) -> str:
    if not s.low or (s.kind not in ("line", "band") and len(s.x) <= 24):
        return ""
    there = [f"{place_x(u):.1f} {place_y(v):.1f}" for u, v in zip(s.x, s.high, strict=True)]
    back = [f"{place_x(u):.1f} {place_y(v):.1f}" for u, v in zip(s.x, s.low, strict=True)][::-1]
    style = f"fill:var(--s{s.colour})"
    return f'<path class="band" data-name="{escape(s.name)}" style="{style}" d="M{"L".join(there + back)}Z"/>'


def _bars(s: Series, beside: Sequence[Series], x: Axis, y: Axis, place_x: Scale, place_y: Scale, bottom: float) -> str:
    """Bars of several series stand side by side around their x."""
    every = sorted({v for other in beside for v in other.x})
    gap = min((b - a for a, b in pairwise(every)), default=1.0)
    slot = 0.8 * abs(place_x(every[0] + gap) - place_x(every[0])) / len(beside)
    drawn = []
    for i, (u, v) in enumerate(zip(s.x, s.y, strict=True)):
        p = place_x(u) + slot * (beside.index(s) - len(beside) / 2)
        top, floor = sorted((place_y(v), place_y(0) if not y.log else bottom))
        drawn.append(
            f'<rect class="mark" data-name="{escape(s.name)}" x="{p:.1f}" y="{top:.1f}" width="{max(slot - 1, 1):.1f}" '
            f'height="{max(floor - top, 0.5):.1f}" style="fill:var(--s{s.colour})" data-tip="{escape(_tip(s, i, x, y))}"/>'
        )
        if s.low:
            middle = p + (slot - 1) / 2
            drawn.append(
                f'<path class="whisker over" data-name="{escape(s.name)}" '
                f'd="M{middle:.1f} {place_y(s.low[i]):.1f}V{place_y(s.high[i]):.1f}"/>'
            )
    return "".join(drawn)


def _note(s: Series, i: int, y: Axis) -> str:
    if s.notes:
        return s.notes[i]
    between = f" [{y.text(s.low[i])}, {y.text(s.high[i])}]" if s.low else ""
    return y.text(s.y[i]) + between


def _tip(s: Series, i: int, x: Axis, y: Axis) -> str:
    at = x.text(s.x[i])
    return f"{s.name}\n{x.label + ' ' if x.label and not x.names else ''}{at}\n{_note(s, i, y)}"


def _dot(name: str, dot: Dot, place: Scale, y: float, width: int) -> str:
    span = f"M{place(dot.low):.1f} {y:.1f}H{place(dot.high):.1f}"
    return (
        f'<path class="whisker" d="{span}" style="stroke:var(--s{dot.colour})"/>'
        + _circle(place(dot.value), y, dot.colour, dot.hollow, name, f"{name}\n{dot.tip or dot.text}")
        + f'<text class="value" x="{width - 2}" y="{y + 4:.1f}" text-anchor="end">{escape(dot.text)}</text>'
    )


def _thinned(count: int) -> list[int]:
    """At most about ``POINTS`` places, the last one among them."""
    return sorted({*range(0, count, max(1, math.ceil(count / POINTS))), count - 1})


def _svg(title: str, parts: Sequence[str], height: float, width: float = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
