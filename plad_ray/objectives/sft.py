"""Maximum likelihood of one text a prompt: SFT on references, SeqKD on the teacher's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plad_ray.objectives.base import Objective, Terms


@dataclass(frozen=True)
class Sft(Objective):
    """L = −Σ_t log q(y_t | y_<t, x) / Σ tokens of the step, EOS counted. Reads the first candidate only."""

    candidates: ClassVar[int] = 1

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"nll": mask_BKT[:, 0].sum().float()}

    def loss(self, values_BKT: Tensor, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        nll = -(values_BKT[:, 0] * mask_BKT[:, 0]).sum()
        tokens = mask_BKT[:, 0].sum().float()
        with torch.no_grad():
            metrics = {"logps/chosen_token": (-nll, tokens)}
        return Terms({"nll": nll}, metrics)


@dataclass(frozen=True)
class SeqKD(Sft):
    """Sequence-level KD (Kim & Rush, arXiv 1606.07947): SFT's loss on the chosen text, which the teacher wrote."""
