"""What an objective is: hyper-parameters as fields, needs as class data, two pure functions.

Shape suffixes: B prompts, K candidates a prompt, T response positions (EOS included), N positions of a chunk,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from plad_ray.errors import PladError

Reduction = Literal["sum", "mean"]
#: What one training row holds, in order of its candidates.
#: references: the human text of a distillation prompt; chosen: the first text of a pair; pairs: chosen, rejected;
#: lists: every drawn text with its score; rejection: pairs out of statistical rejection sampling.
Table = Literal["references", "chosen", "pairs", "lists", "rejection"]
#: By name, a value of each response token: [N] in a chunk, [B, K, T] in a batch.
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Terms:
    """What one micro-batch contributes.

    ``sums``: differentiable scalars by term; the loop adds ``sums[t] / global_counts[t]`` over terms, so micro-batch
    size, packing and worker count never change the gradient. ``metrics``: (sum, count) by name, averaged over the step.
    """

    sums: dict[str, Tensor]
    metrics: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rollout:
    """One fresh sample of the live student for each training row, appended to the row's candidates.

    Drawn from α·p_teacher + (1 − α)·q_student a token, α = ``teacher_mix`` (MiniLLM), every ``every`` optimizer steps for
    the rows of the steps until the next.
    """

    temperature: float = 1.0
    teacher_mix: float = 0.0
    every: int = 1
    #: the sample takes the place of the table's candidates
    replaces: bool = False
    #: share of optimizer steps that are trained on fresh samples; the others see the table alone
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise PladError(f"distill.objective: samples must be drawn every 1 or more steps (given: {self.every})")


@dataclass(frozen=True)
class Objective:
    """Base of all objectives. Subclasses are frozen dataclasses."""

    #: what a training row holds; the pair builder reads it. A property where a field decides.
    trains_on: ClassVar[Table] = "pairs"
    #: whether ``scores_BK`` must be real numbers, so that a scorer has to be configured.
    needs_scores: ClassVar[bool] = False

    @property
    def table(self) -> str:
        """The kind of table its rows lie in: training on the chosen text alone reads pairs."""
        return "pairs" if self.trains_on == "chosen" else self.trains_on

    @property
    def logits_of(self) -> tuple[str, ...]:
        """Frozen models whose logits ``per_token`` gets: ``teacher``, ``reference`` (the student before distillation), or
        a name of ``upstream``."""
        return ()

    @property
    def logps_of(self) -> tuple[str, ...]:
        """Frozen models of which the log-probs of a row's tokens suffice; ``loss`` gets them as ``<name>_logp``. They are
        computed once, before the first step, so they exclude ``rollout``."""
        return ()

    @property
    def rollout(self) -> Rollout | None:
        """How the live student is sampled, when fresh samples are needed."""
        return None

    @property
    def reads_texts(self) -> bool:
        """Whether some step trains on the table's own texts; otherwise its rows only lend their prompts."""
        return self.rollout is None or not self.rollout.replaces or self.rollout.share < 1

    def upstream(self) -> dict[str, dict[str, Any]]:
        """Frozen models that are trained first: by name, the partial ``distill`` section that makes each."""
        return {}

    def per_token(self, logits_NV: Tensor, frozen_NV: Mapping[str, Tensor], ids_N: Tensor) -> Values:
        """Values of each response position, [N] each; called chunk by chunk. Default: ``logp``, the fp32 log-prob of the
        token. ``frozen_NV`` holds the logits of ``logits_of`` (no gradient), cut to the vocabulary both share."""
        return {"logp": token_logps(logits_NV, ids_N)}

    def counts(self, mask_BKT: Tensor) -> dict[str, Tensor]:
        """Denominator of each term for these rows; depends on data alone, so it is known before the forward pass."""
        raise NotImplementedError

    def loss(self, values: Values, mask_BKT: Tensor, scores_BK: Tensor) -> Terms:
        """Sums over whole sequences. ``values`` [B, K, T] by name are those of ``per_token``, ``<name>_logp`` of
        ``logps_of`` and, on the fresh sample, ``sampled_logp``: its log-prob under the mixture it was drawn from, before
        temperature. A candidate whose mask is empty is padding (a row may have fewer than K): it contributes nothing."""
        raise NotImplementedError


