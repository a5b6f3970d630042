"""Two runs on the prompts that both were evaluated on: paired differences, and what their settings differ in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plad_ray.artifacts import Artifact
from plad_ray.config import Experiment
from plad_ray.errors import PladError
from plad_ray.evaluate.bootstrap import Estimate, estimate
from plad_ray.evaluate.frame import Frame
from plad_ray.evaluate.holm import enough, holm
from plad_ray.evaluate.table import mean
from plad_ray.evaluate.winrate import wins
from plad_ray.report import lineage
from plad_ray.report.runs import experiment
from plad_ray.report.sentences import Sentence, how, percent

Cell = Mapping[str, np.ndarray]
Value = Callable[[Cell], np.ndarray]


def _win_reference(cell: Cell) -> np.ndarray:
    return wins(cell["score"], cell["reference_score"])


#: what is compared -> its per-prompt value; the first two need scores
MEASURES: dict[str, Value] = {
    "win_reference": _win_reference,
    "score": lambda cell: cell["score"],
    "rougeL": lambda cell: cell["rougeL"],
    "words": lambda cell: cell["words"],
}


@dataclass(frozen=True)
class Run:
    """One side: ``artifact`` is its report, ``inputs`` what that was made from."""

    label: str
    artifact: Artifact
    inputs: dict[str, Artifact]
    metrics: dict[str, Any]
    experiment: Experiment

    @classmethod
    def of(cls, report: Artifact, label: str = "") -> Run:
        manifest = report.manifest
        inputs = {key: Artifact(report.store, name) for key, name in manifest["inputs"].items()}
        evaluation = inputs["evaluation"]
        metrics = evaluation.store.read_json(evaluation.file("files/metrics.json"))
        return cls(label or manifest["config"]["name"], report, inputs, metrics, experiment(report))

    def prompts(self) -> dict[str, str]:
        """Text by id of every prompt in the table, evaluated or not."""
        table = self.inputs["prompts"].table(["prompt_id", "prompt"])
        return dict(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Row:
    """One policy at one temperature in both runs, over the prompts where both have a value. ``differences`` are the
    second run's mean less the first's; ``wins`` is the share of prompts on which the second scores higher, ties half. ``p``
    is of the score difference (of ROUGE-L where there are no scores), Holm-corrected over the page's rows."""

    policy: str
    label: str
    temperature: float
    first: dict[str, float | None]
    second: dict[str, float | None]
    differences: dict[str, Estimate | None]
    wins: Estimate | None
    p: float | None

    @property
    def clear(self) -> bool:
        return self.p is not None and self.p < 0.05


@dataclass(frozen=True)
class Difference:
    first: Run
    second: Run
    prompts: list[str]
    scored: bool
    rows: list[Row]
    settings: list[tuple[str, str, str]]
    stages: list[tuple[str, str, str, str]]
    sentences: list[Sentence]

    @property
    def resamples(self) -> int:
        return _resamples(self.first, len(self.rows))


def compare(first: Run, second: Run) -> Difference:
    """Raises PladError when no prompt, policy or temperature is in both."""
    frames = [Frame.from_rows(run.inputs["evaluation"].batches()) for run in (first, second)]
    prompts = _common(first, second, frames)
    scored = first.experiment.scorer == second.experiment.scorer and first.experiment.scorer is not None
    rows = _rows(first, second, frames, prompts, scored)
    if not rows:
        raise PladError(f"{first.label} and {second.label}: no policy was evaluated at the same temperature in both")
    settings = differing(first.experiment.model_dump(mode="json"), second.experiment.model_dump(mode="json"))
    settings = [line for line in settings if line[0] != "name" and not line[0].startswith(("runtime.", "merge."))]
    said = [*_said(first, second, rows, scored), *_cautions(first, second, frames, prompts, scored)]
    return Difference(first, second, prompts, scored, rows, settings, _stages(first, second), said)


def _common(first: Run, second: Run, frames: list[Frame]) -> list[str]:
    texts = [run.prompts() for run in (first, second)]
    there = set(frames[1].prompt_ids)
    common = [i for i in frames[0].prompt_ids if i in there and texts[0][i] == texts[1][i]]
    if not common:
        raise PladError(
            f"{first.label} and {second.label} were evaluated on different prompts (split {first.metrics['split']} of "
            f"{first.inputs['prompts'].name}, {second.metrics['split']} of {second.inputs['prompts'].name}), so nothing is "
            "paired; compare runs on the same data, seed and evaluate.split"
        )
    return common


def _resamples(first: Run, rows: int) -> int:
    return enough(first.metrics["resamples"], rows, first.metrics["confidence"])


