"""The evaluation stage: per-prompt rows and the table of teacher, initial student and distilled students."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.artifacts import Artifact
from plad_ray.config import Evaluate
from plad_ray.errors import PladError
from plad_ray.evaluate import frame
from plad_ray.evaluate.table import INITIAL, TEACHER, mean, summarise
from plad_ray.evaluate.texts import count_words
from plad_ray.stages import Job, Outcome

LABELS = {TEACHER: "teacher", INITIAL: "initial student"}


def run(job: Job) -> Outcome:
    """Stage: ``rows/`` (see ``frame.ROW``) and ``files/metrics.json`` (see ``table.summarise``)."""
    evaluate = Evaluate.model_validate(job.config["evaluate"])
    policies = {**LABELS, **{name: label for name, label in job.config["arms"].items()}}
    prompts = frame.prompts_of(job.inputs["prompts"], evaluate)
    responses = pa.concat_tables(
        [
            frame.responses_of(job.inputs["responses"], evaluate, list(LABELS), prompts),
            frame.responses_of(job.inputs["eval_responses"], evaluate, list(job.config["arms"]), prompts),
        ]
    )
    present = _present(responses, policies, job.inputs)
    scores = None
    if job.config["scorer"]:
        artifacts = [job.inputs[key] for key in ("scores", "eval_scores") if key in job.inputs]
        scores = frame.read_scores(artifacts, evaluate.split)
    rows = frame.build_rows(responses, prompts, scores)
    metrics = summarise(
        [frame.Frame.from_rows(rows)],
        {name: policies[name] for name in present},
        evaluate.temperatures,
        evaluate.bootstrap,
        evaluate.confidence,
        job.config["seed"],
    )
    expected = prompts.num_rows * len(present) * len(evaluate.temperatures)
    metrics |= {
        "split": evaluate.split,
        "scorer": bool(job.config["scorer"]),
        "without_reference": prompts["reference"].null_count,
        "reference_words": _mean_words(prompts),
    }
    job.out.store.delete(job.out.file("rows"))
    job.out.write_rows(rows)
    job.out.store.write_json(job.out.file("files/metrics.json"), metrics)
    dropped = {"no_response": expected - rows.num_rows} if expected > rows.num_rows else {}
    return Outcome(rows_in=expected, rows_out=rows.num_rows, dropped=dropped, metrics=metrics)


def _present(responses: pa.Table, policies: dict[str, str], inputs: dict[str, Artifact]) -> list[str]:
    """Policies that answered. The teacher may be absent (its text was imported); nobody else may."""
    found = set(pc.unique(responses["policy"]).to_pylist())
    absent = [name for name in policies if name not in found and name != TEACHER]
    if absent:
        where = inputs["responses" if absent[0] == INITIAL else "eval_responses"].path
        raise PladError(f"evaluate: {where} holds no response of {', '.join(absent)} on the evaluation prompts")
    return [name for name in policies if name in found]


def _mean_words(prompts: pa.Table) -> float | None:

    return mean(count_words(prompts["reference"]))
