"""One self-contained page: no script, no request; all text of models and data is escaped."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from plad_ray.report import charts
from plad_ray.report.collect import Page
from plad_ray.report.sentences import interval, number, percent


def render(page: Page) -> str:
    """The page as one HTML document."""
    environment = Environment(
        loader=PackageLoader("plad_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "interval": interval, "duration": duration}
    style = Markup(files("plad_ray.report").joinpath("style.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.j2").render(
        page=page,
        style=style,
        groups=charts.temperatures(page),
        results=charts.results(page),
        training=charts.training(page),
        sft=charts.sft(page),
        pair_charts={arm: charts.pairs(page, arm) for arm in page.pairs},
        only_references=charts.ONLY_REFERENCES,
        colours=charts.colours(page.metrics),
        seconds=sum(step.seconds for step in page.lineage),
        tokens=sum(step.tokens or 0 for step in page.lineage),
    )


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
