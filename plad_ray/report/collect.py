"""Everything the report shows, read from the artifacts of one run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from plad_ray.artifacts import Artifact
from plad_ray.config import Evaluate, parse
from plad_ray.data import demo
from plad_ray.evaluate.frame import Frame, prompts_of, responses_of
from plad_ray.evaluate.holm import enough
from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.report import sentences
from plad_ray.report.lineage import Step, lineage
from plad_ray.report.significance import Comparison, compare
from plad_ray.stages import Job

#: samples on a page: at most so many, and of so many characters together
SAMPLES, SAMPLE_CHARACTERS = 200, 1_500_000


@dataclass(frozen=True)
class Shown:
    """One text of a sample; ``marks`` (demo task only) are its facts with their verdicts, ``missing`` the lost ones."""

    label: str
    text: str
    score: float | None
    marks: list[demo.Mark] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """``changes``: by arm, its score less the initial student's."""

    prompt: str
    texts: list[Shown]
    changes: dict[str, float]


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
        samples=_samples(job.inputs, metrics, temperature, marked),
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


def _samples(
    inputs: Mapping[str, Artifact], metrics: Mapping[str, Any], temperature: float, marked: bool
) -> list[Sample]:
    """Prompts spread evenly over the evaluated ones, not chosen by how they look."""
    settings = Evaluate.model_validate(inputs["evaluation"].manifest["config"]["evaluate"])
    settings = settings.model_copy(update={"temperatures": (temperature,)})
    prompts = _spread(prompts_of(inputs["prompts"], settings), SAMPLES)
    policies = [p["name"] for p in metrics["policies"]]
    texts = {}
    for source, names in (("responses", [TEACHER, INITIAL]), ("eval_responses", policies)):
        for row in responses_of(inputs[source], settings, names, prompts).to_pylist():
            texts[row["policy"], row["prompt_id"]] = row["text"]
    scores = scores_of(inputs["evaluation"], temperature)
    labels = {p["name"]: p["label"] for p in metrics["policies"]}
    samples = []
    for prompt in prompts.to_pylist():
        key, shown = prompt["prompt_id"], []
        if prompt["reference"] is not None:
            shown.append(("human reference", prompt["reference"], scores.get(("reference", key))))
        shown += [(labels[p], texts[p, key], scores.get((p, key))) for p in policies if (p, key) in texts]
        before = scores.get((INITIAL, key))
        after = {p: scores.get((p, key)) for p in policies if p not in (INITIAL, TEACHER)}
        changes = {p: v - before for p, v in after.items() if v is not None and before is not None}
        texts_of = [_shown(prompt["prompt"], *text, marked) for text in shown]
        samples.append(Sample(prompt["prompt"], texts_of, changes))
    return thinned(samples)


def thinned(samples: list[Sample]) -> list[Sample]:
    """Every one, or evenly fewer where their text would make the page heavy."""
    size = sum(len(s.prompt) + sum(len(t.text) for t in s.texts) for s in samples)
    return samples[:: max(1, -(-size // SAMPLE_CHARACTERS))]


def _spread(prompts: pa.Table, count: int) -> pa.Table:
    places = np.unique(np.linspace(0, prompts.num_rows - 1, min(count, prompts.num_rows)).astype(int))
    return prompts.take(places)


def _shown(prompt: str, label: str, text: str, score: float | None, marked: bool) -> Shown:
    if not marked:
        return Shown(label, text, score)
    return Shown(label, text, score, demo.mark(prompt, text), demo.missing(prompt, text))


def scores_of(evaluation: Artifact, temperature: float) -> dict[tuple[str, str], float]:
    table = evaluation.table(["policy", "prompt_id", "temperature", "score", "reference_score"])
    rows = table.filter(pc.equal(table["temperature"], temperature)).to_pylist()
    found = {(row["policy"], row["prompt_id"]): row["score"] for row in rows}
    return found | {("reference", row["prompt_id"]): row["reference_score"] for row in rows}
