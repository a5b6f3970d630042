"""Maximum likelihood of one text a prompt: SFT on references, SeqKD on the teacher's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plad_ray.objectives.base import Objective, Table, Terms, Values, nll_of_first


@dataclass(frozen=True)
class Sft(Objective):
    """L = −Σ_t log q(y_t | y_<t, x) / Σ tokens of the step, EOS counted. On the human text of the distillation
    prompts it is Table 1's SFT row."""

    trains_on: ClassVar[Table] = "references"

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        return {"nll": mask_BKT[:, 0].sum().float()}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        nll, tokens = nll_of_first(values, mask_BKT)
        return Terms({"nll": nll}, {"logps/chosen_token": (-nll.detach(), tokens)})


@dataclass(frozen=True)
class SeqKD(Sft):
    """Sequence-level KD (Kim & Rush, arXiv 1606.07947): SFT's loss on the chosen text, which the teacher wrote."""

    trains_on: ClassVar[Table] = "chosen"
