"""The training loop. It reads what an objective needs and never its name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from plad_ray.config import Training
from plad_ray.errors import PladError
from plad_ray.objectives import Objective
from plad_ray.train import deepspeed as ds
from plad_ray.train.layout import Batch, Layout, Row, filler
from plad_ray.train.logprobs import chunk_count
from plad_ray.train.rollouts import Rollouts
from plad_ray.train.sampler import Plan, deal, stateless_seed
from plad_ray.train.schedule import learning_rate

#: Steps whose metrics are reduced and written together.
FLUSH = 10
#: Seconds between two looks whether a machine is to be taken away, which spot nodes say half a minute before or more.
LOOK_S = 5.0


@dataclass
class Run:
    """One training run on one worker. ``lines`` are the metric lines so far, ``start`` the first step to do."""

    engine: Any
    objective: Objective
    rows: list[Row]
    plan: Plan
    training: Training
    micro_batch: int
    rank: int
    workers: int
    vocabulary: int
    pad: int
    layout: Layout
    rollouts: Rollouts | None = None
    start: int = 0
    lines: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lengths = np.array([self.layout.length(row) for row in self.rows])

    def resume(self, step: int, lines: list[dict[str, float]]) -> None:
        """Go on after ``step`` steps, whose metric lines are ``lines``."""
        self.start, self.lines = step, lines


def train(
    run: Run,
    at_checkpoint: Callable[[int], None],
    every: int,
    progress: Callable[..., None],
    track: Callable[[list[dict[str, float]]], None] = lambda lines: None,
    preempted: Callable[[], bool] = lambda: False,
) -> None:
    """Do the steps left. ``at_checkpoint(step)`` is called on all workers after every ``every`` steps but the last, and
    once when ``preempted``, which all are asked together every few steps; ``track(lines)`` on rank 0 whenever there are new
    metric lines, with all of them.

    Raises PladError when the loss stops being finite.
    """
    waiting: list[_Step] = []
    total = run.plan.steps
    look, leaving = checkpoint_steps(FLUSH, run.objective), False
    began = time.monotonic() - (run.lines[-1]["seconds"] if run.lines else 0.0)
    for step in range(run.start, total):
        waiting.append(one_step(run, step, began))
        done = step + 1
        checkpoint = done % every == 0 and done < total
        if not leaving and done % look == 0 and done < total:
            leaving = preempted()
            checkpoint = checkpoint or leaving
        if len(waiting) == FLUSH or checkpoint or done == total:
            run.lines.extend(_lines(run, waiting))
            waiting = []
            look = checkpoint_steps(_steps_in(LOOK_S, run.lines), run.objective)
            if run.rank == 0:
                track(run.lines)
        if checkpoint:
            at_checkpoint(done)
        if run.rank == 0 and run.lines:
            last = run.lines[-1]
            progress(done, total, loss=last["loss"], tokens_per_s=_rate(run.lines))


def checkpoint_steps(every: int, objective: Objective) -> int:
    """``every``, rounded up to where a window of fresh samples ends: samples come from weights that are then gone."""
    window = objective.rollout.every if objective.rollout is not None else 1
    return -(-every // window) * window


def _steps_in(seconds: float, lines: list[dict[str, float]]) -> int:
    """How many steps take so long, by the last of ``lines``; the same on all workers, as these are."""
    first, last = lines[-min(FLUSH + 1, len(lines))], lines[-1]
    spent = last["seconds"] - first["seconds"]
    return max(1, int(seconds * (last["step"] - first["step"]) / spent)) if spent > 0 else FLUSH


@dataclass
class _Step:
    """One step's metrics on the way to a line; tensors stay on the device until they are flushed."""

    step: int
    names: list[str]
    sums: Tensor  # [len(names), 2] sum and count of this worker
    grad_norm: Tensor | float
    rate: float
    seconds: float  # since the run began, over all its attempts


def one_step(run: Run, step: int, began: float) -> _Step:
    """Forward and backward over this worker's micro-batches, then one optimizer update."""
    rate = learning_rate(run.training, step, run.plan.steps)
    ds.set_learning_rate(run.engine, rate)
    batches = batches_of(run, step)
    counts = global_counts(run, batches)
    collected: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for micro, batch in enumerate(batches):
        torch.manual_seed(stateless_seed(run.plan.seed, step, micro, run.rank))
        values = run.engine(batch) | batch.known
        terms = run.objective.loss(values, batch.mask_BKT, batch.scores_BK)
        loss = torch.stack([terms.sums[name] / counts[name] for name in counts]).sum()
        ds.backward(run.engine, loss, last=micro == len(batches) - 1, workers=run.workers)
        one = torch.ones_like(loss.detach())
        share = one / (len(batches) * run.workers)  # shares of the global loss add up to it
        collected.setdefault("loss", []).append((loss.detach(), share))
        collected.setdefault("num_tokens", []).append((one * batch.tokens, share))
        for name, pair in terms.metrics.items():
            collected.setdefault(name, []).append(pair)
    norm = ds.step(run.engine, run.training)
    sums = torch.stack(
        [torch.stack([torch.stack(pair).float() for pair in pairs]).sum(0) for pairs in collected.values()]
    )
    return _Step(step, list(collected), sums.detach(), norm, rate, time.monotonic() - began)


