"""AlignDistil (arXiv 2503.02832): RLHF with a DPO reward as token-level distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from plad_ray.errors import PladError
from plad_ray.objectives.base import Objective, Rollout, Terms, Values, lengths, rows, sequence_logps
from plad_ray.objectives.divergences import kl, log_probs, tvd

EPSILON = 1e-3


@dataclass(frozen=True)
class AlignDistil(Objective):
    """L = (1/B) Σ_x (1/|y|) Σ_t β_t·KL(π_θ(·|y_<t) ‖ softmax(z*_t)), β_t = β0/α_t, β0 = ``dpo_beta``.

    ``variant`` says which teacher z* is made from the frozen models, which are trained first from the student's start:

    - ``adaptive`` (Eq. 16–17): z* = z_dpo + α_t·(z_dpo − z_reverse), α_t = ``ratio``·TVD_t(π_dpo, π_reverse) + 0.001;
    - ``contrastive`` (Eq. 15): the same with α = ``extrapolation`` everywhere;
    - ``dpo_reward`` (Theorem 1): z* = α·z_dpo + (1 − α)·z_reference, α = ``extrapolation`` = β0/β.

    The reverse DPO model prefers the rejected texts. y is the chosen text, or with ``on_policy`` a fresh sample (Eq. 18).
    Off policy the DPO reward β0·Σ_t log(π_dpo/π_other) of both texts of a pair is logged (rewards/*, as TRL names them).

    Two deviations from the official code, both towards the paper: TVD has its ½, which the code leaves out, so that the
    default ratios 20 (off policy) and 30 (on policy) are the code's 10 and 15; and the first response token is predicted
    too, which the code's unshifted mask (off policy) and slice (on policy) drop.
    """

    variant: Literal["adaptive", "contrastive", "dpo_reward"] = "adaptive"
    on_policy: bool = False
    dpo_beta: float = 0.1
    ratio: float | None = None
    extrapolation: float | None = None
    rollout_every: int = 1

    def __post_init__(self) -> None:
        used, unused = ("ratio", "extrapolation") if self.variant == "adaptive" else ("extrapolation", "ratio")
        if getattr(self, unused) is not None:
            raise PladError(f"distill.objective.{unused} has no part in variant {self.variant}; give {used}")
        if self.variant == "adaptive" and self.ratio is None:
            object.__setattr__(self, "ratio", 30.0 if self.on_policy else 20.0)
        if getattr(self, used) is None:
            raise PladError(
                f"distill.objective.extrapolation must be given with variant {self.variant} (1 to 5 are usual)"
            )
        for name in ("dpo_beta", used):
            if getattr(self, name) <= 0:
                raise PladError(f"distill.objective.{name} must be positive (given: {getattr(self, name)})")
        if not self.on_policy and self.rollout_every != 1:
            raise PladError("distill.objective.rollout_every: only on_policy draws samples; leave it out")

    @property
    def logits_of(self) -> tuple[str, ...]:
        return ("dpo", "reference" if self.variant == "dpo_reward" else "reverse_dpo")

    @property
    def rollout(self) -> Rollout | None:
        return Rollout(every=self.rollout_every, replaces=True) if self.on_policy else None

    def upstream(self) -> dict[str, dict[str, Any]]:
        dpo = {"name": "dpo", "beta": self.dpo_beta}
        sections = {"dpo": {"objective": dpo}, "reverse_dpo": {"objective": {**dpo, "reverse": True}}}
        return {name: sections[name] for name in self.logits_of if name in sections}

    def per_token(self, logits_NV: Tensor, frozen_NV: Mapping[str, Tensor], ids_N: Tensor) -> Values:
        dpo_NV, other_NV = (log_probs(frozen_NV[name]) for name in self.logits_of)
        student_NV = log_probs(logits_NV)
        distance_N = tvd(dpo_NV, other_NV)
        alpha_N = self.alpha(distance_N)
        start_NV = other_NV if self.variant == "dpo_reward" else dpo_NV
        target_NV = (start_NV + alpha_N[:, None] * (dpo_NV - other_NV)).log_softmax(-1)
        divergence_N = kl(student_NV, target_NV)
        return {
            "weighted": self.dpo_beta / alpha_N * divergence_N,
            "reverse_kl": divergence_N.detach(),
            "alpha": alpha_N,
            "reward": self.dpo_beta * (dpo_NV - other_NV).gather(-1, ids_N[:, None])[:, 0],
        }

    def alpha(self, tvd_N: Tensor) -> Tensor:
        """The extrapolation α_t at each position."""
        if self.variant == "adaptive":
            assert self.ratio is not None
            return self.ratio * tvd_N + EPSILON
        assert self.extrapolation is not None
        return torch.full_like(tvd_N, self.extrapolation)

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"weighted_kl": rows(mask_BKT[:, 0]).sum()}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        mask_BT = mask_BKT[:, 0]
        loss = sequence_logps(values["weighted"][:, :1], mask_BKT[:, :1], "mean").sum()
        tokens = mask_BT.sum().float()
        metrics = {name: ((values[name][:, 0] * mask_BT).sum(), tokens) for name in ("reverse_kl", "alpha")}
        if self.on_policy:
            metrics["lengths/sampled"] = lengths(mask_BT)
        else:
            metrics |= _reward_metrics(values["reward"], mask_BKT)
        return Terms({"weighted_kl": loss}, metrics)


def _reward_metrics(reward_BKT: Tensor, mask_BKT: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What the DPO reward says of chosen and rejected text, per pair."""
    row_B = rows(mask_BKT)
    chosen_B, rejected_B = sequence_logps(reward_BKT, mask_BKT, "sum").unbind(1)
    named = {
        "rewards/chosen": chosen_B,
        "rewards/rejected": rejected_B,
        "rewards/margins": chosen_B - rejected_B,
        "rewards/accuracies": (chosen_B > rejected_B).float(),
    }
    return {name: ((value_B * row_B).sum(), row_B.sum()) for name, value_B in named.items()}
