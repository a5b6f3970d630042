"""Is more to be gained from a teacher that is further ahead (PLaD, §5.2)? The same student under teachers of several
strengths: gain after distillation against the teacher–student win rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from plad_ray import pipeline
from plad_ray.artifacts import Store
from plad_ray.config import Experiment, StudySettings
from plad_ray.config.loading import vary
from plad_ray.errors import PladError
from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.stages import Job, Stage
from plad_ray.study import runs
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import EVALUATION, Seeds, last_stage, needs_scorer, of_run
from plad_ray.study.pieces import ARM, P_HOLM, TEMPERATURE, band, how, interval, points
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Line, Table
from plad_ray.study.runs import Runs
from plad_ray.study.statistics import line_fit

#: the slope is told for so much more of a teacher–student win rate
STEP = 0.1
CURVE_POINTS = 2


class Settings(StudySettings):
    teachers: dict[str, dict[str, Any]] = Field(
        description="by name, what changes in the teacher: keys such as teacher.sft.limit and their values; {}: nothing"
    )

    @field_validator("teachers")
    @classmethod
    def _enough(cls, teachers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if len(teachers) < 3:
            raise ValueError(f"a trend needs three teachers or more (given: {', '.join(teachers) or 'none'})")
        return teachers


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    needs_scorer(exp, STUDY.name)
    if exp.teacher is None:
        raise PladError("study teacher varies the teacher, and the experiment has none: give `teacher`")
    taught = {name: with_teacher(exp, name, changes) for name, changes in settings.teachers.items()}
    inputs: dict[str, Stage] = {}
    for name, variant in taught.items():
        for seed, seeded in Seeds.of(variant, settings):
            stage = pipeline.plan(seeded).stages["evaluate"]
            inputs[f"{EVALUATION}{name}/{seed}"] = of_run(stage, f"{name}, seed {seed}")
    last = last_stage(STUDY, exp, settings, inputs, {"arms": list(exp.arms())})
    return Plan(exp, [last], last, variants={f"study.teachers.{name}": variant for name, variant in taught.items()})


def with_teacher(exp: Experiment, name: str, changes: dict[str, Any]) -> Experiment:
    """``exp`` with a changed teacher, validated as any experiment is."""
    where = f"study.teachers.{name}"
    for key in changes:
        if not key.startswith("teacher."):
            raise PladError(f"{where}: {key}: the experiments differ in teacher.… only")
    return vary(exp, changes, where)


@dataclass(frozen=True)
class Measured:
    """Of every teacher, ``ahead`` by (teacher, temperature): how often its text beats the initial student's; ``gains`` by
    (teacher, arm, temperature). ``resampled``: both on the same resamples of prompts, [R] each."""

    found: dict[str, Runs]
    arms: list[str]
    ahead: dict[tuple[str, float], Interval]
    gains: dict[tuple[str, str, float], Interval]
    resampled: dict[tuple[Any, ...], np.ndarray]

    @property
    def runs(self) -> Runs:
        return next(iter(self.found.values()))

    @classmethod
    def of(cls, job: Job) -> Measured:
        teachers, arms = job.config["settings"]["teachers"], job.config["facts"]["arms"]
        found = {name: Runs.of(job, f"{EVALUATION}{name}/") for name in teachers}
        tests = sum(len(arms) * len(r.evaluate.temperatures) for r in found.values())
        found = {name: r.for_tests(tests) for name, r in found.items()}
        first = next(iter(found.values()))
        assert all(f.ids == g.ids for r in found.values() for f, g in zip(r.frames, first.frames, strict=True))
        temperatures = first.evaluate.temperatures
        won = {(n, t): r.won_against(TEACHER, INITIAL, t) for t in temperatures for n, r in found.items()}
        more = {
            (n, arm, t): r.difference(arm, INITIAL, t) for t in temperatures for arm in arms for n, r in found.items()
        }
        gains = runs.corrected(first.estimates(more))
        return cls(
            found,
            arms,
            {key: e for key, e in first.estimates(won, 0.5).items() if e is not None},
            {key: e for key, e in gains.items() if e is not None},
            first.resampled({**won, **more}),
        )

    def places(self, arm: str, temperature: float) -> list[tuple[str, Interval, Interval]]:
        """Teacher, how far it is ahead, and what ``arm`` gains under it; the furthest behind first."""
        known = [n for n in self.found if (n, temperature) in self.ahead and (n, arm, temperature) in self.gains]
        return sorted(
            ((n, self.ahead[n, temperature], self.gains[n, arm, temperature]) for n in known), key=lambda p: p[1].mean
        )


class Trend:
    """gain = a + b · win rate through an arm's teachers, and their correlation, on the data and on each resample."""

    def __init__(self, measured: Measured, arm: str, temperature: float):
        self.arm, self.temperature, self.measured = arm, temperature, measured
        self.places = measured.places(arm, temperature)
        x_K1, y_K1 = (np.array([[e.mean] for e in column]) for column in list(zip(*self.places, strict=True))[1:])
        x_KR = np.stack([measured.resampled[name, temperature] for name, *_ in self.places])
        y_KR = np.stack([measured.resampled[name, arm, temperature] for name, *_ in self.places])
        (self.a, self.b, self.r), self.resampled = (float(v[0]) for v in line_fit(x_K1, y_K1)), line_fit(x_KR, y_KR)

    @property
    def slope(self) -> Interval:
        """Share gained for ``STEP`` more of the win rate."""
        return self.measured.runs.interval(STEP * self.b, STEP * self.resampled[1])

    @property
    def correlation(self) -> Interval:
        return self.measured.runs.interval(self.r, self.resampled[2])

    def sentence(self) -> str:
        ahead = [e.mean for _, e, _ in self.places]
        r, (best, at, gain) = self.correlation, max(self.places, key=lambda p: p[2].mean)
        return (
            f"{how(self.temperature)}, {self.arm}: over {len(ahead)} teachers, whose text beats the initial student's in "
            f"{100 * ahead[0]:.1f} to {100 * ahead[-1]:.1f} %, {100 * STEP:g} points more of that change the gain by "
            f"{interval(self.slope)} points (r {r.mean:+.2f} [{r.low:+.2f}, {r.high:+.2f}]); the largest gain has {best} "
            f"(ahead in {100 * at.mean:.1f} %): {interval(gain)}."
        )


