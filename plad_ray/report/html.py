"""Self-contained pages: one inline script that the page's own policy pins by its hash, no request, all text escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from plad_ray.report import charts, graph
from plad_ray.report.collect import Page
from plad_ray.report.cost import by_stage
from plad_ray.report.sentences import how, interval, number, percent
from plad_ray.report.text import visible


def render(page: Page) -> str:
    """The page of one run as one HTML document."""
    nodes = graph.fold(page.lineage)
    return document(
        "report.html.j2",
        page=page,
        groups=charts.temperatures(page),
        results=charts.results(page),
        training=charts.training(page),
        sft=charts.sft(page),
        pair_charts={arm: charts.pairs(page, arm) for arm in page.pairs},
        only_references=charts.ONLY_REFERENCES,
        colours=charts.colours(page.metrics),
        labels={p["name"]: p["label"] for p in page.metrics["policies"]},
        costs=by_stage(page.lineage),
        nodes=nodes,
        graph=graph.draw(nodes),
    )


def document(template: str, **values: Any) -> str:
    """A template of this folder with the pages' style, script and filters."""
    styles = {"drawing_style": _file("drawing.css"), "style": _file("style.css")}
    return _environment().get_template(template).render(**values, **styles, **_script())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("plad_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "interval": interval,
        "duration": duration,
        "how": how,
    }
    environment.filters |= {"count": count, "hours": hours}
    return environment


def _harmless(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script() -> dict[str, Any]:
    """The script, and the hash by which the page's Content-Security-Policy lets it alone run."""
    text = _file("report.js")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": text, "script_hash": f"sha256-{digest}"}


def _file(name: str) -> Markup:
    return Markup(files("plad_ray.report").joinpath(name).read_text(encoding="utf-8"))


def count(value: float | None) -> str:
    """``1,234,567``; nothing where there is nothing to count."""
    return "" if value is None else f"{value:,.0f}"


def hours(value: float) -> str:
    """``< 0.001``, ``0.002``, ``0.31``, ``12.4``."""
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
