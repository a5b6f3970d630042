"""Generalised knowledge distillation (Agarwal et al., arXiv 2306.13649)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plad_ray.errors import PladError
from plad_ray.objectives.base import Objective, Rollout, Table, Terms, Values, lengths
from plad_ray.objectives.divergences import jsd, log_probs


@dataclass(frozen=True)
class Gkd(Objective):
    """Token mean of JSD_β(p‖q) = β·KL(p‖m) + (1 − β)·KL(q‖m), m = βp + (1 − β)q, p the teacher, q the student.

    A share λ = ``lmbda`` of the steps is on fresh samples of the student (no gradient through sampling), the others on the
    teacher's text. Names and defaults are TRL's: β = 0 is the forward KL, β = 1 the reverse KL; ``temperature`` is that of
    the student's samples alone, the divergence is taken at 1. The paper's XSum setting is λ = β = ½, temperature 1.
    """

    trains_on: ClassVar[Table] = "chosen"
    lmbda: float = 0.5
    beta: float = 0.5
    temperature: float = 0.9
    rollout_every: int = 1

    def __post_init__(self) -> None:
        for name in ("lmbda", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise PladError(f"distill.objective.{name} must lie in [0, 1] (given: {getattr(self, name)})")

    @property
    def logits_of(self) -> tuple[str, ...]:
        return ("teacher",)

    @property
    def rollout(self) -> Rollout | None:
        if self.lmbda == 0:
            return None
        return Rollout(self.temperature, every=self.rollout_every, replaces=True, share=self.lmbda)

    def per_token(self, logits_NV: Tensor, frozen_NV: Mapping[str, Tensor], ids_N: Tensor) -> Values:
        return {"jsd": jsd(log_probs(frozen_NV["teacher"]), log_probs(logits_NV), self.beta)}

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"jsd": mask_BKT[:, 0].sum().float()}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        divergence = (values["jsd"][:, 0] * mask_BKT[:, 0]).sum()
        metrics = {"jsd": (divergence.detach(), mask_BKT[:, 0].sum().float()), "lengths": lengths(mask_BKT[:, 0])}
        return Terms({"jsd": divergence}, metrics)
