"""RRHF: rank responses to align (arXiv 2304.05302)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plad_ray.objectives.base import Objective, Table, Terms, Values, check_not_negative, rows, sequence_logps
from plad_ray.objectives.listwise import best_and_worst, better, list_metrics, present


@dataclass(frozen=True)
class Rrhf(Objective):
    """w·Σ_{r_i > r_j} max(0, p_j − p_i) − p_best, p_i = log P(y_i|x)/|y_i|, w = ``rank_weight``; mean over prompts.

    r is the scorer's value, best the candidate with the highest; |y| counts tokens, EOS included. Sum over the list's
    pairs as in the official code, whose class default of w is 100 and whose published run has w = 1. It divides the
    second term by the padded length, the paper not at all; here each text is divided by its own. With two candidates it
    is plad_rank on means with margin 0 plus the NLL of the better text. No reference model.
    """

    trains_on: ClassVar[Table] = "lists"
    needs_scores: ClassVar[bool] = True
    rank_weight: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(self, "rank_weight")

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        lists = rows(mask_BKT).sum()
        return {"rank": lists, "nll": lists}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        present_BK = present(mask_BKT)
        means_BK = sequence_logps(values["logp"], mask_BKT, "mean")
        better_BKK = better(scores_BK, present_BK)
        hinge_BKK = (means_BK[:, None, :] - means_BK[:, :, None]).clamp(min=0) * better_BKK
        best_B = best_and_worst(scores_BK, present_BK)[:, :1]
        nll = -(means_BK.gather(1, best_B).squeeze(1) * rows(mask_BKT)).sum()
        metrics = list_metrics(means_BK, values["logp"], mask_BKT, scores_BK)
        metrics["active"] = (hinge_BKK.detach() > 0).sum().float(), better_BKK.sum().float()
        metrics["nll"] = nll.detach(), rows(mask_BKT).sum()
        return Terms({"rank": self.rank_weight * hinge_BKK.sum(), "nll": nll}, metrics)