def batches_of(run: Run, step: int) -> list[Batch]:
    """This worker's micro-batches of a step, on its device; a share without rows becomes one filler row."""
    shares = _shares(run, step)
    rollouts = run.rollouts if run.rollouts is not None and run.rollouts.wanted(step) else None
    if run.rollouts is not None and run.rollouts.starts_window(step):
        run.rollouts.draw(_asked(run, step))
    batches = []
    for dealt in shares:
        positions = max(sum(_positions(run, i, rollouts) for i in share) for share in dealt)
        if rollouts is None:
            rows = [run.rows[i] for i in dealt[run.rank]] or [filler(run.rows[0])]
        else:
            rows = [rollouts.row(step, i, run.rows[i]) for i in dealt[run.rank]] or [rollouts.filler(run.rows[0])]
        batch = run.layout.collate(rows, run.pad, chunk_count(positions, run.vocabulary, run.engine.device))
        batches.append(batch.to(run.engine.device))
    return batches


def _shares(run: Run, step: int) -> list[list[list[int]]]:
    return deal(run.plan.step_rows(step), run.lengths, run.workers, run.micro_batch)


def _positions(run: Run, index: int, rollouts: Rollouts | None) -> int:
    """Response tokens of a row; where it gets a fresh sample, the most that it can get: other workers' are not known."""
    row = run.rows[index]
    if rollouts is None:
        return row.positions
    return rollouts.max_tokens + (0 if rollouts.settings.replaces else row.positions)


def _asked(run: Run, step: int) -> list[list[tuple[int, int, Row]]]:
    """This worker's rows of the window that begins at ``step``, by micro-batch."""
    rollouts = run.rollouts
    assert rollouts is not None
    steps = [s for s in range(step, min(step + rollouts.settings.every, run.plan.steps)) if rollouts.wanted(s)]
    return [[(s, i, run.rows[i]) for i in dealt[run.rank]] for s in steps for dealt in _shares(run, s)]


def global_counts(run: Run, batches: list[Batch]) -> dict[str, Tensor]:
    """Each term's denominator, summed over the step's micro-batches on all workers; known before any forward pass."""
    local = [run.objective.counts(batch.mask_BKT) for batch in batches]
    names = list(local[0])
    summed = torch.stack([torch.stack([counts[name] for name in names]) for counts in local]).sum(0)
    if run.workers > 1:
        dist.all_reduce(summed)
    return dict(zip(names, summed.clamp(min=1), strict=True))


def dry_step(run: Run) -> None:
    """A step of zero gradient, which makes the optimizer create its state."""
    row = run.rows[0]
    nobody = filler(row) if run.rollouts is None or row.candidates else run.rollouts.filler(row)
    batch = run.layout.collate([nobody], run.pad, 1).to(run.engine.device)
    values = run.engine(batch)
    nothing = torch.stack([value.sum() for value in values.values()]).sum() * 0.0
    ds.backward(run.engine, nothing, last=True, workers=run.workers)
    ds.step(run.engine, run.training)


def _lines(run: Run, steps: list[_Step]) -> list[dict[str, float]]:
    """Metric lines of ``steps``: one reduction over workers and one transfer for all of them."""
    measured = torch.stack([step.sums for step in steps])
    clocks = torch.tensor([[[step.seconds, 1.0]] for step in steps], device=measured.device)
    sums = torch.cat([measured, clocks], 1)
    if run.workers > 1:
        dist.all_reduce(sums)
    norms = torch.stack([torch.as_tensor(step.grad_norm, dtype=torch.float32, device=sums.device) for step in steps])
    lines = []
    tokens = run.lines[-1]["num_tokens"] if run.lines else 0.0
    for step, pairs, norm in zip(steps, sums.tolist(), norms.tolist(), strict=True):
        values = {
            name: total / count if count else math.nan
            for name, (total, count) in zip([*step.names, "seconds"], pairs, strict=True)
        }
        if not math.isfinite(values["loss"]):
            raise PladError(
                f"the loss is {values['loss']} at step {step.step + 1}: the run has diverged; lower learning_rate or "
                "max_grad_norm"
            )
        tokens += values.pop("num_tokens")
        line = {"step": step.step + 1, "epoch": round(run.plan.epoch(step.step), 6), "loss": values.pop("loss")}
        line |= {"lr": step.rate, "grad_norm": norm, "num_tokens": tokens, "seconds": round(values.pop("seconds"), 3)}
        line |= values
        lines.append({name: value for name, value in line.items() if not math.isnan(value)})
    return lines


def _rate(lines: list[dict[str, float]], window: int = 20) -> float:
    """Tokens a second over the last lines."""
    first, last = lines[-min(window, len(lines))], lines[-1]
    spent = last["seconds"] - first["seconds"]
    return (last["num_tokens"] - first["num_tokens"]) / spent if spent > 0 else 0.0
