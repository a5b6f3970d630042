"""What a run cost, by kind of stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plad_ray.report.lineage import Step

#: first matching beginning of a stage's name -> what it is called here, in the order of a run
KINDS = {
    "prompts": "prompts",
    "sft-": "supervised fine-tuning",
    "responses": "generation",
    "imported": "generation",
    "eval-responses": "generation for the evaluation",
    "dev-responses": "generation for the choice on dev",
    "scores": "scoring",
    "eval-scores": "scoring",
    "dev-scores": "scoring",
    "pairs": "pairs and lists",
    "lists": "pairs and lists",
    "rejection": "pairs and lists",
    "distill": "distillation",
    "select": "choice on dev",
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
        groups.setdefault(_kind(step), []).append(step)
    order = list(dict.fromkeys(KINDS.values()))
    kinds = sorted(groups, key=lambda kind: order.index(kind) if kind in order else len(order))
    total = sum(step.worker_hours for step in steps) or 1
    return [_cost(kind, groups[kind], total) for kind in kinds] + [_cost("all", steps, total)]


def _kind(step: Step) -> str:
    return next((kind for start, kind in KINDS.items() if step.stage.startswith(start)), step.stage)


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
