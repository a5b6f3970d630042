"""LiPO-λ: listwise preference optimization (arXiv 2402.01878)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from plad_ray.objectives.base import Objective, Table, Terms, Values, check_positive, rows
from plad_ray.objectives.listwise import better, list_metrics, present
from plad_ray.objectives.pairwise import log_ratios


@dataclass(frozen=True)
class Lipo(Objective):
    """Σ_{ψ_i > ψ_j} Δ_ij·log(1 + exp(−(s_i − s_j))), s_i = β·log π(y_i|x)/π_ref(y_i|x); mean over prompts (Eq. 8, 9).

    Δ_ij = |2^ψ_i − 2^ψ_j|·|1/log(1 + τ_i) − 1/log(1 + τ_j)|, τ_i the rank of y_i among its list by the current s (1 is the
    highest, the first of equals before the others), not differentiated. With two candidates: DPO times that weight.

    ψ_i ∈ [0, 1] is the mean over the other candidates j of P(y_i ≻ y_j), as in the paper, whose P comes from a pairwise
    ranker. Here, by ``labels``: ``sigmoid`` takes P = σ(r_i − r_j) of the scorer's r, so that r should be in logits, as
    classifiers give it; ``rank`` takes 1, ½ for equals, or 0, whatever the scale of r. rewards/* are s.
    """

    trains_on: ClassVar[Table] = "lists"
    needs_scores: ClassVar[bool] = True
    beta: float = 0.05
    labels: Literal["sigmoid", "rank"] = "sigmoid"

    def __post_init__(self) -> None:
        check_positive(self, "beta")

    @property
    def logps_of(self) -> tuple[str, ...]:
        return ("reference",)

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"lambda": rows(mask_BKT).sum()}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        present_BK = present(mask_BKT)
        psi_BK = self.psi(scores_BK, present_BK)
        s_BK = self.beta * log_ratios(values, mask_BKT)
        weights_BKK = lambda_weights(psi_BK, s_BK.detach(), present_BK)
        loss_BKK = softplus(s_BK[:, None, :] - s_BK[:, :, None]) * weights_BKK * better(scores_BK, present_BK)
        return Terms({"lambda": loss_BKK.sum()}, list_metrics(s_BK, values["logp"], mask_BKT, scores_BK))

    def psi(self, scores_BK: Tensor, present_BK: Tensor) -> Tensor:
        """Labels ψ [B, K] of the candidates that are there."""
        gap_BKK = scores_BK[:, :, None] - scores_BK[:, None, :]
        wins_BKK = gap_BKK.sigmoid() if self.labels == "sigmoid" else (gap_BKK.sign() + 1) / 2
        oneself_KK = torch.eye(scores_BK.shape[1], dtype=torch.bool, device=scores_BK.device)
        others_BKK = present_BK[:, None, :] & ~oneself_KK
        return (wins_BKK * others_BKK).sum(-1) / others_BKK.sum(-1).clamp(min=1)


def lambda_weights(psi_BK: Tensor, s_BK: Tensor, present_BK: Tensor) -> Tensor:
    """Δ [B, K, K] of LambdaLoss: difference of gains 2^ψ − 1 times difference of discounts 1/log(1 + τ)."""
    order_BK = s_BK.masked_fill(~present_BK, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank_BK = order_BK.argsort(dim=1) + 1
    discount_BK = 1 / (1 + rank_BK).float().log()
    gain_BK = 2**psi_BK
    return (gain_BK[:, :, None] - gain_BK[:, None, :]).abs() * (discount_BK[:, :, None] - discount_BK[:, None, :]).abs()
