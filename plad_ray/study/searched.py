"""Studies whose arms are searched first, each with the same budget on dev (``search``), and frozen before test is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from plad_ray.artifacts import Store
from plad_ray.config import Experiment, StudySettings
from plad_ray.config.search import Search
from plad_ray.reward.base import check_wins
from plad_ray.stages import Job, Stage
from plad_ray.study import graph, search
from plad_ray.study.arms import Sections, vary_arm
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import Seeds, needs_one_split, needs_scorer
from plad_ray.study.pieces import ARM
from plad_ray.study.result import Cell, Column, Table


class Searched(StudySettings):
    search: Search | None = Field(None, description="what is searched on dev for every arm; null: the file's settings")


@dataclass(frozen=True)
class Settled:
    """Arms as they are to be trained, and what the study's last stage is told of the search."""

    arms: Mapping[str, Sections]
    inputs: dict[str, Stage] = field(default_factory=dict)


def settle(
    study: Study[Any], exp: Experiment, arms: Mapping[str, Sections], settings: Searched, store: Store
) -> Settled | Plan:
    """``arms`` as the search found them best; where there is one and it is not finished, the plan that finishes it."""
    scorer = needs_scorer(exp, study.name)
    if settings.search is None:
        return Settled(arms)
    check_wins(scorer, f"study.search of {study.name}")
    seeds = Seeds.of(exp, settings).seeds
    needs_one_split(exp, study.name, (*seeds, *(settings.search.seeds or ())))
    whole, searched = search.plan(exp, settings.search, dict(arms), seeds)
    if not searched.artifact(store).finished:
        then = "each arm is trained with what the search chose, and evaluated on each seed"
        return Plan(whole, [searched], then=then)
    chosen = search.choice(searched.artifact(store))
    frozen = {arm: vary_arm(sections, chosen[arm]["changes"], f"arm {arm}") for arm, sections in arms.items()}
    return Settled(frozen, {"search": searched})


def evaluated(
    study: Study[Any],
    exp: Experiment,
    arms: Mapping[str, Sections],
    settings: Searched,
    store: Store,
    facts: Mapping[str, Any] | None = None,
    reads: tuple[str, ...] = (),
) -> Plan:
    """``graph.evaluated`` of the arms as they are settled."""
    settled = settle(study, exp, arms, settings, store)
    if isinstance(settled, Plan):
        return settled
    return graph.evaluated(study, exp, settled.arms, settings, facts, settled.inputs, reads)


def tables(job: Job) -> list[Table]:
    """What was searched, where something was."""
    return [table(search.choice(job.inputs["search"]))] if "search" in job.inputs else []


def cautions(job: Job) -> list[str]:
    return edges(search.choice(job.inputs["search"])) if "search" in job.inputs else []


def table(chosen: dict[str, Any]) -> Table:
    keys = list(dict.fromkeys(key for found in chosen.values() for key in found["changes"]))
    rows: list[tuple[Cell, ...]] = [
        (arm, len(c["trials"]), *(_text(c["changes"].get(key)) for key in keys), c["win_rate"])
        for arm, c in chosen.items()
    ]
    return Table(
        key="search",
        title="What the search on dev chose",
        note="Win rate against the references on dev, mean over the seeds of the search and all temperatures.",
        columns=(
            ARM,
            Column(key="trials", label="trials", unit="count"),
            *(Column(key=key, label=key, unit="text") for key in keys),
            Column(key="win_rate", label="dev win rate", unit="percent"),
        ),
        rows=tuple(rows),
    )


def edges(chosen: dict[str, Any]) -> list[str]:
    """Where a search ended at the largest or smallest of three numbers or more."""
    found: dict[str, list[str]] = {}
    for arm, choice in chosen.items():
        for key, value in choice["changes"].items():
            values = {trial["changes"].get(key) for trial in choice["trials"].values()}
            tried = sorted(v for v in values if isinstance(v, int | float))
            if len(tried) > 2 and value in (tried[0], tried[-1]):
                end = "largest" if value == tried[-1] else "smallest"
                found.setdefault(f"the {end} {key} that was tried, {value:g}", []).append(arm)
    return [f"The search chose {what}, for {', '.join(arms)}: the best may lie beyond." for what, arms in found.items()]


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
