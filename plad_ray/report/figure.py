"""A chart as an SVG file of its own: what stands around the drawing on a page, title and legend, is drawn too."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from plad_ray.report.charts import Chart
from plad_ray.report.html import document
from plad_ray.report.svg import LETTER

TITLE, LINE, MARGIN = 22, 17, (24, 16)
Key = tuple[float, float, int, str, bool]


def alone(chart: Chart, size: tuple[float, float]) -> str:
    """The file; equal charts give equal text. ``size``: of the drawing."""
    width, height = size
    keys = list(_keys(chart.legend, width, TITLE + height + LINE))
    bottom = keys[-1][1] + 4 if keys else TITLE + height
    place = Markup(f'<svg y="{TITLE}" width="{width:g}" height="{height:g}" ')
    drawing = Markup(chart.drawing.replace(Markup("<svg "), place, 1))
    outer = {"width": f"{width + MARGIN[0]:g}", "height": f"{bottom + MARGIN[1]:g}"}
    return document("figure.svg.j2", chart=chart, drawing=drawing, keys=keys, **outer)


def _keys(legend: list[tuple[int, str, bool]], width: float, first: float) -> Iterator[Key]:
    """The legend's names where they stand, in lines no wider than ``width``."""
    x, y = 0.0, first
    for colour, name, hollow in legend:
        taken = 28 + LETTER * len(name)
        if x and x + taken > width:
            x, y = 0.0, y + LINE
        yield x, y, colour, name, hollow
        x += taken
