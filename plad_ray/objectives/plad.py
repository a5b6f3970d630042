"""PLaD's calibration losses (arXiv 2406.02886, Eq. 4 and 5). No reference model, no teacher logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plad_ray.errors import PladError
from plad_ray.objectives.base import Reduction, Values, check_not_negative, check_reduction, sequence_logps
from plad_ray.objectives.pairwise import PairLoss


@dataclass(frozen=True)
class _Hinge(PairLoss):
    """max(0, margin − log P(y₊|x) + log P(y₋|x)), plus ``sft_weight`` × NLL of y₊ per token (0 in the paper)."""

    logp_reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reduction(self.logp_reduction, "distill.objective")

    @property
    def hinged(self) -> bool:
        return True

    def margins(self, scores_BK: Tensor) -> Tensor | float:
        raise NotImplementedError

    def compare(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> tuple[Tensor, Tensor]:
        logps_BK = sequence_logps(values["logp"], mask_BKT, self.logp_reduction)
        return (self.margins(scores_BK) - logps_BK[:, 0] + logps_BK[:, 1]).clamp(min=0), logps_BK


@dataclass(frozen=True)
class PladRank(_Hinge):
    """Ranking calibration, Eq. 4: max(0, β − log P(y₊|x) + log P(y₋|x)), β = ``margin``.

    The margin is in nats of whichever reduction is chosen: 1 for a sum over 30 tokens is 0.03 a token, for a mean it is
    thirty times stricter. With ``mean`` none is assumed: give one.
    """

    margin: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin is None:
            if self.logp_reduction == "mean":
                raise PladError("distill.objective.margin must be given with logp_reduction mean (0.01 to 1 are usual)")
            object.__setattr__(self, "margin", 1.0)
        check_not_negative(self, "margin")

    def margins(self, scores_BK: Tensor) -> float:
        assert self.margin is not None
        return self.margin


@dataclass(frozen=True)
class PladMargin(_Hinge):
    """Margin calibration, Eq. 5: max(0, c·[s(y₊;x) − s(y₋;x)] − log P(y₊|x) + log P(y₋|x)), c = ``margin_scale``.

    s is the scorer's value, never differentiated. A gap may be negative; ``clamp_gap`` cuts it at 0, which leaves the
    plain ranking loss with margin 0 for such a pair.
    """

    needs_scores: ClassVar[bool] = True
    margin_scale: float = 1.0
    clamp_gap: bool = False

    def margins(self, scores_BK: Tensor) -> Tensor:
        gap_B = self.margin_scale * (scores_BK[:, 0] - scores_BK[:, 1])
        return gap_B.clamp(min=0) if self.clamp_gap else gap_B
