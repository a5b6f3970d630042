"""The same arms in several settings, tasks or pairs of models: each an experiment, all in one graph and on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from plad_ray.config import Experiment, StudySettings
from plad_ray.config.loading import vary
from plad_ray.errors import PladError
from plad_ray.stages import Job
from plad_ray.study.arms import MAIN
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import last_stage, of_setting
from plad_ray.study.pieces import ARM, LABELS, TEMPERATURE, verdict
from plad_ray.study.result import Cell, Column, Figure, Table
from plad_ray.study.runs import Estimates, Runs

Shown = TypeVar("Shown", Table, Figure)
#: what is one for all settings, and where it is given
COMMON = {
    "name": "it is the experiment's with that of the setting",
    "seed": "give study.seeds",
    "runtime": "one runtime runs them all: give it in the experiment",
    "merge": "no study merges",
}


def where(name: str) -> str:
    return f"study.across.{name}"


def variants(exp: Experiment, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Experiment]:
    """``exp`` in each setting, validated as any experiment is. Raises PladError naming ``study.across.<name>``."""
    found: dict[str, Experiment] = {}
    for name, changes in settings.items():
        for key in changes:
            if why := COMMON.get(key.partition(".")[0]):
                raise PladError(f"{where(name)}: {key}: settings do not differ in it; {why}")
        variant = vary(exp, {**changes, "name": f"{exp.name}-{name}"}, where(name))
        _check_same(exp, variant, where(name))
        for other, known in found.items():
            if known == variant.model_copy(update={"name": known.name}):
                raise PladError(f"{where(name)}: the same experiment as {other}; leave one of them out")
        found[name] = variant
    return found


def _check_same(exp: Experiment, variant: Experiment, of: str) -> None:
    arms, own = list(exp.arms()), list(variant.arms())
    if set(own) != set(arms):
        raise PladError(f"{of}: compare: the arms are {', '.join(own)}, and in the experiment {', '.join(arms)}")
    confidence = exp.evaluate.confidence
    if variant.evaluate.confidence != confidence:
        raise PladError(f"{of}: evaluate.confidence: one page has one, and the experiment's is {confidence:g}")


def together(study: Study[Any], exp: Experiment, settings: StudySettings, plans: Mapping[str, Plan]) -> Plan:
    """One graph of the ``plans`` that study ``study`` makes of each setting. Those whose search is not finished are searched
    while the others are trained already.

    The last stage gets ``<setting>/<input>`` of each, and its configuration as the fact ``across``.
    """
    own = {where(name): plan.exp for name, plan in plans.items()}
    alone = {name: plan.last for name, plan in plans.items() if plan.last is not None}
    inputs = {f"{n}/{key}": of_setting(s, n) for n, last in alone.items() for key, s in last.inputs.items()}
    if searched := {name: plan for name, plan in plans.items() if plan.last is None}:
        targets = [of_setting(stage, name) for name, plan in searched.items() for stage in plan.targets]
        then = next(iter(searched.values())).then
        return Plan(exp, [*targets, *inputs.values()], then=f"in each setting, {then}", variants=own)
    last = last_stage(study, exp, settings, inputs, {"across": {name: stage.config for name, stage in alone.items()}})
    return Plan(exp, [last], last, variants=own)


def jobs(job: Job) -> dict[str, Job]:
    """By setting, the job that its own study would be; empty where there is one setting only."""
    configs: dict[str, dict[str, Any]] = job.config["facts"].get("across", {})
    inputs = {
        name: {key.removeprefix(f"{name}/"): a for key, a in job.inputs.items() if key.startswith(f"{name}/")}
        for name in configs
    }
    return {name: replace(job, config=config, inputs=inputs[name]) for name, config in configs.items()}


def family(contrasted: Mapping[str, Estimates]) -> str:
    return f"the {sum(map(len, contrasted.values()))} differences of all settings"


def overview(
    several: Mapping[str, Runs],
    rates: Mapping[str, Estimates],
    contrasted: Mapping[str, Estimates],
    confidence: float,
) -> Table:
    """Win rates of every policy in every setting; the main arm is marked where it is told apart above all others."""
    qualities = list(dict.fromkeys(found.quality for found in several.values()))
    label = {name: name if len(qualities) == 1 else f"{name}: {found.quality}" for name, found in several.items()}
    every = list(dict.fromkeys(place for of_one in rates.values() for place in of_one))
    temperatures = dict.fromkeys(t for found in several.values() for t in found.evaluate.temperatures)
    best = {
        t: ", ".join(n for n, of_one in contrasted.items() if _is_best(of_one, t, confidence)) for t in temperatures
    }
    rows: list[tuple[Cell, ...]] = [
        (LABELS.get(p, p), t, *(of_one.get((p, t)) for of_one in rates.values()), best[t] if p == MAIN else "")
        for temperature in temperatures
        for p, t in every
        if t == temperature
    ]
    made = " ".join(dict.fromkeys(found.how for found in several.values()))
    return Table(
        key="overview",
        title=f"All settings: {qualities[0] if len(qualities) == 1 else 'win rates'}",
        note=f"Best in: where {MAIN} is above every other arm and the initial student, p at most {1 - confidence:g} against "
        f"each, Holm-corrected over {family(contrasted)}. Others are compared with {MAIN} only, and none is marked. {made}",
        columns=(
            ARM,
            TEMPERATURE,
            *(Column(key=f"win-{name}", label=label[name], unit="percent") for name in several),
            Column(key="best", label="best in", unit="text"),
        ),
        rows=tuple(rows),
    )


def _is_best(contrasted: Estimates, temperature: float, confidence: float) -> bool:
    found = [e for (_, t), e in contrasted.items() if t == temperature]
    return bool(found) and all(e is not None and verdict(e, confidence) == "above" for e in found)


def of(name: str, shown: Shown) -> Shown:
    """A table or figure of the setting ``name``, told apart from those of the others."""
    return shown.model_copy(update={"key": f"{name}-{shown.key}", "title": f"{name}: {shown.title}"})