def token_logps(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """fp32 log-prob [N] of ``ids_N``."""
    return _TokenLogps.apply(logits_NV, ids_N)


class _TokenLogps(torch.autograd.Function):
    """Two buffers of [N, V], one kept and one made in the backward pass, where plain autograd has five."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        logps_NV = torch.log_softmax(logits_NV, dim=-1, dtype=torch.float32)
        ctx.save_for_backward(logps_NV, ids_N)
        ctx.dtype = logits_NV.dtype
        return logps_NV.gather(-1, ids_N[:, None]).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        logps_NV, ids_N = ctx.saved_tensors
        grad_NV = logps_NV.exp().mul_(-grad_N[:, None]).scatter_add_(-1, ids_N[:, None], grad_N[:, None])
        return grad_NV.to(ctx.dtype), None


def sequence_logps(values_BKT: Tensor, mask_BKT: Tensor, reduction: Reduction) -> Tensor:
    """log π(y|x) of each candidate [B, K]: the sum over its tokens, or the sum over its length (|y| with EOS)."""
    logps_BK = (values_BKT * mask_BKT).sum(-1)
    return logps_BK / mask_BKT.sum(-1).clamp(min=1) if reduction == "mean" else logps_BK


def rows(mask_BKT: Tensor) -> Tensor:
    """[B] 1.0 where the row is real, 0.0 where it is padding."""
    return mask_BKT.flatten(1).any(-1).to(torch.float32)


def nll_of_first(values: Values, mask_BKT: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each row's first text, summed over its tokens, and the number of those."""
    return -(values["logp"][:, 0] * mask_BKT[:, 0]).sum(), mask_BKT[:, 0].sum().float()


def lengths(mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The metric (sum, count) of the tokens of one candidate a row."""
    return mask_BT.sum().float(), rows(mask_BT).sum()


def check_reduction(value: str, where: str) -> None:
    if value not in ("sum", "mean"):
        raise PladError(f"{where}.logp_reduction must be sum or mean (given: {value!r})")


def check_positive(objective: Objective, *names: str) -> None:
    for name in names:
        if not getattr(objective, name) > 0:
            raise PladError(f"distill.objective.{name} must be positive (given: {getattr(objective, name)})")


def check_not_negative(objective: Objective, *names: str) -> None:
    for name in names:
        if not getattr(objective, name) >= 0:
            raise PladError(f"distill.objective.{name} must not be negative (given: {getattr(objective, name)})")


def pair_metrics(values_BKT: Tensor, mask_BKT: Tensor, reduction: Reduction) -> dict[str, tuple[Tensor, Tensor]]:
    """``preference_metrics`` of losses that compare the (reduced) log-likelihoods themselves."""
    return preference_metrics(sequence_logps(values_BKT, mask_BKT, reduction), values_BKT, mask_BKT)


@torch.no_grad()
def preference_metrics(
    rewards_BK: Tensor, values_BKT: Tensor, mask_BKT: Tensor, pick_B2: Tensor | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """TRL's names. rewards/*: what the loss compares; logps/*: log-likelihoods, sums over tokens; lengths in tokens.

    ``pick_B2``: which candidates stand for chosen and rejected, the first two when not given.
    """
    row_B, n = rows(mask_BKT), rows(mask_BKT).sum()
    pairs = (rewards_BK, sequence_logps(values_BKT, mask_BKT, "sum"), mask_BKT.sum(-1).float())
    reward_B2, logp_B2, length_B2 = (v[:, :2] if pick_B2 is None else v.gather(1, pick_B2) for v in pairs)
    margin_B = reward_B2[:, 0] - reward_B2[:, 1]
    named = {
        "rewards/chosen": reward_B2[:, 0],
        "rewards/rejected": reward_B2[:, 1],
        "rewards/margins": margin_B,
        "rewards/accuracies": (margin_B > 0).float(),
        "logps/chosen": logp_B2[:, 0],
        "logps/rejected": logp_B2[:, 1],
        "lengths/chosen": length_B2[:, 0],
        "lengths/rejected": length_B2[:, 1],
    }
    return {name: ((value_B * row_B).sum(), n) for name, value_B in named.items()}
