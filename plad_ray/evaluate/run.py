"""The evaluation stage: per-prompt rows and the table of teacher, initial student and distilled students."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pyarrow as pa

from plad_ray.artifacts import Artifact
from plad_ray.config import Evaluate
from plad_ray.errors import PladError
from plad_ray.evaluate import frame
from plad_ray.evaluate.table import INITIAL, TEACHER, mean, summarise
from plad_ray.evaluate.texts import count_words
from plad_ray.slices import slices
from plad_ray.stages import Job, Outcome

LABELS = {TEACHER: "teacher", INITIAL: "initial student"}


def run(job: Job) -> Outcome:
    """Stage: ``rows/`` (see ``frame.ROW``), parts by policy, temperature and prompt; ``files/metrics.json`` (see
    ``table.summarise``)."""
    evaluate = Evaluate.model_validate(job.config["evaluate"])
    policies = {**LABELS, **{name: label for name, label in job.config["arms"].items()}}
    cells = list(product(policies, evaluate.temperatures))
    job.out.store.delete(job.out.file("rows"))
    words, written = [], 0
    for number, inputs in enumerate(slices(job.inputs, evaluate.split, evaluate.limit)):
        prompts = frame.prompts_of(inputs["prompts"], evaluate)
        words.append(count_words(prompts["reference"]))
        for cell, rows in frame.by_cell(_rows(job, inputs, evaluate, prompts)):
            job.out.write_rows(rows, f"part-{cells.index(cell):03d}-{number:05d}")
            written += rows.num_rows
    reference_words = np.concatenate(words)
    numbers = frame.Frame.from_rows(job.out.batches() if written else ())
    present = _present({policy for policy, _ in numbers.cells}, policies, job.inputs)
    metrics = summarise(
        [numbers],
        {name: policies[name] for name in present},
        evaluate.temperatures,
        evaluate.bootstrap,
        evaluate.confidence,
        job.config["seed"],
    )
    expected = len(reference_words) * len(present) * len(evaluate.temperatures)
    metrics |= {
        "split": evaluate.split,
        "scorer": bool(job.config["scorer"]),
        "without_reference": int(np.isnan(reference_words).sum()),
        "reference_words": mean(reference_words),
    }
    job.out.store.write_json(job.out.file("files/metrics.json"), metrics)
    dropped = {"no_response": expected - written} if expected > written else {}
    return Outcome(rows_in=expected, rows_out=written, dropped=dropped, metrics=metrics)


def _rows(job: Job, inputs: Mapping[str, Artifact], evaluate: Evaluate, prompts: pa.Table) -> pa.Table:
    """The numbers of what was said to ``prompts``."""
    asked = {"responses": list(LABELS), "eval_responses": list(job.config["arms"])}
    found = [frame.responses_of(inputs[key], evaluate, names, prompts) for key, names in asked.items()]
    scores = None
    if job.config["scorer"]:
        artifacts = [inputs[key] for key in ("scores", "eval_scores") if key in inputs]
        scores = frame.read_scores(artifacts, evaluate.split)
    return frame.build_rows(pa.concat_tables(found), prompts, scores)


def _present(found: set[str], policies: dict[str, str], inputs: dict[str, Artifact]) -> list[str]:
    """Policies that answered. The teacher may be absent (its text was imported); nobody else may."""
    absent = [name for name in policies if name not in found and name != TEACHER]
    if absent:
        where = inputs["responses" if absent[0] == INITIAL else "eval_responses"].path
        raise PladError(f"evaluate: {where} holds no response of {', '.join(absent)} on the evaluation prompts")
    return [name for name in policies if name in found]
