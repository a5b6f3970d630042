"""What each part of the recipe is worth: variants of the main arm, each searched anew where asked, against the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import yaml
from pydantic import Field, field_validator

from plad_ray.artifacts import Store
from plad_ray.config import Experiment
from plad_ray.config.pairs import NAME
from plad_ray.stages import Job
from plad_ray.study import compare, searched
from plad_ray.study.arms import MAIN, vary_arm
from plad_ray.study.base import Plan, Study
from plad_ray.study.pieces import DIFFERENCE, P_HOLM, TEMPERATURE, how, interval, points, told_apart
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Line, Table
from plad_ray.study.runs import Runs
from plad_ray.study.searched import Searched

#: by variant and temperature
Differences = dict[tuple[str, float], Interval]


class Settings(Searched):
    variants: dict[str, dict[str, Any]] = Field(
        description="by name, what changes in the main arm: keys such as distill.objective.margin and their values"
    )

    @field_validator("variants")
    @classmethod
    def _names(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        wrong = [name for name in variants if not re.fullmatch(NAME, name) or name == MAIN]
        if wrong or not variants:
            raise ValueError(
                f"variants are one or more, named by letters, digits, - and _, none {MAIN} (given: {wrong})"
            )
        return variants


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    """The experiment's other arms are left out: they are no variants of its recipe."""
    recipe = (exp.pairs, exp.distill)
    varied = {name: vary_arm(recipe, changes, f"study.variants.{name}") for name, changes in settings.variants.items()}
    return searched.evaluated(STUDY, exp, {MAIN: recipe, **varied}, settings, store)


def result(job: Job) -> Findings:
    found, arms = Runs.of(job), job.config["facts"]["arms"]
    variants: dict[str, dict[str, Any]] = job.config["settings"]["variants"]
    temperatures = found.evaluate.temperatures
    wanted = {(v, t): found.difference(v, MAIN, t) for t in temperatures for v in variants}
    corrected, made = found.family(wanted)
    differences = {key: e for key, e in corrected.items() if e is not None}
    rows: list[tuple[Cell, ...]] = [
        (v, written(variants[v]), t, differences.get((v, t)), e.p if e else None) for (v, t), e in corrected.items()
    ]
    table = Table(
        key="variants",
        title=f"Variants less the recipe, points of {found.quality}",
        note=f"Paired by prompt; p two-sided, Holm-corrected over the {len(rows)} rows. {made}",
        columns=(
            Column(key="variant", label="variant", unit="text"),
            Column(key="changes", label="what changes", unit="text"),
            TEMPERATURE,
            DIFFERENCE,
            P_HOLM,
        ),
        rows=tuple(rows),
    )
    return Findings(
        summary=tuple(sentences(differences, found.evaluate.confidence)),
        tables=(table, compare.table(found, arms), *compare.further(job, found, arms)),
        figures=(figure(found, differences, made), compare.figure(found, compare.win_rates(found, arms))),
        confidence=found.evaluate.confidence,
    )


def written(changes: dict[str, Any]) -> str:
    """As in the study's file, in one line."""
    return yaml.safe_dump(changes, default_flow_style=True, sort_keys=False, width=float("inf")).strip()[1:-1]


def ranked(differences: Differences) -> list[str]:
    """Variants, by the mean of their differences over the temperatures; the best first."""
    by_variant: dict[str, list[float]] = {}
    for (v, _), e in differences.items():
        by_variant.setdefault(v, []).append(e.mean)
    return sorted(by_variant, key=lambda v: -fmean(by_variant[v]))


def sentences(differences: Differences, confidence: float) -> Iterator[str]:
    """One of each variant that is told apart from the recipe, and one of all others."""
    alike = []
    for variant in ranked(differences):
        at = {t: e for (v, t), e in differences.items() if v == variant}
        if all(told_apart(e, confidence) for e in at.values()):
            alike.append(variant)
            continue
        said = (f"{how(t).lower()} {interval(e)} points{told_apart(e, confidence)}" for t, e in at.items())
        yield f"{variant}: {'; '.join(said)}."
    if alike:
        yield f"Not told apart from the recipe: {', '.join(alike)}."


def figure(found: Runs, differences: Differences, made: str) -> Figure:
    order = ranked(differences)
    return Figure(
        key="variants",
        title="Variants less the recipe",
        note=made,
        x=Axis(label="", categories=tuple(order)),
        y=Axis(label=f"{found.quality}, difference", unit="points"),
        series=tuple(
            points(how(t), [(order.index(v), e) for (v, at), e in differences.items() if at == t], "points")
            for t in found.evaluate.temperatures
        ),
        lines=(Line(label="the recipe", y=0.0),),
    )


STUDY = Study("ablation", "What each part of the recipe is worth", Settings, plan, result, version=4)
