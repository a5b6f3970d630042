"""Direct preference optimization (arXiv 2305.18290), its conservative form, and the same on reversed pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from plad_ray.errors import PladError
from plad_ray.objectives.base import Terms, Values, check_positive
from plad_ray.objectives.pairwise import PairLoss, log_ratios


@dataclass(frozen=True)
class Dpo(PairLoss):
    """−(1 − ε)·log σ(β·h) − ε·log σ(−β·h), h = log π(y₊|x)/π_ref(y₊|x) − log π(y₋|x)/π_ref(y₋|x); ε = ``label_smoothing``.

    Log-likelihoods are sums over tokens; π_ref is the student before distillation. ε > 0 is conservative DPO, for labels
    that are wrong with probability ε. rewards/* are the implicit rewards β·log π/π_ref. ``reverse`` swaps chosen and
    rejected throughout, metrics included: the model learns what not to say (reverse DPO of AlignDistil, arXiv 2503.02832).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    reverse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "beta")
        if not 0 <= self.label_smoothing < 0.5:
            raise PladError(
                f"distill.objective.label_smoothing must be at least 0 and below 0.5 (given: {self.label_smoothing})"
            )

    @property
    def logps_of(self) -> tuple[str, ...]:
        return ("reference",)

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return super().counts(mask_BKT.flip(1) if self.reverse else mask_BKT)

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        if self.reverse:
            values = {name: value_BKT.flip(1) for name, value_BKT in values.items()}
            mask_BKT, scores_BK = mask_BKT.flip(1), scores_BK.flip(1)
        return super().loss(values, mask_BKT, scores_BK)

    def compare(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> tuple[Tensor, Tensor]:
        rewards_BK = self.beta * log_ratios(values, mask_BKT)
        margin_B = rewards_BK[:, 0] - rewards_BK[:, 1]
        epsilon = self.label_smoothing
        return -(1 - epsilon) * logsigmoid(margin_B) - epsilon * logsigmoid(-margin_B), rewards_BK
