"""Adaptive model averaging (AMA, or HMA in later versions: arXiv 2309.06256, §6): a base weight for each part of the layers.

The weights are learned by proxy distillation: with their mean fixed, maximise the log-likelihood, under the averaged model,
of text that the distilled student wrote. Their K scalars are all that is trained; everything else is frozen, no dropout.

Shape suffixes: K parts; I, O, R as in ``lora``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from plad_ray.config import Averaging
from plad_ray.merge.lora import Adapter, Factors
from plad_ray.merge.weights import base_weights, middle_first
from plad_ray.objectives.sft import Sft
from plad_ray.stages import no_progress
from plad_ray.train.layout import Row, concatenate
from plad_ray.train.logprobs import ResponseValues, chunk_count
from plad_ray.train.sampler import Plan


class Blend:
    """Hooks that make a base model compute as the average of start and distilled, differentiable in ``weight_K``.

    ``part_of`` gives each adapted module's part; None (outside the layers) always gets ``base_weight``.
    """

    def __init__(
        self,
        model: nn.Module,
        start: Adapter | None,
        distilled: Adapter,
        part_of: Mapping[str, int | None],
        weight_K: Tensor,
        base_weight: float,
    ):
        self.weight_K = weight_K
        self.base_weight = base_weight
        for name, factors in distilled.modules.items():
            other = start.modules[name] if start is not None else None
            model.get_submodule(name).register_forward_hook(self._hook(factors, other, part_of[name]))

    def _hook(self, distilled: Factors, start: Factors | None, part: int | None) -> Callable[..., Tensor]:
        device = self.weight_K.device
        ends = [(f.a_RI.to(device), f.b_OR.to(device) * f.scaling) for f in (distilled, start) if f is not None]

        def add_updates(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            weight = self.base_weight if part is None else self.weight_K[part]
            updates = [linear(linear(inputs[0].float(), a_RI), b_OR) for a_RI, b_OR in ends]
            shares = zip((1 - weight, weight), updates, strict=False)
            return output + sum(share * update for share, update in shares).to(output.dtype)  # type: ignore[union-attr]

        return add_updates


@dataclass(frozen=True)
class Proxy:
    """What is learned on: the base model with its hooks, the rows (one text each), and how they are batched."""

    values: ResponseValues
    blend: Blend
    rows: list[Row]
    pad: int
    vocabulary: int
    micro_batch: int

    def shares(self, picked: list[int]) -> Iterator[Tensor]:
        """Micro-batch by micro-batch, its share of the mean NLL a token (EOS counted) of the rows ``picked``."""
        ordered = sorted(picked, key=lambda i: -self.rows[i].tokens)
        tokens = sum(self.rows[i].positions for i in ordered)
        for first in range(0, len(ordered), self.micro_batch):
            rows = [self.rows[i] for i in ordered[first : first + self.micro_batch]]
            device = self.blend.weight_K.device
            chunks = chunk_count(sum(row.positions for row in rows), self.vocabulary, device)
            batch = concatenate(rows, self.pad, chunks).to(device)
            yield Sft().loss(self.values(batch), batch.mask_BKT, batch.scores_BK).sums["nll"] / tokens

    @torch.no_grad()
    def loss(self, weight_K: Tensor) -> float:
        """Mean NLL a token of all rows under the average with ``weight_K``."""
        self.blend.weight_K = weight_K
        return sum(share.item() for share in self.shares(list(range(len(self.rows)))))


@dataclass(frozen=True)
class Learned:
    """The weights found, the loss of each step, and the loss of all rows with equal and with learned weights."""

    base_weights: list[float]
    curve: list[float]
    plain: float
    learned: float


def learn(
    proxy: Proxy, how: Averaging, runs: list[range], seed: int, progress: Callable[..., None] = no_progress
) -> Learned:
    """Learn one base weight for each of ``runs``; their mean is ``how.base_weight`` at every step."""
    device = proxy.blend.weight_K.device
    s_K = torch.zeros(len(runs), device=device, requires_grad=True)
    pull_K = how.l1 * middle_first(runs).to(device)
    optimizer = torch.optim.Adam([s_K], lr=how.learning_rate)
    plan = Plan(len(proxy.rows), how.batch_size, how.epochs, seed)

    def weights() -> Tensor:
        return base_weights(s_K, how.base_weight, how.epsilon)

    plain = proxy.loss(weights())
    curve = []
    for step in range(plan.steps):
        weight_K = weights()
        proxy.blend.weight_K = leaf_K = weight_K.detach().requires_grad_()  # micro-batches add up here, then go on to s
        curve.append(0.0)
        for share in proxy.shares(plan.step_rows(step)):
            share.backward()
            curve[-1] += share.item()
        assert leaf_K.grad is not None
        optimizer.zero_grad()
        (weight_K * leaf_K.grad + pull_K * (weight_K - how.base_weight).abs()).sum().backward()
        optimizer.step()
        progress(step + 1, plan.steps, "steps", loss=curve[-1])
    found_K = weights().detach()
    return Learned(found_K.tolist(), curve, plain, proxy.loss(found_K))
