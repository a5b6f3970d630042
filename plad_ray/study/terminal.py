"""The end of ``plad study`` in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from plad_ray.report.text import visible
from plad_ray.study import shown
from plad_ray.study.result import StudyResult, Table


def render(result: StudyResult) -> Group:
    """Tables, then what they say. Model and data text is shown, never interpreted."""
    said = [_text(f"• {sentence}") for sentence in result.summary]
    cautions = [_text(f"• {sentence}", "yellow") for sentence in result.warnings]
    return Group(*(_table(table) for table in result.tables), *said, *cautions)


def _table(table: Table) -> RichTable:
    lines = RichTable(box=box.SIMPLE_HEAD, title=_text(table.title), title_justify="left", pad_edge=False)
    for column in table.columns:
        lines.add_column(_text(column.label), justify="left" if column.unit == "text" else "right")
    for row in table.rows:
        lines.add_row(*(_text(shown.cell(v, c)) for v, c in zip(row, table.columns, strict=True)))
    return lines


def _text(text: str, style: str = "") -> Text:
    return Text(" ".join(visible(text).split()), style=style)
