"""What a study's page shows of the artifacts behind its numbers: sample outputs, and the lineage with its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from plad_ray.artifacts import Artifact, Store
from plad_ray.report import samples
from plad_ray.report.lineage import Step, lineage
from plad_ray.report.samples import Sample
from plad_ray.study.graph import EVALUATION
from plad_ray.study.result import StudyResult


@dataclass(frozen=True)
class Samples:
    """``run``: of which run, e.g. ``seed 0``; ``marked``: the facts of the demo task are."""

    run: str
    split: str
    temperature: float
    marked: bool
    shown: list[Sample]

    @property
    def choices(self) -> list[str]:
        """Whose change of score can be asked for."""
        return list(dict.fromkeys(label for sample in self.shown for label in sample.changes))


@dataclass(frozen=True)
class Sources:
    """``samples``: None where the study evaluates no policies."""

    samples: Samples | None = None
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, result: StudyResult, store: Store) -> Sources:
        """From the store in which the result's artifacts lie."""
        artifacts = {key: Artifact(store, name) for key, name in result.artifacts.items()}
        steps = lineage(Artifact(store, name) for name in sorted(set(result.artifacts.values())))
        return cls(_samples(result, artifacts), steps)


def _samples(result: StudyResult, artifacts: Mapping[str, Artifact]) -> Samples | None:
    """Of the study's first setting and seed, at the lowest temperature."""
    setting = next((key.partition(EVALUATION)[0] for key in artifacts if EVALUATION in key), None)
    if setting is None:
        return None
    within = setting + EVALUATION
    keys = [key.removeprefix(within) for key in artifacts if key.startswith(within)]
    seed = keys[0].rpartition("/")[2]
    found = {key.rpartition("/")[0]: artifacts[within + key] for key in keys if key.rpartition("/")[2] == seed}
    evaluation = next(iter(found.values()))
    metrics = evaluation.store.read_json(evaluation.file("files/metrics.json"))
    temperature, marked = min(metrics["temperatures"]), _scorer(result) == "demo"
    shown = samples.collect(found, temperature, marked)
    of = f"{setting.rstrip('/')}, seed {seed}" if setting else f"seed {seed}"
    return Samples(of, metrics["split"], temperature, marked, shown)


def _scorer(result: StudyResult) -> str | None:
    scorer = (yaml.safe_load(result.experiment) or {}).get("scorer")
    return scorer["name"] if scorer else None
