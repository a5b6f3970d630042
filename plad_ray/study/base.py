"""What a study is: from an experiment and settings to a graph of stages, and from its artifacts to a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from plad_ray.artifacts import Store
from plad_ray.config import Experiment, StudySettings
from plad_ray.stages import Job, Stage
from plad_ray.study.result import Findings

S = TypeVar("S", bound=StudySettings)


@dataclass(frozen=True)
class Plan:
    """What can be planned with what is finished now. ``exp`` stands for all its experiments: same runtime, and the same
    models but for those of ``variants``, by where in the study's settings each is said.

    ``last`` makes the study's artifact; None: the study is planned anew when ``targets`` are finished, and ``then``
    says what comes. ``dashboard``: a local Ray needs its State API, by which Ray Train notices a trial that was stopped.
    """

    exp: Experiment
    targets: list[Stage]
    last: Stage | None = None
    then: str = ""
    dashboard: bool = False
    variants: Mapping[str, Experiment] = field(default_factory=dict)


@dataclass(frozen=True)
class Study(Generic[S]):
    """``plan(exp, settings, store)``, ``result(job)``; the job is that of ``last_stage``. ``version`` as a stage's."""

    name: str
    title: str
    settings: type[S]
    plan: Callable[[Experiment, S, Store], Plan]
    result: Callable[[Job], Findings]
    paper: str = ""
    version: int = 3
