"""What distillation costs elsewhere, and how much of it averaging with the start gives back (arXiv 2309.06256): win rate
against held-out likelihood and ROUGE, for every arm, by the weight of the start and by what is averaged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from plad_ray import parts
from plad_ray.artifacts import Store
from plad_ray.config import Averaging, Data, Experiment, Scorer, SplitName, StudySettings
from plad_ray.config.base import Count, Section
from plad_ray.errors import PladError
from plad_ray.evaluate.table import INITIAL
from plad_ray.pipeline import before_distillation
from plad_ray.stages import Job, Stage
from plad_ray.study import likelihoods
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import EVALUATION, Seeds, last_stage, needs_scorer, of_run
from plad_ray.study.pieces import ARM, LABELS, TEMPERATURE, how, points
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Table
from plad_ray.study.runs import Runs, Values

#: all layers alike, a learned weight for each run of layers, or a third of the layers
KINDS = ("plain", "adaptive", "low", "middle", "high")
#: inputs of the last stage: ``evaluation/<seed>``, ``likelihoods/<seed>``, and of the second task ``second/…``
READ, SECOND = "likelihoods/", "second/"


class SecondTask(Section):
    """A task that nobody was distilled on: its prompts and references."""

    data: Data
    scorer: Scorer | None = Field(None, description="null: the experiment's")
    split: SplitName = "test"
    limit: Count | None = None


class Settings(StudySettings):
    base_weights: tuple[float, ...] = Field((0.2, 0.4, 0.6, 0.8), description="of the start, each between 0 and 1")
    kinds: tuple[str, ...] = Field(KINDS, description="all layers alike, learned weights, or a third of them")
    parts: Count = Field(3, description="adaptive: runs of layers, each with a weight of its own")
    second: SecondTask | None = Field(
        None, description="another task, on which all students answer too: data, scorer, …"
    )

    @field_validator("base_weights")
    @classmethod
    def _between(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not weights or not all(0 < weight < 1 for weight in weights):
            raise ValueError("base_weights lie between 0 (as distilled) and 1 (the start), which are shown anyway")
        return tuple(sorted(set(weights)))

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise ValueError(f"kinds are among {', '.join(KINDS)} (given: {', '.join(unknown) or 'none'})")
        return kinds


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    needs_scorer(exp, STUDY.name)
    inputs: dict[str, Stage] = {}
    facts: dict[str, Any] = {}
    for seed, seeded in Seeds.of(exp, settings):
        made, arms = before_distillation(seeded), seeded.arms()
        trained = parts.adapters(seeded, arms, made, parts.tables(seeded, arms, made))
        students: dict[str, Stage] = {}
        for arm, adapter in trained.items():
            students[arm] = adapter
            facts[arm] = {"arm": arm, "kind": "as distilled", "base_weight": 0.0}
            for kind in settings.kinds:
                for weight in settings.base_weights:
                    name = f"{arm}-{kind}-{100 * weight:g}".replace(".", "_")
                    way = averaging(kind, weight, settings.parts)
                    averaged = parts.average(seeded, arm, adapter, way, made.prompts, made.student)
                    students[name] = replace(averaged, name=f"average-{name}")
                    facts[name] = {"arm": arm, "kind": kind, "base_weight": weight}
        readers = {INITIAL: made.student, **{name: (*made.student, s) for name, s in students.items()}}
        texts = parts.generate_arms(seeded, "tax-responses", students, made.prompts, made.initial, exp.evaluate.split)
        scores = parts.score(seeded, "tax-scores", made.prompts, texts)
        responses, known = made.texts["responses"], made.texts.get("scores")
        evaluation = parts.evaluate(seeded, made.prompts, responses, known, texts, scores, students)
        inputs[f"{EVALUATION}{seed}"] = of_run(evaluation, f"seed {seed}")
        inputs[f"{READ}{seed}"] = of_run(likelihoods.stage(seeded, made.prompts, None, readers), f"seed {seed}")
        if settings.second is not None:
            found = second_task(seeded, settings.second, made, students, readers)
            inputs |= {f"{SECOND}{key}{seed}": of_run(s, f"second task, seed {seed}") for key, s in found.items()}
    last = last_stage(STUDY, exp, settings, inputs, {"students": facts})
    return Plan(exp, [last], last)


def second_task(
    exp: Experiment,
    task: SecondTask,
    made: parts.Made,
    students: dict[str, Stage],
    readers: dict[str, tuple[Stage, ...]],
) -> dict[str, Stage]:
    """The evaluation of the start and of ``students`` on another task, and what ``readers`` think of its references."""
    evaluate = exp.evaluate.model_copy(update={"split": task.split, "limit": task.limit})
    other = exp.model_copy(update={"data": task.data, "scorer": task.scorer or exp.scorer, "evaluate": evaluate})
    prompts = parts.prompts(other)
    drawn = (task.split,), evaluate.temperatures, 1, task.limit
    start = parts.generate_samples(other, "second-start", replace(made, prompts=prompts), ("student",), *drawn)
    texts = parts.generate_arms(other, "second-responses", students, prompts, made.initial, task.split)
    known, scores = (parts.score(other, f"{s.name}-scores", prompts, s) for s in (start, texts))
    return {
        EVALUATION: parts.evaluate(other, prompts, start, known, texts, scores, students),
        READ: likelihoods.stage(other, prompts, None, readers),
    }


def averaging(kind: str, base_weight: float, runs: int) -> Averaging:
    if kind == "adaptive":
        return Averaging(base_weight=base_weight, parts=runs)
    return Averaging.model_validate({"base_weight": base_weight, "layers": "all" if kind == "plain" else kind})


@dataclass(frozen=True)
class Student:
    """One point of the front. ``nll``: nats a token of the references, mean over prompts."""

    name: str
    arm: str
    kind: str
    base_weight: float
    quality: Interval
    nll: Interval
    rouge: Interval | None

    def beaten_by(self, other: Student) -> bool:
        """Whether ``other`` is at least as good on both sides and better on one."""
        gains = other.quality.mean - self.quality.mean, self.nll.mean - other.nll.mean
        return min(gains) >= 0 and max(gains) > 0


def result(job: Job) -> Findings:
    own = Task.of(job)
    second = Task.of(job, SECOND, "second task") if job.config["settings"]["second"] else None
    tasks = [own] if second is None else [own, second]
    return Findings(
        summary=tuple(line for task in tasks for t in task.fronts for line in sentences(task, t)),
        tables=(table(own),) if second is None else (table(own), second_table(second)),
        figures=tuple(figure(own, task, t) for task in tasks for t in own.fronts),
        confidence=own.found.evaluate.confidence,
    )


@dataclass(frozen=True)
class Task:
    """Every student on one task. ``name``: empty for the task that was distilled on; ``nlls``: of each prompt's reference,
    by student; ``fronts``: by temperature."""

    name: str
    found: Runs
    nlls: dict[str, Values]
    fronts: dict[float, list[Student]]

    @property
    def places(self) -> list[tuple[Student, float]]:
        """Every student at every temperature."""
        return [(s, t) for t, students in self.fronts.items() for s in students]

    @classmethod
    def of(cls, job: Job, prefix: str = "", name: str = "") -> Task:
        found, facts = Runs.of(job, f"{prefix}{EVALUATION}"), job.config["facts"]["students"]
        every = {INITIAL: {"arm": "", "kind": "start", "base_weight": 1.0}, **facts}
        texts = [job.inputs[f"{prefix}{READ}{seed}"] for seed in found.seeds]
        read = [likelihoods.per_token(artifact) for artifact in texts]
        nlls = {student: nll_of(read, found, student) for student in every}
        estimates = found.estimates(nlls)
        fronts = {t: students_at(found, every, estimates, t) for t in found.evaluate.temperatures}
        if not all(fronts.values()):
            raise PladError(f"study tax: {texts[0].path} has no likelihood of a reference")
        return cls(name, found, nlls, fronts)


def nll_of(read: list[dict[str, dict[str, float]]], found: Runs, reader: str) -> Values:
    """Nats a token of each prompt's reference under ``reader``, aligned with the evaluation's prompts; ``read``: of each
    seed, what ``likelihoods.per_token`` gives."""
    known = [by_reader.get(reader, {}) for by_reader in read]
    return [
        np.array([-of_seed.get(prompt, np.nan) for prompt in frame.prompt_ids])
        for of_seed, frame in zip(known, found.frames, strict=True)
    ]


def students_at(
    found: Runs, facts: dict[str, dict[str, Any]], nlls: dict[str, Interval | None], temperature: float
) -> list[Student]:
    qualities = found.estimates({name: found.won(name, temperature) for name in facts}, 0.5)
    rouges = found.estimates({name: found.measure(name, temperature, "rougeL") for name in facts})
    return [
        Student(name, fact["arm"], fact["kind"], fact["base_weight"], quality, nll, rouges[name])
        for name, fact in facts.items()
        if (quality := qualities[name]) is not None and (nll := nlls[name]) is not None
    ]


def on_front(students: list[Student]) -> set[str]:
    """Names of those that no other beats."""
    return {s.name for s in students if not any(s.beaten_by(other) for other in students)}


def table(task: Task) -> Table:
    best = {t: on_front(students) for t, students in task.fronts.items()}
    rows: list[tuple[Cell, ...]] = [(*_shown(s, t), "yes" if s.name in best[t] else "") for s, t in task.places]
    return Table(
        key="front",
        title="Reward and tax",
        note="NLL: nats a token of the references, which no arm was distilled on. Front: no other student is at least as "
        f"good in win rate and NLL and better in one, by the means. {task.found.how}",
        columns=(*SHOWN, Column(key="front", label="front", unit="text")),
        rows=tuple(rows),
    )


def second_table(task: Task) -> Table:
    won = {(s.name, t): task.found.won(s.name, t) for s, t in task.places}
    of = {s.name: s.arm for s, _ in task.places if s.base_weight and s.arm}
    wins = task.found.estimates({(n, t): less(won[n, t], won[of[n], t]) for n, t in won if n in of})
    nlls = task.found.estimates({name: less(task.nlls[name], task.nlls[arm]) for name, arm in of.items()})
    rows: list[tuple[Cell, ...]] = [(*_shown(s, t), wins.get((s.name, t)), nlls.get(s.name)) for s, t in task.places]
    return Table(
        key="second",
        title="The second task, on which nobody was distilled",
        note="Changes: less the same arm as distilled, paired by prompt: what averaging gives back, a fall of the NLL being "
        f"a gain. {task.found.how}",
        columns=(
            *SHOWN,
            Column(key="quality_change", label="change", unit="points"),
            Column(key="nll_change", label="change of NLL", digits=3),
        ),
        rows=tuple(rows),
    )


SHOWN = (
    ARM,
    Column(key="kind", label="averaged", unit="text"),
    Column(key="base_weight", label="weight of the start", unit="percent", digits=0),
    TEMPERATURE,
    Column(key="quality", label="win rate", unit="percent"),
    Column(key="nll", label="NLL", digits=3),
    Column(key="rougeL", label="ROUGE-L"),
)


def _shown(s: Student, temperature: float) -> tuple[Cell, ...]:
    return LABELS.get(s.name, s.arm), s.kind, s.base_weight, temperature, s.quality, s.nll, s.rouge


def less(ours: Values, theirs: Values) -> Values:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def figure(own: Task, task: Task, temperature: float) -> Figure:
    """Win rate on the task itself against likelihood on ``task``: each way of averaging as a curve from the distilled
    student to its start."""
    nlls = {s.name: s.nll for s in task.fronts[temperature]}
    students = [replace(s, nll=nlls[s.name]) for s in own.fronts[temperature] if s.name in nlls]
    start = [s for s in students if s.kind == "start"]
    series = []
    for arm in dict.fromkeys(s.arm for s in students if s.arm):
        distilled = [s for s in students if s.arm == arm and s.base_weight == 0]
        for kind in dict.fromkeys(s.kind for s in students if s.arm == arm and s.base_weight > 0):
            between = sorted((s for s in students if (s.arm, s.kind) == (arm, kind)), key=lambda s: s.base_weight)
            curve = [*distilled, *between, *(start if kind in ("plain", "adaptive") else [])]
            drawn = points(f"{arm}, {kind}", [(s.nll.mean, s.quality) for s in curve])
            notes = tuple(f"{100 * s.base_weight:g} % of the start" for s in curve)
            series.append(drawn.model_copy(update={"notes": notes}))
    of = f" of the {task.name}" if task.name else ""
    return Figure(
        key=f"{'second' if task.name else 'front'}-{temperature:g}".replace(".", "_"),
        title=f"{how(temperature)}: win rate against held-out NLL{of}",
        note=f"Up and left is better. {own.found.how}",
        x=Axis(label=f"NLL of the references{of}, nats a token"),
        y=Axis(label=own.found.quality, unit="percent"),
        series=tuple(series),
    )


def sentences(task: Task, temperature: float) -> list[str]:
    students = task.fronts[temperature]
    [start] = [s for s in students if s.kind == "start"]
    said = []
    for distilled in (s for s in students if s.kind == "as distilled"):
        mine = [s for s in students if s.arm == distilled.arm]
        best = max(mine, key=lambda s: s.quality.mean)
        gain, tax = distilled.quality.mean - start.quality.mean, distilled.nll.mean - start.nll.mean
        said.append(
            f"{how(temperature)}, {distilled.arm}{', ' + task.name if task.name else ''}: distillation changes the win rate "
            f"by {100 * gain:+.1f} points and the NLL of the references by {tax:+.3f}; the best win rate has {best.kind}"
            + (f" at {100 * best.base_weight:g} % of the start" if best.base_weight else "")
            + f": {100 * (best.quality.mean - start.quality.mean):+.1f} points, NLL {best.nll.mean - start.nll.mean:+.3f}."
        )
    return said


STUDY = Study("tax", "Reward against tax under model averaging", Settings, plan, result)
