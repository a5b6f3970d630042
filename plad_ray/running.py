"""What ``plad run`` and ``plad stage`` do."""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plad_ray import preflight, preview
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment
from plad_ray.errors import PladError
from plad_ray.pipeline import Plan, plan
from plad_ray.stages import Stage, check, closure, execute

if TYPE_CHECKING:
    from plad_ray.progress import Board


def run(exp: Experiment, only: str | None, dry_run: bool, verbose: bool) -> None:
    """Run the whole experiment, or the stage ``only`` and what it needs. Raises PladError before any compute."""
    console = make_console()
    started = time.time()
    store = preflight.open_store(exp)
    whole = plan(exp)
    targets = whole.targets if only is None else [_named(whole, only)]
    todo = check(targets, store)
    preflight.check(exp, todo)
    if dry_run:
        console.print(preview.table(exp, targets, store))
        from plad_ray import cluster

        if cluster.named(exp.runtime) is not None:
            cluster.connect(exp.runtime)
            console.print(preview.placement(exp, todo, cluster.nodes(), cluster.largest()))
        return
    artifacts = run_stages(exp, targets, todo, store, console, verbose)
    if only is None:
        _finish(exp, whole, store, console, {s.artifact_name for s in todo}, time.time() - started)
    else:
        for name, artifact in artifacts.items():
            rows = artifact.manifest["rows"]["out"]
            console.print(f"{name}: {rows} rows, {artifact.path}", soft_wrap=True)


def make_console() -> Console:
    """Standard output; in a file or pipe lines are as long as they need to be."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=180)


def run_stages(
    exp: Experiment,
    targets: list[Stage],
    todo: list[Stage],
    store: Store,
    console: Console,
    verbose: bool,
    title: str = "",
    dashboard: bool = False,
) -> dict[str, Artifact]:
    """Run ``todo``, what ``targets`` need and is not there, and return the targets' artifacts by stage name.

    With a ``title`` there is a line for the whole beside those of the stages; ``dashboard`` as ``cluster.connect`` has it.
    """
    from plad_ray.progress import Board

    capacity = (float("inf"), float("inf"))
    count = len(closure(targets))
    if any(stage.ray for stage in todo):  # a run that reuses everything starts no Ray
        console.print(f"[dim]{len(todo)} of {count} stages to run; starting Ray …[/dim]")
        from plad_ray import cluster

        os.environ.setdefault("PYTHONPATH", str(Path.cwd()))  # workers import the user's own modules too
        cluster.connect(exp.runtime, dashboard)
        # Ray's own handler prints its C++ stack and leaves a local Ray behind; a node that is taken away is a Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        capacity = cluster.capacity()
        preflight.check_resources(exp, todo, cluster.largest())
    as_json = exp.runtime.logs == "json"
    shown = Console(stderr=True, highlight=False) if as_json else console
    with Board(shown, verbose, exp.name, {stage.title: stage.gpus for stage in todo}, as_json) as board:
        logging.getLogger("plad_ray").debug("capacity: %g CPUs, %g GPUs", *capacity)
        ended = _counting(board, title, count - len(todo), count) if title else board.ended
        return execute(targets, store, exp.runtime, capacity, board.reporter, board.say, ended, todo, exp.name)


def _counting(board: Board, title: str, done: int, total: int) -> Callable[[str, bool], None]:
    """Tell the board of each ended stage, and of how many have."""
    whole = board.reporter(title)
    whole(done, total, "stages")

    def ended(stage: str, succeeded: bool) -> None:
        nonlocal done
        board.ended(stage, succeeded)
        done += succeeded
        if done < total:
            whole(done, total, "stages")
        else:
            board.ended(title, True)

    return ended


def _named(whole: Plan, name: str) -> Stage:
    if name not in whole.stages:
        close = difflib.get_close_matches(name, list(whole.stages), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise PladError(f"no stage {name}; {hint}stages: {', '.join(whole.stages)}")
    return whole.stages[name]


def _finish(exp: Experiment, whole: Plan, store: Store, console: Console, ran: set[str], seconds: float) -> None:
    """The result a person can act on: table, seconds by stage, where the report and the students lie."""
    evaluation = whole.stages.get("evaluate")
    if evaluation is not None:
        from plad_ray.report.terminal import render

        console.print(render(store.read_json(evaluation.artifact(store).file("files/metrics.json"))))
    console.print(_times(whole, store, ran))
    console.print(f"{'all stages reused' if not ran else 'done'} in {seconds:.0f} s")
    for arm, (_, section) in exp.arms().items():
        trained = whole.report.inputs[f"train/{arm}"].artifact(store)
        kind = "model" if section.method == "full" else "adapter"
        console.print(f"{kind} {arm}: {escape(trained.path)}/files", soft_wrap=True)
    for path in _copy_report(exp, whole.report.artifact(store), store):
        console.print(f"report: {escape(path)}", soft_wrap=True, style="bold")


def _times(whole: Plan, store: Store, ran: set[str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, stage in whole.stages.items():
        artifact = stage.artifact(store)
        if artifact.finished:
            manifest: dict[str, Any] = artifact.manifest
            took = f"{manifest['seconds']:.1f} s" if artifact.name in ran else "reused"
            table.add_row(f"  {name}", took, f"{manifest['rows']['out']} rows", style="dim")
    return table


def _copy_report(exp: Experiment, report: Artifact, store: Store) -> list[str]:
    """Put the report where its name says what it is; returns the paths."""
    paths = []
    for ending in ("html", "md"):
        source, target = report.file(f"files/report.{ending}"), f"{exp.name}/report.{ending}"
        if not store.exists(source):
            continue
        if store.local:
            Path(store.path(target)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.path(source), store.path(target))
        else:
            store.write_bytes(target, store.read_bytes(source))
        paths.append(store.path(target))
    return paths
