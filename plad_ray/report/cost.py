"""What a run cost, by kind of stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plad_ray.report.lineage import Step

#: beginning of a stage's name (the longest that fits) -> what it is called here, in the order of a run
KINDS = {
    "prompts": "prompts",
    "preferences": "prompts",
    "preference-prompts": "prompts",
    "sft-": "supervised fine-tuning",
    "responses": "generation",
    "imported": "generation",
    "eval-responses": "generation for the evaluation",
    "tax-responses": "generation for the evaluation",
    "second-": "generation for the evaluation",
    "samples": "generation for the evaluation",
    "dev-responses": "generation for the choice on dev",
    "scores": "scoring",
    "eval-scores": "scoring",
    "tax-scores": "scoring",
    "second-start-scores": "scoring",
    "second-responses-scores": "scoring",
    "sample-scores": "scoring",
    "dev-scores": "scoring",
    "preference-scores": "scoring",
    "pairs": "pairs and lists",
    "lists": "pairs and lists",
    "rejection": "pairs and lists",
    "distill": "distillation",
    "sweep": "sweep: its driver, waiting for the trials",
    "average": "averaging of models",
    "select": "choice on dev",
    "search": "choice on dev",
    "likelihoods": "likelihoods of texts",
    "judgements": "judging",
    "evaluate": "evaluation",
}


@dataclass(frozen=True)
class Cost:
    """Totals of one kind of stage; ``share`` is its part of all worker-hours."""

    kind: str
    stages: int
    read: int
    tokens: int
    seconds: float
    worker_hours: float
    gpu_hours: float
    share: float


def by_stage(steps: Sequence[Step]) -> list[Cost]:
    """A line for every kind that there is, in the order of a run, then the total."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(kind_of(step), []).append(step)
    order = list(dict.fromkeys(KINDS.values()))
    kinds = sorted(groups, key=lambda kind: order.index(kind) if kind in order else len(order))
    total = sum(step.worker_hours for step in steps) or 1
    return [_cost(kind, groups[kind], total) for kind in kinds] + [_cost("all", steps, total)]


def kind_of(step: Step) -> str:
    """What its stage does, in the words of ``KINDS``; the stage's own name where they have none."""
    return KINDS.get(max((start for start in KINDS if step.stage.startswith(start)), key=len, default=""), step.stage)


def _cost(kind: str, steps: Sequence[Step], total: float) -> Cost:
    hours = sum(step.worker_hours for step in steps)
    return Cost(
        kind,
        len(steps),
        sum(step.read or 0 for step in steps),
        sum(step.tokens or 0 for step in steps),
        sum(step.seconds for step in steps),
        hours,
        sum(step.gpu_hours for step in steps),
        hours / total,
    )
