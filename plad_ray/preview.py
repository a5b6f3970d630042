"""The plan as a table: what would run, what is reused, how many rows, what it keeps busy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.table import Table

from plad_ray.artifacts import Store
from plad_ray.config import SPLITS, Data, Experiment, Scorer
from plad_ray.placement import Node, asked_by, fits
from plad_ray.stages import Stage, closure, pending


@dataclass(frozen=True)
class Rows:
    """A row count: exact, an upper bound (rows may be dropped on the way), or unknown (None)."""

    count: int | None
    exact: bool = False

    def __str__(self) -> str:
        if self.count is None:
            return "?"
        return f"{self.count:,}" if self.exact else f"≤ {self.count:,}"


def state(stage: Stage, store: Store, todo: set[str]) -> str:
    """reused | resume | run | not needed."""
    artifact = stage.artifact(store)
    if artifact.finished:
        return "reused"
    if stage.artifact_name not in todo:
        return "not needed"
    left = [n for n in store.files(artifact.name) if n != "lease.json" and not n.startswith(".")]
    return "resume" if left else "run"


def table(exp: Experiment, targets: list[Stage], store: Store) -> Table:
    """A line for every stage of ``targets``, inputs first."""
    todo = {stage.artifact_name for stage in pending(targets, store)}
    lines = Table(box=None, pad_edge=False, title=f"{exp.name}: the plan", title_justify="left")
    for column in ("stage", "state", "rows", "workers", "CPUs", "GPUs"):
        lines.add_column(column, justify="right" if column in ("rows", "CPUs", "GPUs") else "left", no_wrap=True)
    lines.add_column("artifact", overflow="fold")
    counts = rows(exp, closure(targets), store)
    styles = {"reused": "green", "resume": "yellow", "run": "bold", "not needed": "dim"}
    for stage in closure(targets):
        what = state(stage, store, todo)
        cells = (str(counts[stage.title]), workers(exp, stage), _number(stage.cpus), _number(stage.gpus))
        lines.add_row(stage.title, f"[{styles[what]}]{what}[/]", *cells, stage.artifact_name)
    return lines


def placement(exp: Experiment, todo: list[Stage], now: list[Node], most: list[Node]) -> Table:
    """What the stages ``todo`` have up at one time, and whether the cluster has room for it, or may have (``most``)."""
    gpus = Counter[str]()
    for node in now:
        gpus[node.accelerator or "GPU"] += int(node.gpus)
    kinds = ", ".join(f"{n} {kind}" for kind, n in gpus.items() if n) or "no GPU"
    title = (
        f"\nplacement on {len(now)} node{'s' if len(now) > 1 else ''}: {sum(node.cpus for node in now):g} CPUs, {kinds}"
    )
    lines = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("for", "who", "asks", "has room for"):
        lines.add_column(column, no_wrap=True)
    wanted = asked_by(exp, todo)
    for fit, grown in zip(fits(now, wanted), fits(most, wanted), strict=True):
        cells = fit.stage, fit.actor.key, f"{fit.wanted} × {fit.actor}"
        if not fit.missing:
            lines.add_row(*cells, "[green]all[/]")
        elif not grown.missing:
            lines.add_row(*cells, f"[yellow]{fit.placed}; {fit.missing} pending until the autoscaler adds nodes[/]")
        else:
            lines.add_row(*cells, f"[red]{grown.placed}; {grown.missing} pending for ever: {grown.why}[/]")
    return lines


def workers(exp: Experiment, stage: Stage) -> str:
    """Engine replicas or training workers that the stage starts."""
    if "policies" in stage.config:
        roles = sorted({(p["role"], p["engine"]) for p in stage.config["policies"].values()}, reverse=True)
        return ", ".join(f"{role} {getattr(exp.runtime, role).replicas} × {engine}" for role, engine in roles)
    if "training" in stage.config:
        train = exp.runtime.train
        return f"{train.workers} × ZeRO-{train.zero_stage}"
    return ""


def rows(exp: Experiment, stages: list[Stage], store: Store) -> dict[str, Rows]:
    """Rows that each stage writes: from its manifest when it is finished, else as far as the configuration tells."""
    counts: dict[str, Rows] = {}
    for stage in stages:
        artifact = stage.artifact(store)
        if artifact.finished:
            counts[stage.title] = Rows(artifact.manifest["rows"]["out"], True)
        else:
            counts[stage.title] = _derived(exp, stage, split_sizes(stage.inputs.get("prompts", stage), store), counts)
    return counts


def split_sizes(prompts: Stage, store: Store) -> dict[str, int]:
    """Prompts by split: known once they are prepared, and for the demo from its configuration."""
    if "data" not in prompts.config:
        return {}
    if prompts.artifact(store).finished:
        return dict(prompts.artifact(store).manifest["metrics"]["splits"])
    data = Data.model_validate(prompts.config["data"])
    return {s: min(n, data.limit or n) for s, n in data.sizes.items()} if data.source == "demo" else {}


def _derived(exp: Experiment, stage: Stage, sizes: dict[str, int], counts: dict[str, Rows]) -> Rows:
    if "data" in stage.config:
        return Rows(sum(sizes[s] for s in SPLITS), True) if sizes else Rows(None)
    if "policies" in stage.config:
        return Rows(_requests(stage, sizes))
    if stage.name.startswith("sft-"):
        return _capped(Rows(sizes.get("train")), stage.config["training"]["limit"])
    if "pairs" in stage.config:
        return _capped(_table(stage, sizes), stage.config["pairs"]["limit"])
    if "training" in stage.config:
        table = counts[stage.inputs["pairs"].title] if "pairs" in stage.inputs else Rows(sizes.get("distill"))
        return _capped(table, stage.config["training"]["limit"])
    if "path" in stage.config:
        return Rows(None)  # as many as the file has
    if isinstance(stage.config.get("scorer"), dict):
        return _scores(stage, sizes, counts)
    if stage.name == "evaluate":
        evaluate = stage.config["evaluate"]
        prompts = _capped(Rows(sizes.get(evaluate["split"])), evaluate["limit"]).count
        policies = len(stage.config["arms"]) + 1 + (exp.teacher is not None)
        return Rows(None if prompts is None else prompts * len(evaluate["temperatures"]) * policies)
    return Rows(0, True)  # a report, a choice: files


def _requests(stage: Stage, sizes: dict[str, int]) -> int | None:
    if not sizes:
        return None
    draws = [draw for policy in stage.config["policies"].values() for draw in policy["draws"]]
    return sum(
        min(sizes.get(d["split"], 0), d["limit"] or sizes.get(d["split"], 0)) * len(d["temperatures"]) * d["samples"]
        for d in draws
    )


def _table(stage: Stage, sizes: dict[str, int]) -> Rows:
    """Rows of pairs or lists: one a prompt, and of rejection sampling one for every two texts kept."""
    prompts = sizes.get("distill")
    each = stage.config["pairs"]["rejection"]["keep"] // 2 if "rejection" in stage.config["pairs"] else 1
    return Rows(None if prompts is None else prompts * each)


def _scores(stage: Stage, sizes: dict[str, int], counts: dict[str, Rows]) -> Rows:
    """Every response, and the references of its splits where the scorer looks at those."""
    from plad_ray.reward.base import scores_references

    responses = stage.inputs["responses"]
    known = counts[responses.title].count
    if known is None or not sizes or "imported" in stage.inputs:
        return Rows(None)
    if not scores_references(Scorer.model_validate(stage.config["scorer"])):
        return Rows(known)
    splits = {d["split"] for p in responses.config["policies"].values() for d in p["draws"]}
    return Rows(known + sum(sizes.get(s, 0) for s in splits))


def _capped(rows: Rows, limit: int | None) -> Rows:
    if rows.count is None or limit is None:
        return Rows(rows.count)
    return Rows(min(rows.count, limit))


def _number(value: float) -> str:
    return f"{value:g}" if value else ""
