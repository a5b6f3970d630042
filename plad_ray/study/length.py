"""Does the gain depend on how much is said (PLaD, Figure 3)? Win-rate gain over the initial student by words."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from plad_ray.artifacts import Store
from plad_ray.config import Experiment, StudySettings
from plad_ray.config.base import Count
from plad_ray.evaluate.table import INITIAL
from plad_ray.stages import Job
from plad_ray.study import runs
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import evaluated, needs_scorer
from plad_ray.study.pieces import ARM, P_HOLM, TEMPERATURE, how, points
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Table
from plad_ray.study.runs import Runs, Values


class Settings(StudySettings):
    width: Count = Field(
        10, description="words of an interval: (0, 10], (10, 20], …; texts without a word are in the first"
    )
    minimum: Count = Field(20, description="prompts without which an interval is not shown")


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    needs_scorer(exp, STUDY.name)
    return evaluated(STUDY, exp, exp.arms(), settings)


def result(job: Job) -> Findings:
    found, settings = Runs.of(job), Settings.model_validate(job.config["settings"])
    arms, temperatures = job.config["facts"]["arms"], found.evaluate.temperatures
    wanted = {}
    for arm in arms:
        for t in temperatures:
            gain, places = found.difference(arm, INITIAL, t), _intervals(found, arm, t, settings.width)
            for place in sorted({int(v) for values in places for v in values if not np.isnan(v)}):
                wanted[arm, t, place] = within(gain, places, place)
    enough = {key: v for key, v in wanted.items() if sum((~np.isnan(of_run)).sum() for of_run in v) >= settings.minimum}
    found = found.for_tests(len(enough))
    gains = {key: e for key, e in runs.corrected(found.estimates(enough)).items() if e is not None}
    names = {place: f"({place * settings.width}, {(place + 1) * settings.width}]" for *_, place in gains}
    rows: list[tuple[Cell, ...]] = [
        (arm, t, names[place], e.n, e, e.p)
        for (arm, t, place), e in sorted(gains.items(), key=lambda i: _order(i[0], arms))
    ]
    table = Table(
        key="intervals",
        title=f"Gain over the initial student by length, points of {found.quality}",
        note=f"Length: words of the arm's own text. Intervals of fewer than {settings.minimum} prompts are left out; p "
        f"Holm-corrected over the {len(rows)} rows. {found.how}",
        columns=(
            ARM,
            TEMPERATURE,
            Column(key="interval", label="words", unit="text"),
            Column(key="prompts", label="prompts", unit="count"),
            Column(key="gain", label="gain", unit="points"),
            P_HOLM,
        ),
        rows=tuple(rows),
    )
    shown = sorted(names)
    figures = tuple(
        Figure(
            key=f"length-{t:g}".replace(".", "_"),
            title=f"{how(t)}: gain over the initial student by length",
            note=found.how,
            x=Axis(label="words", categories=tuple(names[place] for place in shown)),
            y=Axis(label=f"gain, points of {found.quality}", unit="points"),
            series=tuple(
                points(arm, [(shown.index(p), e) for (a, at, p), e in gains.items() if (a, at) == (arm, t)])
                for arm in arms
            ),
        )
        for t in temperatures
    )
    return Findings(
        summary=tuple(_sentence(arm, t, gains, names) for arm in arms for t in temperatures),
        tables=(table,),
        figures=figures,
        confidence=found.evaluate.confidence,
    )


def _intervals(found: Runs, arm: str, temperature: float, width: int) -> Values:
    """Number of the interval that each text's length lies in."""
    return [np.maximum(0, np.ceil(words / width) - 1) for words in found.measure(arm, temperature, "words")]


def within(gain: Values, places: Values, place: int) -> Values:
    return [np.where(at == place, values, np.nan) for values, at in zip(gain, places, strict=True)]


def _order(key: tuple[str, float, int], arms: list[str]) -> tuple[float, int, int]:
    arm, temperature, place = key
    return -temperature, arms.index(arm), place


def _sentence(arm: str, t: float, gains: dict[tuple[str, float, int], runs.Interval], names: dict[int, str]) -> str:
    here = [f"{names[p]} {100 * e.mean:+.1f}" for (a, at, p), e in sorted(gains.items()) if (a, at) == (arm, t)]
    return f"{how(t)}, {arm}: gain in points by words: {', '.join(here) or 'no interval has enough prompts'}."


STUDY = Study("length", "Gain by length of the text", Settings, plan, result, "Figure 3")
