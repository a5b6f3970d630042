"""Training steps against TRL's and against our own concatenation: ratios of medians of interleaved steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import limit, ours, trl_side
from benchmarks.clock import Time, middle, timed
from benchmarks.shape import Shape
from plad_ray.objectives import OBJECTIVES, Objective, build
from plad_ray.train.layout import CONCATENATED
from plad_ray.train.shared import SHARED


@dataclass(frozen=True)
class Line:
    """``theirs`` over ``ours``, and what it should be."""

    what: str
    theirs: Time
    ours: Time
    target: str

    def __str__(self) -> str:
        wall, cpu = self.theirs.wall / self.ours.wall, self.theirs.cpu / self.ours.cpu
        seconds = f"{self.theirs.wall:.2f} / {self.ours.wall:.2f}", f"{self.theirs.cpu:.2f} / {self.ours.cpu:.2f}"
        return f"| {self.what} | {seconds[0]} | {wall:.2f}× | {seconds[1]} | {cpu:.2f}× | {self.target} |"


HEADER = """| | wall s | ratio | CPU s | ratio | target |
|---|---|---|---|---|---|"""


def objective(name: str) -> Objective:
    """``name`` where there is such an objective, else PLaD's hinge, which costs the same a step."""
    return build(name, {}) if name in OBJECTIVES else build("plad_rank", {"logp_reduction": "mean", "margin": 0.5})


def against_cpo(shape: Shape, steps: int) -> list[Line]:
    """SimPO on both sides, and our step over its matrix products."""
    mine: list[Time] = []
    least: list[Time] = []
    step = ours.stepper(shape, objective("simpo"), SHARED)

    def between() -> None:
        mine.append(timed(step))
        least.append(limit.seconds(shape))

    with tempfile.TemporaryDirectory() as folder:
        clock = trl_side.cpo(shape, steps, Path(folder), between)
    return [
        Line("TRL CPOTrainer(simpo) / ours", middle(clock.times), middle(mine), "≥ 2.7, aim 3"),
        Line("our step / its matrix products", middle(mine), middle(least), "≤ 1.35, aim 1.2"),
    ]


def against_dpo(shape: Shape, steps: int, precompute: bool) -> list[Line]:
    mine: list[Time] = []
    step = ours.stepper(shape, objective("dpo"), SHARED)
    with tempfile.TemporaryDirectory() as folder:
        clock = trl_side.dpo(shape, steps, Path(folder), lambda: mine.append(timed(step)), precompute)
    what = "TRL DPOTrainer, reference precomputed / ours" if precompute else "TRL DPOTrainer / ours"
    return [Line(what, middle(clock.times), middle(mine), "≥ 2.5" if precompute else "≥ 5")]


def four_candidates(shape: Shape, steps: int) -> list[Line]:
    """Shared prompts against our own concatenation, 4 candidates a prompt."""
    four = replace(shape, candidates=4)
    loss = build("plad_rank", {"logp_reduction": "mean", "margin": 0.5})
    steppers: dict[str, Callable[[], None]] = {
        "shared": ours.stepper(four, loss, SHARED),
        "trimmed": ours.stepper(four, loss, CONCATENATED),
        "full": ours.full_logits_stepper(four, loss, CONCATENATED),
    }
    times: dict[str, list[Time]] = {name: [] for name in steppers}
    for _ in range(steps):
        for name, step in steppers.items():
            times[name].append(timed(step))
    shared, trimmed, full = (middle(times[name]) for name in ("shared", "trimmed", "full"))
    return [
        Line("4 candidates: concatenated, trimmed logits / shared", trimmed, shared, "≥ 2.5"),
        Line("4 candidates: concatenated, full logits / shared", full, shared, "≥ 4"),
    ]
