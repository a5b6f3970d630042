"""Sampling from causal models by transformers: each row draws from its own generator by inverse transform sampling, so
what it says does not depend on its batch mates (up to the rounding of a padded forward pass).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Probabilities (1 − weight)·student + weight·teacher a token (MiniLLM, arXiv 2306.08543, teacher-mixed sampling).

    ``within`` is entered around every call of ``teacher``: it may be the student with another adapter.
    """

    teacher: Any
    weight: float
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


class Decoder:
    """One model's logits [B, V] (float64) for the token after what it was fed; keeps its key-value cache."""

    def __init__(self, model: Any):
        self.model = model
        self.cache: Any = None
        takes = inspect.signature(_inner(model).forward).parameters
        self.positions = "position_ids" in takes
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}  # no [B, T, V] of a long prompt

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        extra: dict[str, Any] = (
            {"position_ids": (mask_BT.cumsum(1) - 1).clamp_min(0)[:, -ids_BT.shape[1] :]} if self.positions else {}
        )
        extra |= self.last
        out = self.model(input_ids=ids_BT, attention_mask=mask_BT, past_key_values=self.cache, use_cache=True, **extra)
        self.cache = out.past_key_values
        return out.logits[:, -1].double()


@torch.no_grad()
def sample(
    model: Any,
    prompts: list[list[int]],
    temperatures: list[float],
    seeds: list[int],
    max_tokens: int,
    eos: tuple[int, ...],
    top_p: float = 1.0,
    top_k: int = 0,
    mixture: Mixture | None = None,
    in_step: bool = False,
    vocabulary: int | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Generated ids (with the EOS that ended them) and the log-prob of each before temperature, for B prompts at once.

    Prompts are padded on the left; the mask comes from their lengths. With ``mixture`` the distribution (and the log-prob)
    is that of the mixture. ``vocabulary``: only ids below it are drawn. ``in_step`` makes all ``max_tokens`` forward
    passes even when every row has ended, for workers whose forward passes are collective.
    """
    device = next(model.parameters()).device
    longest, B = max(map(len, prompts)), len(prompts)
    ids_BT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    decoder, second = Decoder(model), Decoder(mixture.teacher) if mixture is not None else None
    uniform_BN = torch.stack([_uniform(seed, max_tokens) for seed in seeds]).to(device)
    temperature_B = torch.tensor(temperatures, dtype=torch.float64, device=device)
    eos_E = torch.tensor(eos, device=device)
    done_B = torch.zeros(B, dtype=torch.bool, device=device)
    tokens: list[Tensor] = []
    logps: list[Tensor] = []
    for _ in range(max_tokens):
        logits_BV = decoder(ids_BT, mask_BT)
        if mixture is not None and second is not None:
            with mixture.within():
                logits_BV = _mixed(logits_BV, second(ids_BT, mask_BT), mixture.weight)
        logits_BV = logits_BV[:, :vocabulary]
        token_B = draw(logits_BV, temperature_B, uniform_BN[:, len(tokens)], top_p, top_k)
        tokens.append(token_B)
        logps.append(logits_BV.log_softmax(-1).gather(1, token_B[:, None])[:, 0])
        done_B |= torch.isin(token_B, eos_E)
        if done_B.all() and not in_step:
            break
        ids_BT = token_B[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
    tokens_BN, logps_BN = torch.stack(tokens, 1).tolist(), torch.stack(logps, 1).tolist()
    return [_until_eos(t, p, eos) for t, p in zip(tokens_BN, logps_BN, strict=True)]


def draw(logits_BV: Tensor, temperature_B: Tensor, uniform_B: Tensor, top_p: float, top_k: int) -> Tensor:
    """One token a row: the most likely one at temperature 0, else by inverse transform with ``uniform_B`` in [0, 1)."""
    greedy_B = logits_BV.argmax(-1)
    scaled_BV = logits_BV / temperature_B.clamp_min(1e-6)[:, None]
    sorted_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    probs_BV = sorted_BV.softmax(-1)
    if 0 < top_k < probs_BV.shape[1]:
        probs_BV[:, top_k:] = 0
        probs_BV /= probs_BV.sum(-1, keepdim=True)
    if top_p < 1:  # the smallest set of most likely tokens whose probability reaches top_p
        probs_BV[probs_BV.cumsum(-1) - probs_BV >= top_p] = 0
        probs_BV /= probs_BV.sum(-1, keepdim=True)
    reached_BV = probs_BV.cumsum(-1)
    place_B = (reached_BV <= uniform_B[:, None] * reached_BV[:, -1:]).sum(-1)
    last_B = (probs_BV > 0).sum(-1) - 1
    sampled_B = order_BV.gather(1, torch.minimum(place_B, last_B)[:, None])[:, 0]
    return torch.where(temperature_B == 0, greedy_B, sampled_B)


def _uniform(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _until_eos(tokens: list[int], logps: list[float], eos: tuple[int, ...]) -> tuple[list[int], list[float]]:
    end = next((at + 1 for at, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[:end], logps[:end]


def _inner(model: Any) -> Any:
    """The transformers model inside a PeftModel."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _mixed(student_BV: Tensor, teacher_BV: Tensor, weight: float) -> Tensor:
    """log(weight·p_teacher + (1 − weight)·q_student) over the tokens both know; padded vocabularies differ."""
    shared = min(student_BV.shape[1], teacher_BV.shape[1])
    q_BV, p_BV = (logits[:, :shared].softmax(-1) for logits in (student_BV, teacher_BV))
    return (weight * p_BV + (1 - weight) * q_BV).log()
