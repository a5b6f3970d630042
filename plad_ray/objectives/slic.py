"""SLiC-HF: sequence likelihood calibration (arXiv 2305.10425; the losses are those of arXiv 2210.00045)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from plad_ray.objectives.base import Values, check_not_negative, sequence_logps
from plad_ray.objectives.pairwise import PairLoss


@dataclass(frozen=True)
class Slic(PairLoss):
    """max(0, δ − log P(y₊|x) + log P(y₋|x)) − λ·log P(y₊|x), δ = ``margin``, λ = ``sft_weight``; mean over pairs.

    The hinge is plad_rank's on summed log-likelihoods: SLiC-HF with λ = 0 is plad_rank. What differs is the second term,
    which here is a sum over each text's tokens, while plad_rank's ``sft_weight`` weighs a mean over the step's tokens. The
    regularised text is the pair's better one (the paper's "best ranked candidate" among its choices of target). The paper
    gives δ = 1 and no λ; 1 is ours. TRL's ``hinge`` is another loss: it has a reference model (rso with ``hinge_norm``).
    """

    nll_per: ClassVar[Literal["token", "text"]] = "text"
    margin: float = 1.0
    sft_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "margin")

    @property
    def hinged(self) -> bool:
        return True

    def compare(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> tuple[Tensor, Tensor]:
        logps_BK = sequence_logps(values["logp"], mask_BKT, "sum")
        return (self.margin - logps_BK[:, 0] + logps_BK[:, 1]).clamp(min=0), logps_BK
