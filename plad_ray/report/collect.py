"""Everything the report shows, read from the artifacts of one run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from plad_ray.artifacts import Artifact
from plad_ray.config import parse
from plad_ray.evaluate.frame import Frame
from plad_ray.evaluate.holm import enough
from plad_ray.report import samples, sentences
from plad_ray.report.lineage import Step, lineage
from plad_ray.report.samples import Sample
from plad_ray.report.significance import Comparison, compare
from plad_ray.stages import Job


@dataclass(frozen=True)
class Page:
    name: str
    metrics: dict[str, Any]
    sentences: list[sentences.Sentence]
    objectives: dict[str, str]
    pairs: dict[str, dict[str, Any]]
    curves: dict[str, list[dict[str, float]]]
    sft: dict[str, list[dict[str, float]]]
    samples: list[Sample]
    sample_temperature: float
    marked: bool
    significance: list[Comparison]
    settings: str
    lineage: list[Step]
    libraries: dict[str, str]
    commit: str | None

    @property
    def resamples(self) -> int:
        """Behind ``significance``."""
        return enough(self.metrics["resamples"], len(self.significance), self.metrics["confidence"])


def collect(job: Job) -> Page:
    """Read the report's inputs (see ``report.run``)."""
    evaluation = job.inputs["evaluation"]
    metrics = evaluation.store.read_json(evaluation.file("files/metrics.json"))
    arms = [p["name"] for p in metrics["policies"] if p["name"] in job.config["arms"]]
    pairs = _pairs({arm: a for arm in arms if (a := job.inputs.get(f"pairs/{arm}"))})
    curves = {arm: curve(job.inputs[f"train/{arm}"]) for arm in arms}
    marked = job.config["scorer"] == "demo"
    temperature = min(metrics["temperatures"])
    said = [
        *sentences.from_metrics(metrics),
        *sentences.from_pairs(pairs),
        *sentences.from_curves(curves),
        *sentences.from_scorer(job.config["scorer"]),
    ]
    manifest = evaluation.manifest
    return Page(
        name=job.config["name"],
        metrics=metrics,
        sentences=said,
        objectives={arm: describe(job.config["arms"][arm]) for arm in arms},
        pairs=pairs,
        curves=curves,
        sft={role: curve(a) for role in ("teacher", "student") if (a := job.inputs.get(f"sft/{role}"))},
        samples=samples.collect({"": evaluation}, temperature, marked),
        sample_temperature=temperature,
        marked=marked,
        significance=_significance(evaluation, metrics),
        settings=_as_yaml(job.config["experiment"]),
        lineage=lineage(sorted(job.inputs.values(), key=lambda artifact: artifact.name)),
        libraries=manifest.get("libraries", {}),
        commit=manifest.get("git_commit"),
    )


def _as_yaml(experiment: Mapping[str, Any]) -> str:
    """The settings in the order of the experiment file's sections, whatever order they were stored in."""
    ordered = parse(json.loads(json.dumps(experiment, sort_keys=True)))
    settings = ordered.model_dump(mode="json", exclude={"runtime", "merge"}, exclude_defaults=True)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _pairs(tables: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Summary of each pair table under the names of the arms that share it, e.g. ``distilled, seqkd``."""
    sharing: dict[str, list[str]] = {}
    for arm, artifact in tables.items():
        sharing.setdefault(artifact.name, []).append(arm)
    return {", ".join(names): tables[names[0]].manifest["metrics"] for names in sharing.values()}


def curve(artifact: Artifact) -> list[dict[str, float]]:
    """The training log, one mapping a logged step; empty for a model that was not trained here."""
    name = artifact.file("files/metrics.jsonl")
    if not artifact.store.exists(name):
        return []
    return [json.loads(line) for line in artifact.store.read_bytes(name).decode().splitlines() if line.strip()]


def describe(objective: Mapping[str, Any]) -> str:
    """``plad_rank (margin 1, sft_weight 10)``."""
    fields = ", ".join(
        f"{key} {value}" for key, value in sorted(objective.items()) if key != "name" and value is not None
    )
    return f"{objective['name']} ({fields})" if fields else str(objective["name"])


def _significance(evaluation: Artifact, metrics: Mapping[str, Any]) -> list[Comparison]:
    policies = [p["name"] for p in metrics["policies"]]
    settings = (metrics["resamples"], evaluation.manifest["config"]["seed"], metrics["confidence"])
    return compare(Frame.from_rows(evaluation.batches()), policies, metrics["temperatures"], *settings)