def result(job: Job) -> Findings:
    measured = Measured.of(job)
    temperatures = measured.runs.evaluate.temperatures
    trends = [Trend(measured, arm, t) for t in temperatures for arm in measured.arms]
    return Findings(
        summary=tuple(trend.sentence() for trend in trends),
        tables=(by_teacher(measured), fitted(measured, trends)),
        figures=tuple(figure(measured, [trend for trend in trends if trend.temperature == t], t) for t in temperatures),
        confidence=measured.runs.evaluate.confidence,
    )


def by_teacher(measured: Measured) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, arm, t, ahead, gain, gain.p)
        for t in measured.runs.evaluate.temperatures
        for arm in measured.arms
        for name, ahead, gain in measured.places(arm, t)
    ]
    return Table(
        key="teachers",
        title=f"Gain over the initial student by teacher, points of {measured.runs.quality}",
        note="Ahead: how often the teacher's text beats the initial student's. The student is the same under all teachers; "
        f"p Holm-corrected over the {len(rows)} gains. {measured.runs.how}",
        columns=(
            Column(key="teacher", label="teacher", unit="text"),
            ARM,
            TEMPERATURE,
            Column(key="ahead", label="teacher ahead", unit="percent"),
            Column(key="gain", label="gain", unit="points"),
            P_HOLM,
        ),
        rows=tuple(rows),
    )


def fitted(measured: Measured, trends: list[Trend]) -> Table:
    rows: list[tuple[Cell, ...]] = [(t.arm, t.temperature, len(t.places), t.slope, t.correlation) for t in trends]
    return Table(
        key="trend",
        title="Gain against the teacher–student win rate",
        note="Least squares and Pearson's r over the teachers, again on each resample of the prompts: what other teachers "
        f"would give is not in the intervals. {measured.runs.how}",
        columns=(
            ARM,
            TEMPERATURE,
            Column(key="teachers", label="teachers", unit="count"),
            Column(key="slope", label=f"gain for {100 * STEP:g} points more", unit="points"),
            Column(key="r", label="r", digits=2),
        ),
        rows=tuple(rows),
    )


def figure(measured: Measured, trends: list[Trend], temperature: float) -> Figure:
    series = []
    for trend in trends:
        names, ahead, gains = zip(*trend.places, strict=True)
        drawn = points(trend.arm, [(x.mean, y) for x, y in zip(ahead, gains, strict=True)], "points", trend.arm)
        series.append(drawn.model_copy(update={"notes": names}))
        x = np.linspace(ahead[0].mean, ahead[-1].mean, CURVE_POINTS)
        a_R, b_R, _ = trend.resampled
        y_XR = a_R + b_R * x[:, None]
        series.append(band(trend.arm, x, trend.a + trend.b * x, y_XR, measured.runs.evaluate.confidence))
    return Figure(
        key=f"teacher-{temperature:g}".replace(".", "_"),
        title=f"{how(temperature)}: gain by how far the teacher is ahead",
        note=f"A point is a teacher. Lines: least squares with their {measured.runs.evaluate.confidence:.0%} bands. "
        f"{measured.runs.how}",
        x=Axis(label="teacher's text beats the initial student's", unit="percent"),
        y=Axis(label=f"gain, points of {measured.runs.quality}", unit="points"),
        series=tuple(series),
        lines=(Line(label="no gain", y=0.0),),
    )


STUDY = Study("teacher", "Gain by how far the teacher is ahead", Settings, plan, result, "§5.2")
