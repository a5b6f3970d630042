"""Small inline SVG plots. Colours are CSS variables of the page, so one drawing serves light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 330, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 26
POINTS = 240


@dataclass(frozen=True)
class Line:
    """``colour``: 0.. picks the page's ``--s0``..; ``dashed`` sets a second line of one colour apart without colour."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """One estimate with its interval; ``hollow`` sets a second dot of one row apart."""

    value: float
    low: float
    high: float
    colour: int
    hollow: bool = False
    text: str = ""


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


def short(value: float) -> str:
    """A tick label: 0.25, 12, 1.5k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def lines(title: str, series: Sequence[Line], x_label: str = "step") -> str:
    """A line chart; long lines are smoothed by a running mean."""
    series = [s for s in series if len(s.x)]
    xs = [v for s in series for v in s.x]
    ys = [v for s in series for v in smooth(s.y)]
    x_range, y_ticks = (min(xs), max(max(xs), min(xs) + 1e-9)), ticks(min(ys), max(ys))
    place_x, place_y = _scale(*x_range, LEFT, WIDTH - RIGHT), _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_grid_y(y_ticks, place_y), *_axis_x(x_range, place_x, x_label)]
    for s in series:
        path = _path([place_x(v) for v in s.x], [place_y(v) for v in smooth(s.y)])
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        parts.append(f'<path class="line" d="{path}" style="stroke:var(--s{s.colour})"{dash}/>')
    return _svg(title, parts, HEIGHT)


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean over a fiftieth of the values on each side; short curves stay as they are."""
    reach = len(values) // 50
    if reach == 0:
        return list(values)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    bounds = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in bounds]


def dots(title: str, rows: Sequence[tuple[str, Sequence[Dot]]], middle: float | None, unit: str = "%") -> str:
    """Rows of estimates with whiskers; a dashed line marks ``middle`` (no difference)."""
    names, every = 112, [d for _, dots in rows for d in dots]
    spread = [v for d in every for v in (d.low, d.high)] + ([middle] if middle is not None else [])
    marks = ticks(min(spread), max(spread))
    width, right, step = 460, 58, 17
    heights = [len(d) * step + 10 for _, d in rows]
    height = TOP + sum(heights) + BOTTOM
    place = _scale(marks[0], marks[-1], names, width - right)
    parts = [
        f'<path class="grid" d="M{place(t):.1f} {TOP}V{height - BOTTOM}"/>'
        f'<text class="axis" x="{place(t):.1f}" y="{height - BOTTOM + 15}" text-anchor="middle">{short(t)}{unit}</text>'
        for t in marks
    ]
    if middle is not None:
        parts.append(f'<path class="middle" d="M{place(middle):.1f} {TOP}V{height - BOTTOM}"/>')
    y = float(TOP)
    for (name, found), tall in zip(rows, heights, strict=True):
        parts.append(
            f'<text class="name" x="{names - 12}" y="{y + tall / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for i, dot in enumerate(found):
            parts.append(_dot(dot, place, y + 5 + step * (i + 0.5), width))
        y += tall
    return _svg(title, parts, height, width)


def _dot(dot: Dot, place: _Scale, y: float, width: int) -> str:
    fill = "var(--page)" if dot.hollow else f"var(--s{dot.colour})"
    style = f"stroke:var(--s{dot.colour})"
    return (
        f'<path class="whisker" d="M{place(dot.low):.1f} {y:.1f}H{place(dot.high):.1f}" style="{style}"/>'
        f'<circle cx="{place(dot.value):.1f}" cy="{y:.1f}" r="4.2" style="fill:{fill};{style}" stroke-width="1.8"/>'
        f'<text class="value" x="{width - 2}" y="{y + 4:.1f}" text-anchor="end">{escape(dot.text)}</text>'
    )


def bars(title: str, edges: Sequence[float], counts: Sequence[float], colour: int, x_label: str) -> str:
    """A histogram; a dashed line marks 0 where the range holds it."""
    y_ticks = ticks(0, max(counts), 4)
    place_x, place_y = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT), _scale(0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = _grid_y(y_ticks, place_y)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        x, y = place_x(low), place_y(count)
        size = f'width="{max(place_x(high) - x - 1, 0.5):.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} style="fill:var(--s{colour})"/>')
    parts += _axis_x((edges[0], edges[-1]), place_x, x_label)
    if edges[0] < 0 < edges[-1]:
        parts.append(f'<path class="middle" d="M{place_x(0):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    return _svg(title, parts, HEIGHT)


class _Scale:
    """Linear map of values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.factor, self.start = low, (end - start) / (high - low), start

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, high if high > low else low + 1, start, end)


def _grid_y(marks: Sequence[float], place: _Scale) -> list[str]:
    return [
        f'<path class="grid" d="M{LEFT} {place(t):.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="axis" x="{LEFT - 7}" y="{place(t) + 4:.1f}" text-anchor="end">{short(t)}</text>'
        for t in marks
    ]


def _axis_x(span: tuple[float, float], place: _Scale, label: str) -> list[str]:
    """Round numbers under the axis, then its label at the right, where no number stands."""
    y, room = HEIGHT - BOTTOM + 15, WIDTH - RIGHT - 6.5 * len(label) - 14
    marks = [t for t in ticks(*span, count=6) if span[0] <= t <= span[1] and place(t) <= room]
    numbers = [f'<text class="axis" x="{place(t):.1f}" y="{y}" text-anchor="middle">{short(t)}</text>' for t in marks]
    return [*numbers, f'<text class="axis" x="{WIDTH - RIGHT}" y="{y}" text-anchor="end">{escape(label)}</text>']


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    every = max(1, math.ceil(len(xs) / POINTS))
    keep = sorted({*range(0, len(xs), every), len(xs) - 1})
    return "M" + "L".join(f"{xs[i]:.1f} {ys[i]:.1f}" for i in keep)


def _svg(title: str, parts: Sequence[str], height: float, width: float = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
