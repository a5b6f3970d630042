"""What a study is: from an experiment and settings to a graph of stages, and from its artifacts to a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from plad_ray.artifacts import Store
from plad_ray.config import Experiment, StudySettings
from plad_ray.errors import PladError
from plad_ray.parts.common import lazy
from plad_ray.stages import Job, Stage
from plad_ray.study.result import StudyResult

S = TypeVar("S", bound=StudySettings)


@dataclass(frozen=True)
class Plan:
    """What can be planned with what is finished now. ``exp`` stands for all its experiments: same models and runtime.

    ``last`` makes the study's artifact; None: the study is planned anew when ``targets`` are finished, and ``then``
    says what comes.
    """

    exp: Experiment
    targets: list[Stage]
    last: Stage | None = None
    then: str = ""


@dataclass(frozen=True)
class Study(Generic[S]):
    """``plan(exp, settings, store)``, ``result(job)``; the job is that of ``last_stage``. ``version`` as a stage's."""

    name: str
    title: str
    settings: type[S]
    plan: Callable[[Experiment, S, Store], Plan]
    result: Callable[[Job], StudyResult]
    paper: str = ""
    version: int = 1


def last_stage(
    study: Study[Any],
    exp: Experiment,
    settings: StudySettings,
    inputs: Mapping[str, Stage],
    facts: Mapping[str, Any] | None = None,
    ray: bool = False,
) -> Stage:
    """``study-<name>``. ``facts``: what the result needs to know of the plan, as JSON."""
    config = {
        "study": study.name,
        "settings": settings.model_dump(mode="json"),
        "name": exp.name,
        "experiment": exp.model_dump(mode="json", exclude={"runtime", "merge"}, exclude_defaults=True),
        "facts": dict(facts or {}),
    }
    return Stage(
        f"study-{study.name}", lazy("plad_ray.study.stage"), config, dict(inputs), version=study.version, ray=ray
    )


def of_run(stage: Stage, of: str) -> Stage:
    """``stage`` and all before it, shown as parts of the run ``of``."""
    made: dict[str, Stage] = {}

    def visit(old: Stage) -> Stage:
        if old.artifact_name not in made:
            made[old.artifact_name] = replace(old, inputs={key: visit(s) for key, s in old.inputs.items()}, of=of)
        return made[old.artifact_name]

    return visit(stage)


@dataclass(frozen=True)
class Seeds:
    """The experiment under each seed of a study."""

    exp: Experiment
    seeds: tuple[int, ...] = field(default=())

    @classmethod
    def of(cls, exp: Experiment, settings: StudySettings) -> Seeds:
        return cls(exp, settings.seeds or (exp.seed,))

    def __iter__(self) -> Any:
        return ((seed, self.exp.model_copy(update={"seed": seed})) for seed in self.seeds)


def needs_scorer(exp: Experiment, study: str) -> None:
    if exp.scorer is None:
        raise PladError(f"study {study} compares scores: set scorer.name (demo, rouge, classifier or module:function)")
