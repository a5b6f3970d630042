"""Several runs (seeds) of one experiment as one table: ``python -m plad_ray.evaluate.pool …/metrics.json …``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from plad_ray.errors import PladError
from plad_ray.evaluate.frame import Frame
from plad_ray.evaluate.table import best_lift, summarise


def pool(paths: Sequence[str | Path], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Metrics of all runs together, as ``table.summarise`` gives them, plus each run's own under ``seeds``.

    ``paths``: ``files/metrics.json`` of evaluation artifacts. The bootstrap resamples prompts within each run,
    those that several runs have together. Raises PladError when the runs do not hold the same policies and temperatures.
    """
    if not paths:
        raise PladError("pool: give at least one files/metrics.json of an evaluation artifact")
    runs = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if (run["policies"], run["temperatures"]) != (runs[0]["policies"], runs[0]["temperatures"]):
            raise PladError(
                f"{path}: policies {_names(run)} at {run['temperatures']} are not those of {paths[0]}: "
                f"{_names(runs[0])} at {runs[0]['temperatures']}"
            )
    frames = [Frame.from_rows(pads.dataset(Path(path).parent.parent / "rows").to_batches()) for path in paths]
    policies = {policy["name"]: policy["label"] for policy in runs[0]["policies"]}
    pooled = summarise(frames, policies, runs[0]["temperatures"], resamples, runs[0]["confidence"], seed)
    return pooled | {"split": runs[0]["split"], "scorer": runs[0]["scorer"], "seeds": runs}


def render(pooled: dict[str, Any], names: Sequence[str] | None = None) -> str:
    """Two Markdown tables: win rates by seed, and the pooled lift of each arm with its interval and verdict."""
    names = names or [f"seed {i}" for i in range(len(pooled["seeds"]))]
    return "\n".join([*_by_seed(pooled, names), "", *_lifts(pooled)])


def _by_seed(pooled: dict[str, Any], names: Sequence[str]) -> list[str]:
    lines = [
        "| | temperature | " + " | ".join(names) + " | pooled |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    runs = [*pooled["seeds"], pooled]
    for temperature in pooled["temperatures"]:
        cells = [_find(run["teacher_student"], temperature=temperature) for run in runs]
        if any(cells):
            lines.append(_line("teacher beats initial student", temperature, [_percent(c) for c in cells]))
        for policy in pooled["policies"]:
            found = [_find(run["table"], policy=policy["name"], temperature=temperature) for run in runs]
            values = [_percent(row and row["win_reference"]) for row in found]
            lines.append(_line(f"{policy['label']} beats reference", temperature, values))
    return lines


def _lifts(pooled: dict[str, Any]) -> list[str]:
    level = f"{pooled['confidence']:.0%}"
    lines = [
        f"| pooled lift over the initial student | temperature | lift [{level}] | p | verdict |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(pooled["table"], key=lambda row: _names(pooled).index(row["policy"])):
        verdict = pooled["verdicts"].get(row["policy"])
        lift = best_lift(row) if verdict else None
        if verdict and lift:
            interval = f"{100 * lift['mean']:+.1f} [{100 * lift['low']:+.1f}, {100 * lift['high']:+.1f}]"
            cells = [row["label"], f"{row['temperature']:g}", interval, f"{lift['p']:.3f}", verdict]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _names(metrics: dict[str, Any]) -> list[str]:
    return [policy["name"] for policy in metrics["policies"]]


def _line(name: str, temperature: float, values: list[str]) -> str:
    return f"| {name} | {temperature:g} | " + " | ".join(values) + " |"


def _find(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)


def _percent(found: dict[str, Any] | None) -> str:
    return f"{100 * found['mean']:.1f} %" if found else "–"


if __name__ == "__main__":
    print(render(pool(sys.argv[1:])))
