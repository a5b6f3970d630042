"""Token values by hand, as [B, K, T] tensors, and the loss that the loop would make of them."""

from __future__ import annotations

import torch
from torch import Tensor

from plad_ray.objectives import Objective, Terms

Row = tuple[list[float], ...]


def tensor(*rows: Row) -> tuple[Tensor, Tensor]:
    """Values [B, K, T] and their mask from the token values of each row's candidates; rows may differ in K."""
    K, T = max(map(len, rows)), max(len(candidate) for row in rows for candidate in row)
    values, mask = torch.zeros(len(rows), K, T), torch.zeros(len(rows), K, T, dtype=torch.bool)
    for b, row in enumerate(rows):
        for k, candidate in enumerate(row):
            values[b, k, : len(candidate)] = torch.tensor(candidate)
            mask[b, k, : len(candidate)] = True
    return values, mask


def batch(*rows: Row) -> tuple[Tensor, Tensor]:
    """As ``tensor``, the values with a gradient."""
    values, mask = tensor(*rows)
    return values.requires_grad_(), mask


def total(
    objective: Objective, values: Tensor, mask: Tensor, scores: list[list[float]] | None = None, **known: Tensor
) -> tuple[Tensor, Terms]:
    """The loss of one step of one micro-batch; ``known`` are further values, e.g. ``reference_logp``."""
    scores_BK = torch.zeros(values.shape[:2]) if scores is None else torch.tensor(scores)
    terms = objective.loss({"logp": values, **known}, mask, scores_BK)
    counts = objective.counts(mask)
    assert set(terms.sums) == set(counts)
    return torch.stack([terms.sums[name] / counts[name] for name in counts]).sum(), terms


def metrics(terms: Terms) -> dict[str, float]:
    return {name: float(total / count) for name, (total, count) in terms.metrics.items()}
