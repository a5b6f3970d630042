"""A study's result as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator

from plad_ray.report.markdown import escape, fenced
from plad_ray.study import shown
from plad_ray.study.result import Findings, StudyResult, Table


def render(result: StudyResult) -> str:
    """Summary first, then tables, figures (SVG files beside the page), settings, and the artifacts behind it all."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: StudyResult) -> Iterator[str]:
    yield f"# {escape(result.title)}: {escape(result.name)}"
    if result.paper:
        yield f"\nAs {escape(result.paper)} of PLaD ([arXiv 2406.02886](https://arxiv.org/abs/2406.02886))."
    yield ""
    yield from (f"- {escape(sentence)}" for sentence in result.summary)
    yield from (f"- **Caution:** {escape(sentence)}" for sentence in result.warnings)
    yield from tables_and_figures(result)
    for name, content in result.chosen.items():
        yield from ("", f"## {name}", "", f"`plad run {name}` takes this file.", "", fenced(content, "yaml"))
    yield from ("", "## Settings", "", fenced(result.experiment, "yaml"), "", "Of the study:", "")
    yield from (f"- `{key}`: `{value}`" for key, value in result.settings.items())
    yield from ("", "## Artifacts", "")
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
            f"![{escape(figure.title)}]({figures}{figure.key}.svg)",
        )
        if figure.note:
            yield f"\n{escape(figure.note)}"


def _table(table: Table) -> Iterator[str]:
    yield "| " + " | ".join(escape(column.label) for column in table.columns) + " |"
    yield "|" + "|".join("---" if column.unit == "text" else "---:" for column in table.columns) + "|"
    for row in table.rows:
        cells = (escape(shown.cell(value, column)) for value, column in zip(row, table.columns, strict=True))
        yield "| " + " | ".join(cells) + " |"
