"""The training stage: SFT on references, or distillation on pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from plad_ray.errors import PladError
from plad_ray.stages import Job, Outcome

logger = logging.getLogger(__name__)


def run(job: Job, callbacks: Sequence[Any] = ()) -> Outcome:
    """config {"kind": "sft" | "distill", "model", "model_identity", "training", "seed"}; inputs {"prompts"} (sft) or
    {"pairs"} (distill; "prompts" too where ``distill.prompts`` is set), and "base/0", "base/1", … the artifacts that fold
    onto the model.

    Writes files/: a PEFT adapter or a model folder, and metrics.jsonl with one JSON line a step. ``callbacks``: Ray
    Train's.
    """
    (outcome,) = _outcomes([job], callbacks)
    if isinstance(outcome, PladError):
        raise outcome
    return outcome


def run_in_turn(jobs: list[Job]) -> list[Outcome | PladError]:
    """As ``run``, for several trainings that one start of the workers does one after another."""
    return _outcomes(jobs)


def _outcomes(jobs: list[Job], callbacks: Sequence[Any] = ()) -> list[Outcome | PladError]:
    from plad_ray.train.launch import launch

    for job in jobs:
        _check(job)
    return [_outcome(job, result) for job, result in zip(jobs, launch(jobs, callbacks), strict=True)]


def _check(job: Job) -> None:
    from plad_ray.train import deepspeed
    from plad_ray.train.worker import sections

    model, _ = sections(job.config)
    deepspeed.config_file(job.runtime.train, model.dtype)
    if model.load_in_4bit and not job.runtime.train.gpus_per_worker:
        raise PladError("model.load_in_4bit needs GPUs: set runtime.train.gpus_per_worker, or leave 4-bit off")


def _outcome(job: Job, result: dict[str, Any]) -> Outcome | PladError:
    if "error" in result:
        return PladError(f"{job.stage}: {result['error']}")
    if result["note"]:
        logger.warning("%s: %s", job.stage, result["note"])
    return Outcome(result["rows_in"], result["rows_out"], result["dropped"], result["metrics"], result.get("seconds"))
