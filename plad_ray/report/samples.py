"""Sample outputs side by side: prompt, reference, and every policy's text with its score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.artifacts import Artifact
from plad_ray.config import Evaluate
from plad_ray.data import demo
from plad_ray.evaluate.frame import prompts_of, responses_of
from plad_ray.evaluate.table import INITIAL, TEACHER

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
class Side:
    """What one evaluation read of the prompts shown: ``labels`` by policy, ``texts`` and ``scores`` by policy and prompt."""

    labels: dict[str, str]
    texts: dict[tuple[str, str], str]
    scores: dict[tuple[str, str], float]

    @classmethod
    def of(cls, evaluation: Artifact, name: str, settings: Evaluate, prompts: pa.Table) -> Side:
        """``name`` is put behind the labels; empty where there is one evaluation."""
        metrics, inputs = evaluation.store.read_json(evaluation.file("files/metrics.json")), inputs_of(evaluation)
        labels = {p["name"]: f"{p['label']}, {name}" if name else p["label"] for p in metrics["policies"]}
        texts = {}
        for source, policies in (("responses", [TEACHER, INITIAL]), ("eval_responses", list(labels))):
            for row in responses_of(inputs[source], settings, policies, prompts).to_pylist():
                texts[row["policy"], row["prompt_id"]] = row["text"]
        return cls(labels, texts, scores_of(evaluation, settings.temperatures[0]))

    def changes(self, key: str) -> dict[str, float]:
        """Of the prompt ``key``, by label: each arm's score less the initial student's."""
        before = self.scores.get((INITIAL, key))
        after = {p: self.scores.get((p, key)) for p in self.labels if p not in (INITIAL, TEACHER)}
        return {self.labels[p]: v - before for p, v in after.items() if v is not None and before is not None}


def collect(evaluations: Mapping[str, Artifact], temperature: float, marked: bool) -> list[Sample]:
    """Prompts spread evenly over the evaluated ones, not chosen by how they look.

    ``evaluations``: on the same prompts, by the name that tells their policies apart (empty for a single one). ``marked``:
    texts are of the demo task, and their facts are marked.
    """
    first = next(iter(evaluations.values()))
    settings = Evaluate.model_validate(first.manifest["config"]["evaluate"])
    settings = settings.model_copy(update={"temperatures": (temperature,)})
    prompts = _spread(prompts_of(inputs_of(first)["prompts"], settings), SAMPLES)
    sides = [Side.of(evaluation, name, settings, prompts) for name, evaluation in evaluations.items()]
    samples = []
    for prompt in prompts.to_pylist():
        texts = [_shown(prompt["prompt"], *text, marked) for text in _texts(prompt, sides)]
        changes = {label: change for side in sides for label, change in side.changes(prompt["prompt_id"]).items()}
        samples.append(Sample(prompt["prompt"], texts, changes))
    return thinned(samples)


def _texts(prompt: Mapping[str, Any], sides: list[Side]) -> Iterator[tuple[str, str, float | None]]:
    """Label, text and score: the reference, then each policy's; what every side has alike from the initial student, once."""
    key = prompt["prompt_id"]
    if prompt["reference"] is not None:
        yield "human reference", prompt["reference"], sides[0].scores.get(("reference", key))
    initial = {side.texts.get((INITIAL, key)) for side in sides}
    for policy in dict.fromkeys(p for side in sides for p in side.labels):
        same = policy == INITIAL and len(initial) == 1
        for side in sides[:1] if same else sides:
            if (policy, key) in side.texts:
                label = "initial student" if same else side.labels[policy]
                yield label, side.texts[policy, key], side.scores.get((policy, key))


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


def inputs_of(artifact: Artifact) -> dict[str, Artifact]:
    """What ``artifact`` was made from, by role."""
    return {role: Artifact(artifact.store, name) for role, name in artifact.manifest["inputs"].items()}
