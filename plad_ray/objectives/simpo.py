"""SimPO (arXiv 2405.14734): a length-normalised preference loss without a reference model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from plad_ray.objectives.base import Values, check_not_negative, check_positive, sequence_logps
from plad_ray.objectives.pairwise import PairLoss


@dataclass(frozen=True)
class SimPO(PairLoss):
    """−log σ( β·log P(y₊|x)/|y₊| − β·log P(y₋|x)/|y₋| − γ ), γ = ``gamma_beta_ratio`` × β (Eq. 6).

    |y| counts tokens, EOS included. The smooth sibling of plad_rank on means. rewards/* are β·log P(y|x)/|y|.
    """

    beta: float = 2.0
    gamma_beta_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "beta")
        check_not_negative(self, "gamma_beta_ratio")

    def compare(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> tuple[Tensor, Tensor]:
        rewards_BK = self.beta * sequence_logps(values["logp"], mask_BKT, "mean")
        margin_B = rewards_BK[:, 0] - rewards_BK[:, 1]
        return -logsigmoid(margin_B - self.gamma_beta_ratio * self.beta), rewards_BK
