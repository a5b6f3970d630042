"""The whole story: which stage feeds which.

prompts ─► SFT of teacher and student ─► responses ─► scores ─► pairs ─► distill ─► responses of the distilled
─► scores ─► evaluation ─► report
"""

from __future__ import annotations

from dataclasses import dataclass

from plad_ray import parts
from plad_ray.config import Experiment
from plad_ray.parts.common import present
from plad_ray.stages import Stage, closure


@dataclass(frozen=True)
class Plan:
    """All stages of an experiment by name, inputs first, and the last one."""

    stages: dict[str, Stage]
    report: Stage

    @property
    def targets(self) -> list[Stage]:
        return [self.report]


def before_distillation(exp: Experiment) -> parts.Made:
    """What all training runs of ``exp`` share: prompts, tuned teacher and student, their texts and scores."""
    prompts = parts.prompts(exp)
    teacher = parts.sft(exp, "teacher", prompts)
    student = parts.sft(exp, "student", prompts)
    responses = parts.generate_bases(exp, prompts, teacher, student)
    imported = parts.imported_responses(exp, prompts)
    scores = parts.score(exp, "scores", prompts, responses, imported)
    texts = {"prompts": prompts, "responses": responses, "imported": imported, "scores": scores}
    return parts.Made(prompts, teacher, (student,) if student else (), present(texts))


def plan(exp: Experiment) -> Plan:
    """The graph of ``exp``. Hashes local inputs; raises PladError for files and models that are not there."""
    arms = exp.arms()
    made = before_distillation(exp)
    prompts, teacher, student = made.prompts, made.teacher, made.initial
    responses, scores = made.texts["responses"], made.texts.get("scores")
    tables = parts.tables(exp, arms, made)
    adapters = parts.adapters(exp, arms, made, tables)

    eval_responses = parts.generate_arms(exp, "eval-responses", adapters, prompts, student, exp.evaluate.split)
    eval_scores = parts.score(exp, "eval-scores", prompts, eval_responses)
    evaluation = parts.evaluate(exp, prompts, responses, scores, eval_responses, eval_scores)
    report = parts.report(
        exp, prompts, teacher, student, responses, scores, tables, adapters, eval_responses, evaluation
    )
    return Plan(_named(report), report)


def _named(last: Stage) -> dict[str, Stage]:
    return {stage.name: stage for stage in closure([last])}
