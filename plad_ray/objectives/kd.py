"""Word-level knowledge distillation (Hinton et al., arXiv 1503.02531), teacher-forced on a text that is there already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from plad_ray.errors import PladError
from plad_ray.objectives.base import Objective, Table, Terms, Values, nll_of_first, token_logps
from plad_ray.objectives.divergences import kl, log_probs


@dataclass(frozen=True)
class Kd(Objective):
    """L = (1 − κ)·CE + κ·T²·KL(p_T‖q_T), each the mean over the response tokens of the step (EOS counted).

    p_T, q_T = softmax(logits / T) of teacher and student at the same prefix of ``text``: the prompt's reference, or the
    pair's chosen text (the teacher's; CE is then SeqKD's loss). κ = ``kd_ratio`` (0.5 as MiniLLM's baseline has it,
    ``--kd-ratio``); T² keeps the gradient's scale whatever T. Needs the teacher's logits.
    """

    text: Literal["reference", "chosen"] = "reference"
    kd_ratio: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.kd_ratio <= 1:
            raise PladError(
                f"distill.objective.kd_ratio must lie in (0, 1] (given: {self.kd_ratio}); 0 is the objective sft"
            )
        if self.temperature <= 0:
            raise PladError(f"distill.objective.temperature must be positive (given: {self.temperature})")

    @property
    def trains_on(self) -> Table:  # type: ignore[override]
        return "chosen" if self.text == "chosen" else "references"

    @property
    def logits_of(self) -> tuple[str, ...]:
        return ("teacher",)

    def per_token(self, logits_NV: Tensor, frozen_NV: Mapping[str, Tensor], ids_N: Tensor) -> Values:
        p_NV, q_NV = (log_probs(z_NV, self.temperature) for z_NV in (frozen_NV["teacher"], logits_NV))
        return {"logp": token_logps(logits_NV, ids_N), "kl": kl(p_NV, q_NV)}

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        tokens = mask_BKT[:, 0].sum().float()
        return {"nll": tokens, "kl": tokens}

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        nll, tokens = nll_of_first(values, mask_BKT)
        divergence = (values["kl"][:, 0] * mask_BKT[:, 0]).sum()
        sums = {"nll": (1 - self.kd_ratio) * nll, "kl": self.kd_ratio * self.temperature**2 * divergence}
        return Terms(sums, {"nll": (nll.detach(), tokens), "kl": (divergence.detach(), tokens)})
