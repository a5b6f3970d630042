"""The averaging stage: a distilled adapter and its start become one adapter that PEFT and vLLM load as it is."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from plad_ray.config import Averaging, Model
from plad_ray.errors import PladError
from plad_ray.merge import lora, proxy
from plad_ray.merge.learn import Learned, learn
from plad_ray.merge.weights import THIRDS, layers_of, split, third
from plad_ray.models.load import load_tokenizer
from plad_ray.models.policy import NOTE, Policy, resolve
from plad_ray.stages import Job, Outcome
from plad_ray.tasks import at_workers, device_of
from plad_ray.train.adapter import write_note

logger = logging.getLogger("plad_ray")
#: files of the distilled folder that the average has its own of, or none
_NOT_COPIED = (lora.CONFIG, lora.TENSORS, NOTE, "metrics.jsonl")


def run(job: Job) -> Outcome:
    """config {"model", "averaging", "seed"}; inputs {"distilled"}, the artifacts "start/0", … that fold onto the model, and
    for learned weights {"prompts", "responses"} and, to keep the best of them, {"scores"}. Weights are learned where a
    training worker would be.

    Writes files/, a PEFT adapter folder. Metrics: ``parts`` with layers and base weight; learned ones also have the loss
    over all rows with equal and with learned weights, and its curve. Raises PladError for ends that do not belong together.
    """
    how, policy, ends, layers = _given(job)
    runs, weights = runs_of(len(layers), how)
    outcome = Outcome()
    if how.parts:
        [(outcome, weights)] = at_workers(job, learned_weights, 1)
        shown, loss = ", ".join(f"{weight:.3f}" for weight in weights), outcome.metrics["loss"]
        logger.info("base weights %s: loss %.4f, with equal ones %.4f", shown, loss["learned"], loss["plain"])
    outside = 0.0 if how.layers in THIRDS else how.base_weight
    by_module = dict.fromkeys(ends[1].modules, outside)
    by_module |= {name: weights[k] for k, run in enumerate(runs) for i in run for name in layers[i]}
    parts = [{"layers": [r[0], r[-1]], "base_weight": w} for r, w in zip(runs, weights, strict=True)]
    _publish(job, policy, ends, by_module, {"base_weight": how.base_weight, "parts": parts})
    return Outcome(outcome.rows_in, outcome.rows_out, outcome.dropped, {"parts": parts, **outcome.metrics})


def read_ends(start: Policy, distilled: Policy) -> tuple[lora.Adapter | None, lora.Adapter]:
    """The adapters of both ends on their one base; the start may be the bare base. Raises PladError for other pairs."""
    if distilled.adapter is None or start.base_hash != distilled.base_hash:
        raise PladError(
            f"{distilled.adapter or distilled.base} did not start from {start.adapter or start.base}: averaging needs an "
            "adapter and the student that it was trained from"
        )
    first, last = None if start.adapter is None else lora.read(start.adapter), lora.read(distilled.adapter)
    lora.check_ends(first, last)
    return first, last


def runs_of(layers: int, how: Averaging) -> tuple[list[range], list[float]]:
    """Runs of layers and the base weight that each has before anything is learned. Raises PladError for too few layers."""
    if how.layers in THIRDS:
        averaged = third(layers, how.layers)
        runs = split(layers, len(THIRDS))
        return runs, [how.base_weight if run == averaged else 0.0 for run in runs]
    runs = split(layers, how.parts or 1)
    return runs, [how.base_weight] * len(runs)


def learned_weights(job: Job, number: int = 0) -> tuple[Outcome, list[float]]:
    """Of each run of layers, and what they were learned on."""
    model = Model.model_validate(job.config["model"])
    how, policy, ends, layers = _given(job)
    runs, _ = runs_of(len(layers), how)
    texts = job.inputs["prompts"], job.inputs["responses"], job.inputs.get("scores")
    rows, dropped = proxy.read_answers(*texts, load_tokenizer(policy), model, how.top)
    part_of: dict[str, int | None] = dict.fromkeys(ends[1].modules)
    part_of |= {name: k for k, run in enumerate(runs) for i in run for name in layers[i]}
    device, micro_batch = device_of(job.runtime), job.runtime.train.micro_batch
    prepared = proxy.prepare(model, policy, ends, part_of, how, rows, micro_batch, device)
    found: Learned = learn(prepared, how, runs, job.config["seed"], job.progress)
    metrics = {"loss": {"plain": found.plain, "learned": found.learned}, "curve": found.curve}
    return Outcome(len(rows) + sum(dropped.values()), len(rows), dropped, metrics), found.base_weights


def _given(job: Job) -> tuple[Averaging, Policy, tuple[lora.Adapter | None, lora.Adapter], list[list[str]]]:
    """How to average, the distilled policy, both ends, and the modules of each layer."""
    model = Model.model_validate(job.config["model"])
    starts = job.numbered("start")
    policy = resolve(model, *starts, job.inputs["distilled"])
    ends = read_ends(resolve(model, *starts), policy)
    return Averaging.model_validate(job.config["averaging"]), policy, ends, layers_of(ends[1].modules)


def _publish(
    job: Job,
    policy: Policy,
    ends: tuple[lora.Adapter | None, lora.Adapter],
    base_weight: dict[str, float],
    averaged: dict[str, Any],
) -> None:
    """The adapter, with the tokenizer of the distilled one and a note of the base and of what was averaged."""
    start, distilled = ends
    with tempfile.TemporaryDirectory(prefix="plad-average-") as name:
        folder = Path(name)
        for file in distilled.folder.iterdir():
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, folder / file.name)
        lora.write(lora.average(start, distilled, base_weight), distilled, folder)
        write_note(folder, policy, averaged=averaged)
        job.out.store.delete(job.out.file("files"))
        job.out.store.upload(folder, job.out.file("files"))
