"""What an objective is: hyper-parameters as fields, needs as class data, two pure functions.

Shape suffixes: B prompts, K candidates a prompt, T response positions (EOS included), N positions of a chunk,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from plad_ray.errors import PladError

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class Terms:
    """What one micro-batch contributes.

    ``sums``: differentiable scalars by term; the loop adds ``sums[t] / global_counts[t]`` over terms, so micro-batch
    size, packing and worker count never change the gradient. ``metrics``: (sum, count) by name, averaged over the step.
    """

    sums: dict[str, Tensor]
    metrics: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Objective:
    """Base of all objectives. Subclasses are frozen dataclasses."""

    #: candidates a prompt the training table must hold, in order (2: chosen, rejected); the pair builder reads it.
    candidates: ClassVar[int] = 2
    #: whether ``scores_BK`` must be real numbers, so that a scorer has to be configured.
    needs_scores: ClassVar[bool] = False

    def per_token(self, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        """Value of each response position, [N]; called chunk by chunk. Default: fp32 log-prob of the token."""
        logits_NV = logits_NV.float()
        return logits_NV.gather(-1, ids_N[:, None]).squeeze(-1) - logits_NV.logsumexp(-1)

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        """Denominator of each term for these rows; depends on data alone, so it is known before the forward pass."""
        raise NotImplementedError

    def loss(self, values_BKT: Tensor, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        """Sums over whole sequences. Rows whose mask is empty are padding and contribute nothing."""
        raise NotImplementedError


def sequence_logps(values_BKT: Tensor, mask_BKT: Tensor, reduction: Reduction) -> Tensor:
    """log π(y|x) of each candidate [B, K]: the sum over its tokens, or the sum over its length (|y| with EOS)."""
    logps_BK = (values_BKT * mask_BKT).sum(-1)
    return logps_BK / mask_BKT.sum(-1).clamp(min=1) if reduction == "mean" else logps_BK


def rows(mask_BKT: Tensor) -> Tensor:
    """[B] 1.0 where the row is real, 0.0 where it is padding."""
    return mask_BKT.flatten(1).any(-1).to(torch.float32)


def check_reduction(value: str, where: str) -> None:
    if value not in ("sum", "mean"):
        raise PladError(f"{where}.logp_reduction must be sum or mean (given: {value!r})")


def pair_metrics(values_BKT: Tensor, mask_BKT: Tensor, reduction: Reduction) -> dict[str, tuple[Tensor, Tensor]]:
    """TRL's names. rewards/*: the (reduced) log-likelihoods that the loss compares; logps/*: sums; lengths in tokens."""
    row_B, n = rows(mask_BKT), rows(mask_BKT).sum()
    with torch.no_grad():
        reward_BK = sequence_logps(values_BKT, mask_BKT, reduction)
        logp_BK = sequence_logps(values_BKT, mask_BKT, "sum")
        length_BK = mask_BKT.sum(-1).float()
        margin_B = reward_BK[:, 0] - reward_BK[:, 1]
        named = {
            "rewards/chosen": reward_BK[:, 0],
            "rewards/rejected": reward_BK[:, 1],
            "rewards/margins": margin_B,
            "rewards/accuracies": (margin_B > 0).float(),
            "logps/chosen": logp_BK[:, 0],
            "logps/rejected": logp_BK[:, 1],
            "lengths/chosen": length_BK[:, 0],
            "lengths/rejected": length_BK[:, 1],
        }
        return {name: ((value_B * row_B).sum(), n) for name, value_B in named.items()}
