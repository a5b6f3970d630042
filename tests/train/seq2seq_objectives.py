"""Objectives that need what no built-in one of this test does: a frozen teacher's logits, a frozen reference's log-probs,
fresh samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plad_ray.objectives import Objective, Values
from plad_ray.objectives.base import Rollout, Table, Terms


@dataclass(frozen=True)
class Distance(Objective):
    """Σ over tokens of (log-prob under the teacher − log-prob)²."""

    trains_on: ClassVar[Table] = "pairs"

    @property
    def logits_of(self) -> tuple[str, ...]:
        return ("teacher",)

    def per_token(self, logits_NV: Tensor, frozen_NV: Mapping[str, Tensor], ids_N: Tensor) -> Values:
        student, teacher = (
            x.float().log_softmax(-1).gather(1, ids_N[:, None])[:, 0] for x in (logits_NV, frozen_NV["teacher"])
        )
        return {"logp": student, "gap": teacher - student}

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"gap": mask_BKT.sum().float()}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        total = (values["gap"].square() * mask_BKT).sum()
        return Terms({"gap": total}, {"gap": (total.detach(), mask_BKT.sum())})


@dataclass(frozen=True)
class Against(Objective):
    """Hinge on the log-ratio to the reference, whose log-probs are computed before the first step."""

    @property
    def logps_of(self) -> tuple[str, ...]:
        return ("reference",)

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"hinge": mask_BKT.flatten(1).any(-1).sum().float()}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        ratio_BK = ((values["logp"] - values["reference_logp"]) * mask_BKT).sum(-1)
        margin_B = ratio_BK[:, 0] - ratio_BK[:, 1]
        total = ((1 - margin_B).clamp(min=0) * mask_BKT.flatten(1).any(-1)).sum()
        return Terms({"hinge": total}, {"ratio": (ratio_BK.detach().abs().sum(), torch.ones(()))})


@dataclass(frozen=True)
class Fresh(Objective):
    """Raises the log-prob of what the live student samples; tells how far it lies from that under sampling."""

    @property
    def rollout(self) -> Rollout:
        return Rollout(replaces=True)

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"nll": mask_BKT.sum().float()}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        moved = ((values["logp"].detach() - values["sampled_logp"]).abs() * mask_BKT).sum()
        total = -(values["logp"] * mask_BKT).sum()
        return Terms({"nll": total}, {"moved": (moved, mask_BKT.sum())})
