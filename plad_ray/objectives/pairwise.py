"""What losses over one pair of texts share: their mean over the step, an SFT term, TRL's metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from plad_ray.objectives.base import (
    Objective,
    Terms,
    Values,
    check_not_negative,
    nll_of_first,
    preference_metrics,
    rows,
    sequence_logps,
)


@dataclass(frozen=True)
class PairLoss(Objective):
    """Mean of ``compare`` over the step's pairs, plus ``sft_weight`` × NLL of the chosen text (``nll_per``)."""

    #: the SFT term is averaged over the chosen tokens of the step, or over its texts (a sum over each one's tokens)
    nll_per: ClassVar[Literal["token", "text"]] = "token"
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(self, "sft_weight")

    @property
    def hinged(self) -> bool:
        """Whether a pair's loss is 0 once it is ordered well enough: the share that is not yet is then a metric."""
        return False

    def compare(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [B] of each pair, and the rewards [B, 2] of its texts, which the metrics show."""
        raise NotImplementedError

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        pairs = rows(mask_BKT).sum()
        if not self.sft_weight:
            return {"preference": pairs}
        return {"preference": pairs, "nll": mask_BKT[:, 0].sum().float() if self.nll_per == "token" else pairs}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        row_B = rows(mask_BKT)
        loss_B, rewards_BK = self.compare(values, mask_BKT, scores_BK)
        sums = {"preference": (loss_B * row_B).sum()}
        metrics = preference_metrics(rewards_BK, values["logp"], mask_BKT)
        if self.hinged:
            metrics["active"] = ((loss_B.detach() > 0).float() * row_B).sum(), row_B.sum()
        if self.sft_weight:
            nll, tokens = nll_of_first(values, mask_BKT)
            sums["nll"] = self.sft_weight * nll
            metrics["nll"] = nll.detach(), tokens
        return Terms(sums, metrics)


def log_ratios(values: Values, mask_BKT: Tensor) -> Tensor:
    """log π(y|x) − log π_ref(y|x) of each candidate [B, K], π_ref the student before distillation."""
    return sequence_logps(values["logp"] - values["reference_logp"], mask_BKT, "sum")
