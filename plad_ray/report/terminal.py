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
    scored = any(row["score"] is not None for row in metrics["table"])
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in ("", "ROUGE-L", "words", "cut"):
        table.add_column(name, justify="left" if not name else "right")
    if scored:
        level = f"{metrics['confidence']:.0%}"
        for name in ("score", f"beats reference [{level}]", f"beats initial [{level}]", f"lift [{level}]"):
            table.add_column(name, justify="right")
    for temperature in metrics["temperatures"]:
        table.add_row(Text(how(temperature), style="bold"))
        for row in metrics["table"]:
            if row["temperature"] == temperature:
                table.add_row(*_cells(row, scored))
    return table


def _cells(row: Mapping[str, Any], scored: bool) -> list[str]:
    cells = [f"  {row['label']}", number(row["rougeL"]), number(row["words"]), percent(row["truncated"])]
    if scored:
        cells.append(number(row["score"], 3))
        for name in ("win_reference", "win_initial"):
            found = row[name]
            cells.append(f"{percent(found['mean'])} {interval(found)}" if found else "")
        lift = row["lift"]
        cells.append(f"{100 * lift['mean']:+.1f} {interval(lift, signed=True)}" if lift else "")
    return [cell.replace("[", r"\[") for cell in cells]