def _rows(first: Run, second: Run, frames: list[Frame], prompts: list[str], scored: bool) -> list[Row]:
    labels = {p["name"]: p["label"] for p in first.metrics["policies"]}
    keys = [
        (policy, temperature)
        for temperature in first.metrics["temperatures"]
        for policy in labels
        if all((policy, temperature) in frame.cells for frame in frames)
    ]
    rows_of = [{i: n for n, i in enumerate(frame.prompt_ids)} for frame in frames]
    places = [[rows[p] for p in prompts] for rows in rows_of]
    cells = {
        key: [{m: v[place] for m, v in f.cells[key].items()} for f, place in zip(frames, places, strict=True)]
        for key in keys
    }
    names = [name for name in MEASURES if scored or name not in ("win_reference", "score")]
    values = [[MEASURES[n](cells[key][1]) - MEASURES[n](cells[key][0]) for n in names] for key in keys]
    direct = [wins(cells[key][1]["score"], cells[key][0]["score"]) for key in keys]
    settings = (_resamples(first, len(keys)), first.experiment.seed, first.metrics["confidence"])
    found = estimate([np.stack([v for row in values for v in row])], *settings) if keys else []
    beaten = estimate([np.stack(direct)], *settings, null=0.5) if scored and keys else [None] * len(keys)
    differences = [dict(zip(names, found[i * len(names) :][: len(names)], strict=True)) for i in range(len(keys))]
    main = "score" if scored else "rougeL"
    tested = [i for i, row in enumerate(differences) if row[main] is not None]
    corrected = dict(zip(tested, holm([differences[i][main].p for i in tested]), strict=True))  # type: ignore[union-attr]
    rows = []
    for i, (policy, temperature) in enumerate(keys):
        before, after = ({name: mean(MEASURES[name](cell)) for name in names} for cell in cells[policy, temperature])
        row = Row(policy, labels[policy], temperature, before, after, differences[i], beaten[i], corrected.get(i))
        rows.append(row)
    return rows


def differing(first: Any, second: Any, at: str = "") -> list[tuple[str, str, str]]:
    """(dotted key, value in the first, in the second) of everything that differs; – where a key is absent."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = list(dict.fromkeys((*first, *second)))
        return [
            line
            for key in keys
            for line in differing(first.get(key, ABSENT), second.get(key, ABSENT), f"{at}.{key}".lstrip("."))
        ]
    return [] if first == second else [(at, _written(first), _written(second))]


ABSENT = object()


def _written(value: Any) -> str:
    if value is ABSENT or value is None:
        return "–"
    return str(value)


def _stages(first: Run, second: Run) -> list[tuple[str, str, str, str]]:
    """(stage, digest in the first, in the second, what differs) for every stage of either."""
    sides = [lineage.manifests(run.inputs.values()).values() for run in (first, second)]
    manifests = [{manifest["name"]: manifest for manifest in side} for side in sides]
    found = []
    for stage in dict.fromkeys((*manifests[0], *manifests[1])):
        made = [m.get(stage) for m in manifests]
        digests = ["–" if manifest is None else manifest["digest"] for manifest in made]
        found.append((stage, *digests, _why(*made)))
    return found


def _why(first: dict[str, Any] | None, second: dict[str, Any] | None) -> str:
    if first is None or second is None:
        return "only in one"
    if first["digest"] == second["digest"]:
        return "the same artifact"
    keys = [key for key, _, _ in differing(first["identity"], second["identity"])]
    if first["version"] != second["version"]:
        keys.append("version of the stage")
    return ", ".join(keys) or "its inputs"


def _said(first: Run, second: Run, rows: list[Row], scored: bool) -> list[Sentence]:
    said = []
    for row in rows:
        main = row.differences["score" if scored else "rougeL"]
        if main is None or row.policy == "teacher":
            continue
        what = f"The {row.label}'s text {how(row.temperature)}"
        between = f"{main.mean:+.3f} [{main.low:+.3f}, {main.high:+.3f}]"
        by = f"{between} in {'mean score' if scored else 'ROUGE-L'}, p {row.p:.3f}"
        if main.low == main.high == 0:
            said.append(Sentence("result", f"{what} is equally good in both."))
        elif row.clear:
            better, worse = (second, first) if main.mean > 0 else (first, second)
            won = f"; {second.label} is ahead on {percent(row.wins.mean)} of prompts, ties half" if row.wins else ""
            where = f"is better in {better.label} than in {worse.label}"
            said.append(Sentence("result", f"{what} {where}: {second.label} less {first.label} is {by}{won}."))
        else:
            less = f"{second.label} less {first.label}"
            said.append(Sentence("result", f"{what} does not clearly differ: {less} is {by}."))
    return said


def _cautions(first: Run, second: Run, frames: list[Frame], prompts: list[str], scored: bool) -> list[Sentence]:
    said = []
    sizes = [len(frame.ids) for frame in frames]
    if len(prompts) < max(sizes):
        said.append(
            f"Only the {len(prompts):,} prompts that both runs were evaluated on are compared: {first.label} has "
            f"{sizes[0]:,}, {second.label} {sizes[1]:,}."
        )
    if not scored and (first.experiment.scorer or second.experiment.scorer):
        said.append("The runs were not scored by the same scorer, so only ROUGE and length are compared.")
    names = [{p["name"] for p in run.metrics["policies"]} for run in (first, second)]
    alone = sorted(names[0] ^ names[1])
    if alone:
        said.append(f"In one of the runs only, and not compared: {', '.join(alone)}.")
    return [Sentence("warning", text) for text in said]
