"""``plad inspect``: what a run made, as a person reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow.dataset as pads
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment
from plad_ray.errors import PladError
from plad_ray.pipeline import Plan, plan
from plad_ray.preview import state
from plad_ray.report.text import visible
from plad_ray.running import make_console
from plad_ray.stages import Stage, pending

KINDS = ("prompts", "tokens", "pairs", "responses", "artifacts", "lineage")


def show(what: str, exp: Experiment, n: int, of: str = "") -> None:
    """Print ``what`` (one of KINDS, a stage or an artifact). Raises PladError when it is not there."""
    console = make_console()
    whole, store = plan(exp), Store(exp.runtime.store)
    if what == "artifacts":
        console.print(artifacts(whole, store))
    elif what == "lineage":
        console.print(lineage(_stage(whole, of or "report"), store))
    elif what == "tokens":
        tokens(exp, whole, store, n, of, console)
    elif what in ("prompts", "pairs", "responses"):
        stage = _stage(whole, of) if of else _table(whole) if what == "pairs" else _stage(whole, what)
        artifact = _finished(stage, store)
        _print_rows(artifact, islice(artifact.rows(), n), console)
    else:
        _artifact(_stage(whole, what), store, n, console)


def artifacts(whole: Plan, store: Store) -> Table:
    """A line for every artifact of the experiment."""
    table = Table(box=None, pad_edge=False)
    for column in ("artifact", "state", "rows", "dropped", "age", "size"):
        table.add_column(column, justify="left" if column in ("artifact", "state", "dropped") else "right")
    todo = {stage.artifact_name for stage in pending(whole.targets, store)}
    for stage in whole.stages.values():
        artifact, what = stage.artifact(store), state(stage, store, todo)
        size = sum(store.files(artifact.name).values())
        cells = ["", "", ""]
        if artifact.finished:
            what, manifest = "finished", artifact.manifest
            rows = manifest["rows"]
            dropped = ", ".join(f"{reason} {count}" for reason, count in rows["dropped"].items())
            cells = [f"{rows['out']:,}", dropped, _age(manifest)]
        table.add_row(artifact.name, what, *cells, _bytes(size) if size else "")
    return table


def lineage(stage: Stage, store: Store) -> Tree:
    """What ``stage`` was made from, down to the prompts; content hashes are verified on the way."""
    shown: set[str] = set()

    def branch(stage: Stage, role: str) -> Tree:
        artifact = stage.artifact(store)
        label = Text(f"{role + ': ' if role else ''}{artifact.name}  ")
        label.append(*_verified(artifact))
        tree = Tree(label)
        if artifact.name in shown:
            tree.label = Text(f"{label.plain.rstrip()}, see above", style="dim")
            return tree
        shown.add(artifact.name)
        for key, parent in stage.inputs.items():
            tree.children.append(branch(parent, key))
        return tree

    return branch(stage, "")


def tokens(exp: Experiment, whole: Plan, store: Store, n: int, of: str, console: Console) -> None:
    """Ids, pieces and loss mask of the first training rows, exactly as the trainer makes them."""
    from plad_ray.models.load import load_tokenizer
    from plad_ray.models.policy import resolve
    from plad_ray.train.rows import rows_of
    from plad_ray.train.worker import objective_of, sections

    stage = _stage(whole, of or "distill")
    if "training" not in stage.config:
        trained = [s.name for s in whole.stages.values() if "training" in s.config]
        raise PladError(f"stage {stage.name} trains nothing; --stage takes one of {', '.join(trained)}")
    role = exp.teacher if stage.name == "sft-teacher" else exp.student
    assert role is not None
    tuned = f"sft-{'teacher' if stage.name == 'sft-teacher' else 'student'}"
    bases = [_finished(whole.stages[tuned], store)] if tuned in whole.stages else []
    tokenizer = load_tokenizer(resolve(role.model, *bases))
    _, training = sections(stage.config)
    objective = objective_of(training)
    split = "train" if stage.config["kind"] == "sft" else "distill"
    if objective.trains_on == "references":
        prompts = _finished(stage.inputs["prompts"], store).dataset()
        table = prompts.head(n, filter=(pads.field("split") == split) & pads.field("reference").is_valid())
    else:
        table = _finished(stage.inputs["pairs"], store).dataset().head(n)
    rows = rows_of(table, tokenizer, role.model, objective)
    names = {"references": ["reference"], "lists": []}.get(objective.trains_on, ["chosen", "rejected"])
    for index, row in enumerate(rows):
        for k, response in enumerate(row.candidates):
            name = names[k] if k < len(names) else f"candidate {k}"
            console.print(
                f"[bold]row {index} {name}[/bold]  ({len(row.prompt)} prompt + {len(response)} response tokens)"
            )
            console.print(_token_table(tokenizer, list(row.prompt), list(response)))


def _token_table(tokenizer: Any, prompt: list[int], response: list[int]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("position", "id", "token", "text", "loss"):
        table.add_column(column, justify="right" if column in ("position", "id") else "left")
    special = set(tokenizer.all_special_ids)
    for position, (token, learned) in enumerate([*((t, 0) for t in prompt), *((t, 1) for t in response)]):
        piece = tokenizer.convert_ids_to_tokens(int(token))
        text = repr(tokenizer.decode([int(token)]))
        style = "magenta" if int(token) in special else "green" if learned else "dim"
        cells = [str(position), str(int(token)), str(piece), text, str(learned)]
        table.add_row(*(Text(visible(cell), style=style) for cell in cells))
    return table


def _artifact(stage: Stage, store: Store, n: int, console: Console) -> None:
    """Manifest, verified hashes, files, and the first rows of one artifact."""
    artifact = _finished(stage, store)
    artifact.check(hashes=True)
    manifest = artifact.manifest
    table = Table.grid(padding=(0, 2))
    rows = manifest["rows"]
    told = {
        "path": artifact.path,
        "content": f"{len(manifest['files'])} files verified, {_bytes(sum(store.files(artifact.name).values()))}",
        "made": f"{manifest['started']} in {manifest['seconds']} s, commit {manifest['git_commit']}",
        "rows": f"{rows['in']} in, {rows['out']} out, dropped {rows['dropped'] or 'none'}",
        "inputs": ", ".join(f"{key} = {name}" for key, name in manifest["inputs"].items()) or "none",
        "metrics": str(manifest["metrics"]),
    }
    for key, value in told.items():
        table.add_row(Text(key, style="bold"), Text(visible(value)))
    console.print(table)
    folders = {name.partition("/")[0] for name in manifest["files"]}
    if "rows" in folders:
        _print_rows(artifact, islice(artifact.rows(), n), console)
    for name, file in manifest["files"].items():
        if not name.startswith("rows/"):
            console.print(f"  {name}  {_bytes(file['bytes'])}", style="dim", soft_wrap=True)


def _print_rows(artifact: Artifact, rows: Iterator[dict[str, Any]], console: Console) -> None:
    console.print(f"[dim]{artifact.name}, {artifact.dataset().count_rows():,} rows[/dim]")
    for row in rows:
        table = Table.grid(padding=(0, 2))
        for key, value in row.items():
            if isinstance(value, list):
                value = "\n".join(map(str, value))
            if value is not None:
                table.add_row(Text(key, style="bold"), Text(visible(str(value))))
        console.print(table)
        console.print("")


def _stage(whole: Plan, name: str) -> Stage:
    """The stage called ``name``, or whose artifact is."""
    for stage in whole.stages.values():
        if name in (stage.name, stage.artifact_name):
            return stage
    raise PladError(
        f"{name}: neither one of {', '.join(KINDS)} nor a stage or artifact of this experiment; stages: "
        f"{', '.join(whole.stages)}"
    )


def _table(whole: Plan) -> Stage:
    """The first table of training rows, the main arm's where it has one: pairs, lists or pairs of rejection sampling."""
    for stage in whole.stages.values():
        if "pairs" in stage.config or stage.name == "pairs":
            return stage
    raise PladError("there are no pairs: every arm trains on the references of the prompts; see `plad inspect prompts`")


def _finished(stage: Stage, store: Store) -> Artifact:
    artifact = stage.artifact(store)
    if not artifact.finished:
        raise PladError(f"{artifact.path} is not finished; make it with `plad stage {stage.name} EXP.yaml`")
    return artifact


def _verified(artifact: Artifact) -> tuple[str, str]:
    if not artifact.finished:
        return ("not made", "dim")
    try:
        artifact.check(hashes=True)
    except PladError:
        return ("CORRUPTED", "red")
    return (f"verified, {artifact.manifest['rows']['out']:,} rows", "green")


def _age(manifest: dict[str, Any]) -> str:
    import calendar

    made = calendar.timegm(time.strptime(manifest["started"], "%Y-%m-%dT%H:%M:%SZ")) + manifest["seconds"]
    minutes = max(0.0, time.time() - made) / 60
    return (
        f"{minutes:.0f} min"
        if minutes < 120
        else f"{minutes / 60:.0f} h"
        if minutes < 2880
        else f"{minutes / 1440:.0f} d"
    )


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
