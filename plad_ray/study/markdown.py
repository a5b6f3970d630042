"""A study's result as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from plad_ray.report.cost import by_stage
from plad_ray.report.markdown import costs, escape, fenced, lineage, samples
from plad_ray.report.sentences import how
from plad_ray.report.sources import Sources
from plad_ray.study import shown
from plad_ray.study.result import Findings, StudyResult, Table


def render(result: StudyResult, sources: Sources | None = None, figures: str = "") -> str:
    """Summary first, then tables, figures (SVG files beside the page), a few samples, settings, and the artifacts behind it
    all with their cost. ``figures``: what the names of the SVG files begin with."""
    return "\n".join(_lines(result, sources or Sources(), figures)) + "\n"


def _lines(result: StudyResult, sources: Sources, figures: str) -> Iterator[str]:
    yield f"# {escape(result.title)}: {escape(result.name)}"
    if result.paper:
        yield f"\nAs {escape(result.paper)} of PLaD ([arXiv 2406.02886](https://arxiv.org/abs/2406.02886))."
    yield ""
    yield from (f"- {escape(sentence)}" for sentence in result.summary)
    yield from (f"- **Caution:** {escape(sentence)}" for sentence in result.warnings)
    yield from tables_and_figures(result, figures=figures)
    if sources.samples:
        yield from ("", f"## Samples of {sources.samples.run} ({how(sources.samples.temperature)})", "")
        yield from samples(sources.samples.shown)
    for name, content in result.chosen.items():
        yield from ("", f"## {name}", "", f"`plad run {name}` takes this file.", "", fenced(content, "yaml"))
    yield from ("", "## Settings", "", fenced(result.experiment, "yaml"), "", "Of the study:", "")
    yield from (f"- `{key}`: `{value}`" for key, value in result.settings.items())
    if sources.steps:
        yield from ("", "## Cost", "", *costs(by_stage(sources.steps)), "", "## Lineage", "", *lineage(sources.steps))
    yield from ("", "## Artifacts", "", "What the numbers were computed from:", "")
    yield from (f"- {key}: `{name}`" for key, name in result.artifacts.items())


def tables_and_figures(found: Findings, heading: str = "##", figures: str = "") -> Iterator[str]:
    """Each below its title, whose level ``heading`` has; ``figures`` is what the names of their SVG files begin with."""
    for table in found.tables:
        yield from ("", f"{heading} {escape(table.title)}", "")
        yield from _table(table)
        if table.note:
            yield f"\n{escape(table.note)}"
    for figure in found.drawn:
        yield from (
            "",
            f"{heading} {escape(figure.title)}",
            "",
            f"![{escape(figure.title)}]({quote(f'{figures}{figure.key}.svg')})",
        )
        if figure.note:
            yield f"\n{escape(figure.note)}"


def _table(table: Table) -> Iterator[str]:
    yield "| " + " | ".join(escape(column.label) for column in table.columns) + " |"
    yield "|" + "|".join("---" if column.unit == "text" else "---:" for column in table.columns) + "|"
    for row in table.rows:
        cells = (escape(shown.cell(value, column)) for value, column in zip(row, table.columns, strict=True))
        yield "| " + " | ".join(cells) + " |"
