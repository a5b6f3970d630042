"""RSO: statistical rejection sampling optimization (arXiv 2309.06657). The sampling is ``pairs.rejection``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from plad_ray.objectives.base import Table, Values, check_positive, sequence_logps
from plad_ray.objectives.pairwise import PairLoss, log_ratios


@dataclass(frozen=True)
class Rso(PairLoss):
    """On pairs of texts drawn from π_r(y|x) ∝ π_sft(y|x)·exp(r(x,y)/β) and ordered by r; γ = ``gamma``, by ``kind``:

    sigmoid_norm −log σ(γ·h); hinge_norm max(0, 1 − γ·h); hinge max(0, 1 − γ·[log P(y₊|x) − log P(y₋|x)]), with h as in
    DPO and sums over tokens. hinge is γ × plad_rank with margin 1/γ; hinge_norm is TRL's DPO loss ``hinge``. rewards/*
    are what γ makes of each text: γ·log π/π_ref, or γ·log P for hinge.
    """

    trains_on: ClassVar[Table] = "rejection"
    needs_scores: ClassVar[bool] = True
    kind: Literal["sigmoid_norm", "hinge_norm", "hinge"] = "sigmoid_norm"
    gamma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "gamma")

    @property
    def logps_of(self) -> tuple[str, ...]:
        return () if self.kind == "hinge" else ("reference",)

    @property
    def hinged(self) -> bool:
        return self.kind != "sigmoid_norm"

    def compare(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.kind != "hinge"
        logps_BK = log_ratios(values, mask_BKT) if normed else sequence_logps(values["logp"], mask_BKT, "sum")
        rewards_BK = self.gamma * logps_BK
        margin_B = rewards_BK[:, 0] - rewards_BK[:, 1]
        return (1 - margin_B).clamp(min=0) if self.hinged else -logsigmoid(margin_B), rewards_BK
