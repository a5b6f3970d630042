"""Averaging a distilled student with its start."""

from __future__ import annotations

from typing import Any

from plad_ray.config import Averaging, Experiment
from plad_ray.errors import PladError
from plad_ray.parts.common import lazy, model_identity, present
from plad_ray.parts.generation import generate_proxy, score
from plad_ray.stages import Stage


def average(
    exp: Experiment, arm: str, distilled: Stage, how: Averaging, prompts: Stage, start: tuple[Stage, ...]
) -> Stage:
    """The adapter of ``arm`` averaged with the student before distillation (before the first of several rounds), whose
    stages are ``start``, oldest first. With parts, their weights are learned on text of the distilled student. Raises
    PladError for an arm that trains all weights."""
    _, section = exp.arms()[arm]
    if any(trained.method == "full" for trained in section.with_candidates()):
        raise PladError(
            f"arm {arm} has distill.method full, which makes no adapter: only adapters are averaged; use lora"
        )
    inputs = {"distilled": distilled} | {f"start/{i}": stage for i, stage in enumerate(start)}
    learning = {"epsilon", "learning_rate", "epochs", "batch_size", "l1", "top", "parts"}
    kept = {"base_weight", *(learning if how.parts else {"layers"})}
    config: dict[str, Any] = {
        "model": exp.student.model.model_dump(mode="json"),
        "averaging": how.model_dump(mode="json", include=kept),
    }
    if how.parts:
        answers = generate_proxy(exp, f"proxy-{arm}", prompts, [*start, distilled], how.prompts, how.temperature)
        scores = score(exp, f"proxy-scores-{arm}", prompts, answers) if how.top < 1 else None
        inputs |= present({"prompts": prompts, "responses": answers, "scores": scores})
        config["seed"] = exp.seed
    identity = {**config, "model": model_identity(exp.student.model)}
    config["at_workers"] = how.parts is not None
    train, run = exp.runtime.train, lazy("plad_ray.merge.stage")
    cpus, gpus = (train.cpus_per_worker, train.gpus_per_worker) if how.parts else (1.0, 0.0)
    return Stage(f"average-{arm}", run, config, inputs, identity, cpus=cpus, gpus=gpus, ray=how.parts is not None)
