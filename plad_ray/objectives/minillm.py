"""MiniLLM (Gu et al., arXiv 2306.08543): reverse KL on student samples by policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    rows,
)
from plad_ray.objectives.divergences import kl, log_probs


@dataclass(frozen=True)
class MiniLlm(Objective):
    """min KL[q‖p] over y ∼ p̃ = α·p + (1 − α)·q a token (α = ``teacher_mix``), p the teacher, q the student:

    - single step: Σ_t KL(q(·|y_<t)‖p(·|y_<t)), exact over the vocabulary;
    - long horizon: −Σ_t w_t·R_{t+1}·log q(y_t), R_{t+1} = Σ_{t'>t} r_{t'} with r_t = log p(y_t) − log q(y_t), divided by
      the T − t − 1 rewards it sums when ``length_normalization``; w_t = q(y_t)/p̃(y_t). No gradient through w and R;
    - ``lm_weight`` × the NLL of the reference a token, where it is not 0 (the paper's pre-training loss; its data are
      here the human texts of the distillation prompts), or ``sft_weight`` × that of the pair's chosen text (the
      teacher's), as plad_rank has it. With both at 0 neither text is needed.

    ``clip`` is PPO's: min(w·R, clamp(w, 1 ± clip)·R), w being differentiated in place of log q, which is the same inside
    the range. ``reward_clip`` bounds |r_t|. None switches either off. Every term is the mean over its tokens of the step.

    Where the official code differs from the paper: its advantage includes r_t (paper, and here: R_{t+1}, since r_t is in
    the single-step term already), is discounted by 0.95, doubled and whitened over the batch (here: none of these); it
    makes four updates a batch of samples (here: ``rollout_every`` steps use one window of samples, w then makes up for the
    difference). As in the code and unlike the paper, the single-step term is not weighted by w: it does not depend on y_t,
    so w_t, whose mean given the prefix is 1, would only add variance. The authors train without dropout:
    set ``lora.dropout`` to 0, or w holds the noise of it.
    """

    teacher_mix: float = 0.2
    length_normalization: bool = True
    clip: float | None = 0.2
    reward_clip: float | None = 100.0
    lm_weight: float = 0.0
    sft_weight: float = 0.0
    rollout_every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.teacher_mix < 1:
            raise PladError(f"distill.objective.teacher_mix must lie in [0, 1) (given: {self.teacher_mix})")
        check_not_negative(self, "lm_weight", "sft_weight")
        if self.lm_weight and self.sft_weight:
            raise PladError(
                "distill.objective.lm_weight is on the reference and sft_weight on the teacher's text, and a training row "
                f"holds one of them (given: {self.lm_weight} and {self.sft_weight}); set one to 0"
            )
        for name in ("clip", "reward_clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise PladError(f"distill.objective.{name} must be positive, or null for none (given: {value})")

    @property
    def trains_on(self) -> Table:  # type: ignore[override]
        return "chosen" if self.sft_weight else "references"

    @property
    def nll_weight(self) -> float:
        return self.lm_weight + self.sft_weight

    @property
    def logits_of(self) -> tuple[str, ...]:
        return ("teacher",)

    @property
    def rollout(self) -> Rollout:
        return Rollout(teacher_mix=self.teacher_mix, every=self.rollout_every, replaces=self.nll_weight == 0)

    def per_token(self, logits_NV: Tensor, frozen_NV: Mapping[str, Tensor], ids_N: Tensor) -> Values:
        p_NV, q_NV = log_probs(frozen_NV["teacher"]), log_probs(logits_NV)
        p_N, q_N = (x_NV.gather(-1, ids_N[:, None])[:, 0] for x_NV in (p_NV, q_NV))
        return {"logp": q_N, "teacher_logp": p_N, "reverse_kl": kl(q_NV, p_NV)}

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        tokens = mask_BKT[:, -1].sum().float()
        counts = {"single_step": tokens, "long_horizon": tokens}
        return counts | {"nll": mask_BKT[:, 0].sum().float()} if self.nll_weight else counts

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        mask_BT = mask_BKT[:, -1]
        logp_BT = values["logp"][:, -1]
        reward_BT = (values["teacher_logp"][:, -1] - logp_BT).detach() * mask_BT
        clipped_BT = reward_BT if self.reward_clip is None else reward_BT.clamp(-self.reward_clip, self.reward_clip)
        weight_BT = self.importance(logp_BT, values["sampled_logp"][:, -1])
        return_BT = self.returns(clipped_BT, mask_BT)
        single = (values["reverse_kl"][:, -1] * mask_BT).sum()
        sums = {"single_step": single, "long_horizon": -(self._surrogate(weight_BT, return_BT) * mask_BT).sum()}
        tokens = mask_BT.sum().float()
        metrics = {
            "reverse_kl": (single.detach(), tokens),
            "rewards/sampled": (reward_BT.sum(), rows(mask_BT).sum()),
            "importance": ((weight_BT.detach() * mask_BT).sum(), tokens),
            "lengths/sampled": lengths(mask_BT),
        }
        if self.nll_weight:
            nll, texts = nll_of_first(values, mask_BKT)
            sums["nll"] = self.nll_weight * nll
            metrics["nll"] = nll.detach(), texts
        return Terms(sums, metrics)

    def importance(self, logp_BT: Tensor, sampled_BT: Tensor) -> Tensor:
        """w_t = q(y_t)/p̃(y_t), differentiable in q. Samples of this very step and of q alone have w = 1 by definition,
        whatever rounding and dropout lie between drawing and scoring them."""
        on_policy = self.teacher_mix == 0 and self.rollout_every == 1
        return (logp_BT - (logp_BT.detach() if on_policy else sampled_BT)).exp()

    def returns(self, reward_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """R_{t+1}, or its mean a remaining token; 0 at the last token."""
        after_BT = _suffix_sum(reward_BT) - reward_BT
        if not self.length_normalization:
            return after_BT
        count_BT = mask_BT.to(reward_BT.dtype)
        return after_BT / (_suffix_sum(count_BT) - count_BT).clamp(min=1)

    def _surrogate(self, weight_BT: Tensor, return_BT: Tensor) -> Tensor:
        plain_BT = weight_BT * return_BT
        if self.clip is None:
            return plain_BT
        return plain_BT.minimum(weight_BT.clamp(1 - self.clip, 1 + self.clip) * return_BT)


def _suffix_sum(values_BT: Tensor) -> Tensor:
    """Σ_{t'≥t} of each position."""
    return values_BT.flip(-1).cumsum(-1).flip(-1)
