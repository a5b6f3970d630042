"""The table and the sentences at the end of ``plad run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from plad_ray.report.sentences import from_metrics, how, interval, number, percent

STYLES = {"result": "", "check": "green", "warning": "yellow"}


def render(metrics: Mapping[str, Any]) -> Group:
    """A rich renderable of ``files/metrics.json`` of an evaluation (or of a pooled one)."""
    said = [Text(f"• {s.text}", style=STYLES[s.kind]) for s in from_metrics(metrics)]
    return Group(_table(metrics), *said)


def _table(metrics: Mapping[str, Any]) -> Table:
    columns = _columns(metrics)
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in ("", "ROUGE-L", "words", "cut"):
        table.add_column(name, justify="left" if not name else "right")
    for name in columns.values():
        table.add_column(name, justify="right")
    for temperature in metrics["temperatures"]:
        table.add_row(Text(how(temperature), style="bold"))
        for row in metrics["table"]:
            if row["temperature"] == temperature:
                table.add_row(*_cells(row, columns))
    return table


def _columns(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Headings of what a scorer gives, by the key of a table row: lifts are in win rate where references are scored."""
    if all(row["score"] is None for row in metrics["table"]):
        return {}
    level = f"[{metrics['confidence']:.0%}]"
    beaten = {"win_initial": f"beats initial {level}"}
    if metrics["reference_score"] is None:
        return {"score": "score", **beaten, "score_lift": f"score lift {level}"}
    return {"score": "score", "win_reference": f"beats reference {level}", **beaten, "lift": f"lift {level}"}


def _cells(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    cells = [f"  {row['label']}", number(row["rougeL"]), number(row["words"]), percent(row["truncated"])]
    cells += [_cell(name, row[name]) for name in columns]
    return [cell.replace("[", r"\[") for cell in cells]


def _cell(name: str, found: Any) -> str:
    if name == "score" or found is None:
        return "" if found is None else number(found, 3)
    if name == "score_lift":
        return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    if name == "lift":
        return f"{100 * found['mean']:+.1f} {interval(found, signed=True)}"
    return f"{percent(found['mean'])} {interval(found)}"
