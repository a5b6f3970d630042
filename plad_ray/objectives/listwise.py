"""What losses over every candidate of a prompt share. Shapes as in base; a row may have fewer than K candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from plad_ray.objectives.base import preference_metrics, rows


def present(mask_BKT: Tensor) -> Tensor:
    """[B, K] whether there is such a candidate."""
    return mask_BKT.any(-1)


def better(labels_BK: Tensor, present_BK: Tensor) -> Tensor:
    """[B, K, K] at (i, j): both candidates are there and i has the higher label."""
    both = present_BK[:, :, None] & present_BK[:, None, :]
    return both & (labels_BK[:, :, None] > labels_BK[:, None, :])


def best_and_worst(labels_BK: Tensor, present_BK: Tensor) -> Tensor:
    """[B, 2] the candidates with the highest and the lowest label, the first of equals."""
    best_B = labels_BK.masked_fill(~present_BK, -torch.inf).argmax(1)
    worst_B = labels_BK.masked_fill(~present_BK, torch.inf).argmin(1)
    return torch.stack([best_B, worst_B], 1)


@torch.no_grad()
def list_metrics(
    rewards_BK: Tensor, values_BKT: Tensor, mask_BKT: Tensor, labels_BK: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """TRL's names with the best candidate by label as chosen and the worst as rejected; ``rewards/list_accuracies`` is
    the share of a list's pairs with different labels that the rewards order alike, averaged over lists."""
    present_BK = present(mask_BKT)
    better_BKK = better(labels_BK, present_BK)
    right_BKK = better_BKK & (rewards_BK[:, :, None] > rewards_BK[:, None, :])
    pairs_B = better_BKK.sum((1, 2))
    share_B = right_BKK.sum((1, 2)) / pairs_B.clamp(min=1)
    metrics = preference_metrics(rewards_BK, values_BKT, mask_BKT, best_and_worst(labels_BK, present_BK))
    metrics["rewards/list_accuracies"] = share_B.sum(), (pairs_B > 0).float().sum()
    metrics["candidates"] = present_BK.sum().float(), rows(mask_BKT).sum()
    return metrics
