"""An objective that is no part of the package, as a user would write one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plad_ray.objectives import Objective, Terms, Values
from plad_ray.objectives.base import token_logps


@dataclass(frozen=True)
class Pull(Objective):
    """Mean over the chosen tokens of strength · (log q − log p)², p a student that was distilled first (``ahead``)."""

    strength: float = 1.0

    @property
    def logits_of(self) -> tuple[str, ...]:
        return ("ahead",)

    @property
    def logps_of(self) -> tuple[str, ...]:
        return ("reference",)

    def upstream(self) -> dict[str, dict[str, Any]]:
        return {"ahead": {"objective": {"name": "plad_rank", "margin": 3.0}, "epochs": 4}}

    def per_token(self, logits_NV: Tensor, frozen_NV: Mapping[str, Tensor], ids_N: Tensor) -> Values:
        return {"logp": token_logps(logits_NV, ids_N), "ahead": token_logps(frozen_NV["ahead"], ids_N)}

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"pull": mask_BKT[:, 0].sum().float()}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        mask_BT = mask_BKT[:, 0].float()
        gap_BT = (values["logp"] - values["ahead"])[:, 0] * mask_BT
        with torch.no_grad():
            drift_BT = (values["logp"] - values["reference_logp"])[:, 0].abs() * mask_BT
        return Terms({"pull": self.strength * gap_BT.square().sum()}, {"drift": (drift_BT.sum(), mask_BT.sum())})
