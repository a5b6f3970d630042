"""What each part of the recipe is worth: variants of the main arm, each searched anew where asked, against the recipe."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from plad_ray.artifacts import Store
from plad_ray.config import Experiment
from plad_ray.config.pairs import NAME
from plad_ray.stages import Job
from plad_ray.study import compare, searched
from plad_ray.study.arms import MAIN, vary_arm
from plad_ray.study.base import Plan, Study
from plad_ray.study.pieces import DIFFERENCE, P_HOLM, TEMPERATURE, how, interval, told_apart
from plad_ray.study.result import Cell, Column, Findings, Table
from plad_ray.study.runs import Runs
from plad_ray.study.searched import Searched


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
    wanted = {(v, t): found.difference(v, MAIN, t) for t in found.evaluate.temperatures for v in variants}
    changes, made = found.family(wanted)
    rows: list[tuple[Cell, ...]] = [
        (v, ", ".join(f"{key} = {value}" for key, value in variants[v].items()), t, e, e.p if e else None)
        for (v, t), e in changes.items()
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
    ranked = sorted(((e, v, t) for (v, t), e in changes.items() if e is not None), key=lambda item: item[0].mean)
    return Findings(
        summary=tuple(
            f"{v} ({how(t).lower()}): {interval(e)} points{told_apart(e, found.evaluate.confidence)}."
            for e, v, t in ranked
        ),
        tables=(table, compare.table(found, arms), *compare.further(job, found, arms)),
        figures=(compare.figure(found, compare.win_rates(found, arms)),),
        confidence=found.evaluate.confidence,
    )


STUDY = Study("ablation", "What each part of the recipe is worth", Settings, plan, result)
