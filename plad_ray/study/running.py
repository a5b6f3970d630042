"""What ``plad study`` does: plan, run what is not finished, plan what that made possible, show the result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from plad_ray import preflight, preview
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment, StudySettings, load_study
from plad_ray.errors import told_of
from plad_ray.running import make_console, run_stages
from plad_ray.stages import Stage, check
from plad_ray.study import STUDIES, find
from plad_ray.study.base import Plan, Study
from plad_ray.study.stage import read
from plad_ray.study.terminal import render


def run(name: str, file: Path, overrides: tuple[str, ...], dry_run: bool, verbose: bool) -> None:
    """Run study ``name``; raises PladError before any compute for what can be known to fail."""
    study = find(name)
    exp, settings = load_study(name, study.settings, file, overrides)
    console, started = make_console(), time.time()
    store = preflight.open_store(exp)
    if dry_run:
        preview_plan(study, exp, settings, store, console)
        return
    made = finish(study, exp, settings, store, console, verbose)
    console.print(render(read(made)))
    console.print(f"done in {time.time() - started:.0f} s")
    for path in publish(made, store, f"{exp.name}/study-{name}"):
        console.print(f"study: {escape(path)}", soft_wrap=True, style="bold")


def list_studies() -> None:
    """Name, title and settings of every study."""
    console = make_console()
    for name in STUDIES:
        study = find(name)
        console.print(f"[bold]{name}[/bold]  {study.title}" + (f" (the paper's {study.paper})" if study.paper else ""))
        for key, field in study.settings.model_fields.items():
            console.print(f"    study.{key}: {escape(field.description or '')}", style="dim")


def finish(
    study: Study[Any], exp: Experiment, settings: StudySettings, store: Store, console: Console, verbose: bool = False
) -> Artifact:
    """Run until the study's artifact is there."""
    while True:
        plan = study.plan(exp, settings, store)
        targets = plan.targets if plan.last is None else [plan.last]
        todo = check(targets, store)
        check_models(plan, todo)
        if todo:
            run_stages(plan.exp, targets, todo, store, console, verbose, f"study {study.name}", plan.dashboard)
        if plan.last is not None:
            return plan.last.artifact(store)


def check_models(plan: Plan, todo: list[Stage]) -> None:
    """What the stages ``todo`` will use, in each experiment that has models of its own."""
    for where, exp in (plan.variants or {"": plan.exp}).items():
        with told_of(where):
            preflight.check(exp, todo)


def preview_plan(study: Study[Any], exp: Experiment, settings: StudySettings, store: Store, console: Console) -> None:
    plan = study.plan(exp, settings, store)
    targets = plan.targets if plan.last is None else [plan.last]
    check_models(plan, check(targets, store))
    console.print(preview.table(plan.exp, targets, store))
    if plan.last is None:
        console.print(f"then: {plan.then}")


def publish(made: Artifact, store: Store, folder: str) -> list[str]:
    """Put the study's files where their name says what they are; the paths of those that one opens first."""
    names = sorted(store.files(made.file("files")))
    for name in names:
        store.write_bytes(f"{folder}/{name}", store.read_bytes(made.file(f"files/{name}")))
    return [store.path(f"{folder}/{name}") for name in names if name.endswith((".html", ".md", ".yaml"))]
