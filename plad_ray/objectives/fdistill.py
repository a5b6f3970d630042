"""f-divergence distillation (Wen et al., arXiv 2307.15190), step by step on teacher text and fresh student samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from plad_ray.errors import PladError
from plad_ray.objectives.base import (
    Objective,
    Rollout,
    Table,
    Terms,
    Values,
    check_not_negative,
    lengths,
    nll_of_first,
    token_logps,
)
from plad_ray.objectives.divergences import kl, log_probs, mixture, tvd

#: The candidate each term is computed on: the teacher's text comes first, the fresh sample last.
PLACE = {"teacher_text": 0, "student_text": -1}


@dataclass(frozen=True)
class FDistill(Objective):
    """With p the teacher, q the student, y the teacher's text and y′ a fresh sample of q, at each step t:

    - ``kl``: KL(p‖q) on y; - ``rkl``: KL(q‖p) on y′;
    - ``js``: (1 − β)·KL(p‖m) on y + β·KL(q‖m) on y′, m = (1 − β)p + βq, β = ``beta`` (½ when not given: Eq. 8);
    - ``tvd``: ½·TVD(p, q) on y + ½·TVD(p, q) on y′, TVD = ½ Σ_v |p − q| (Eq. 10);

    plus ``sft_weight`` × NLL of y per token, as plad_rank has it (0 in the paper).

    Each term is the mean over its tokens of the step, as in the official code (the paper has sums). The gradient flows
    through q and m, never through the choice of y′. ``kl`` is written with the teacher's entropy, whose gradient is 0.
    β weighs the student-sample term, as in the official ``--beta`` (0.85 on XSum); it is 1 − β of GKD and TRL. The paper
    draws one plain sample a step; the official code draws by beam sampling with top-k 30, which is not followed.
    """

    trains_on: ClassVar[Table] = "chosen"
    divergence: Literal["kl", "rkl", "js", "tvd"] = "tvd"
    beta: float | None = None
    rollout_every: int = 1
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(self, "sft_weight")
        if self.beta is not None and self.divergence != "js":
            raise PladError(f"distill.objective.beta belongs to divergence js, not to {self.divergence}; leave it out")
        if self.beta is None and self.divergence == "js":
            object.__setattr__(self, "beta", 0.5)
        if self.beta is not None and not 0 < self.beta < 1:
            raise PladError(f"distill.objective.beta must lie between 0 and 1 (given: {self.beta}); use kl or rkl")
        if self.divergence == "kl" and self.rollout_every != 1:
            raise PladError("distill.objective.rollout_every: divergence kl draws no samples; leave it out")

    @property
    def logits_of(self) -> tuple[str, ...]:
        return ("teacher",)

    @property
    def rollout(self) -> Rollout | None:
        if self.divergence == "kl":
            return None
        return Rollout(every=self.rollout_every, replaces=self.divergence == "rkl" and not self.sft_weight)

    @property
    def terms(self) -> tuple[str, ...]:
        return {"kl": ("teacher_text",), "rkl": ("student_text",)}.get(self.divergence, tuple(PLACE))

    def per_token(self, logits_NV: Tensor, frozen_NV: Mapping[str, Tensor], ids_N: Tensor) -> Values:
        p_NV, q_NV = log_probs(frozen_NV["teacher"]), log_probs(logits_NV)
        values = self.divergences(p_NV, q_NV)
        return values | {"logp": token_logps(logits_NV, ids_N)} if self.sft_weight else values

    def divergences(self, p_NV: Tensor, q_NV: Tensor) -> Values:
        if self.divergence == "kl":
            return {"teacher_text": kl(p_NV, q_NV)}
        if self.divergence == "rkl":
            return {"student_text": kl(q_NV, p_NV)}
        if self.divergence == "tvd":
            half_N = 0.5 * tvd(p_NV, q_NV)
            return {"teacher_text": half_N, "student_text": half_N}
        assert self.beta is not None
        m_NV = mixture(q_NV, p_NV, self.beta)
        return {"teacher_text": (1 - self.beta) * kl(p_NV, m_NV), "student_text": self.beta * kl(q_NV, m_NV)}

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        counts = {name: mask_BKT[:, PLACE[name]].sum().float() for name in self.terms}
        return counts | {"nll": mask_BKT[:, 0].sum().float()} if self.sft_weight else counts

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        counts = self.counts(mask_BKT)
        sums = {name: (values[name] * mask_BKT)[:, PLACE[name]].sum() for name in self.terms}
        metrics = {f"{self.divergence}/{name}": (sums[name].detach(), counts[name]) for name in self.terms}
        if self.rollout is not None:
            metrics["lengths/sampled"] = lengths(mask_BKT[:, -1])
        if self.sft_weight:
            nll, tokens = nll_of_first(values, mask_BKT)
            sums["nll"] = self.sft_weight * nll
            metrics["nll"] = nll.detach(), tokens
        return Terms(sums, metrics)
