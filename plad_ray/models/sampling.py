"""Sampling by transformers: each row draws from its own generator by inverse transform sampling, so what it says does not
depend on its batch mates (up to the rounding of a padded forward pass).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plad_ray.errors import PladError
from plad_ray.models.load import is_seq2seq


@dataclass(frozen=True)
class Mixture:
    """Probabilities (1 − weight)·student + weight·teacher a token (MiniLLM, arXiv 2306.08543, teacher-mixed sampling).

    ``within`` is entered around every call of ``teacher``: it may be the student with another adapter.
    """

    teacher: Any
    weight: float
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


class CausalDecoder:
    """A causal model's logits [B, V] (float64) for the next token: first that after the prompts, then that after the token
    it is given. Prompts are padded on the left; the mask comes from their lengths."""

    def __init__(self, model: Any, prompts: list[list[int]], device: torch.device):
        self.model = model
        self.cache: Any = None
        takes = inspect.signature(_inner(model).forward).parameters
        self.positions = "position_ids" in takes
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}  # no [B, T, V] of a long prompt
        longest = max(map(len, prompts))
        self.ids_BT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
        self.mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)

    def __call__(self, token_B: Tensor | None) -> Tensor:
        ids_BT = self.ids_BT
        if token_B is not None:
            ids_BT = token_B[:, None]
            self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(ids_BT)], dim=1)
        extra: dict[str, Any] = dict(self.last)
        if self.positions:
            extra["position_ids"] = (self.mask_BT.cumsum(1) - 1).clamp_min(0)[:, -ids_BT.shape[1] :]
        out = self.model(
            input_ids=ids_BT, attention_mask=self.mask_BT, past_key_values=self.cache, use_cache=True, **extra
        )
        self.cache = out.past_key_values
        return out.logits[:, -1].double()


class Seq2SeqDecoder:
    """The same of an encoder-decoder: the prompts (padded on the right) are encoded once, the decoder begins with its
    start token."""

    def __init__(self, model: Any, prompts: list[list[int]], device: torch.device):
        self.model = _inner(model)  # its LoRA layers lie inside
        self.cache: Any = None
        longest = max(map(len, prompts))
        ids_BP = torch.tensor([list(p) + [0] * (longest - len(p)) for p in prompts], device=device)
        self.mask_BP = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts], device=device)
        self.encoded = self.model.get_encoder()(input_ids=ids_BP, attention_mask=self.mask_BP)
        self.start_B = torch.full((len(prompts),), decoder_start(self.model.config), device=device)

    def __call__(self, token_B: Tensor | None) -> Tensor:
        ids_B = self.start_B if token_B is None else token_B
        out = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask_BP,
            decoder_input_ids=ids_B[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1].double()


def decoder_start(config: Any) -> int:
    """The token that an encoder-decoder's decoder begins with. Raises PladError when the config names none."""
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise PladError(
            f"the {config.model_type} model's config.json has no decoder_start_token_id (T5: the pad token's)"
        )
    return int(start)


def _decoder(model: Any, prompts: list[list[int]], device: torch.device) -> CausalDecoder | Seq2SeqDecoder:
    kind = Seq2SeqDecoder if is_seq2seq(_inner(model).config) else CausalDecoder
    return kind(model, prompts, device)


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

    With ``mixture`` the distribution (and the log-prob) is that of the mixture. ``vocabulary``: only ids below it are
    drawn. ``in_step`` makes all ``max_tokens`` forward passes even when every row has ended, for workers whose forward
    passes are collective.
    """
    device = next(model.parameters()).device
    decoder = _decoder(model, prompts, device)
    second: CausalDecoder | Seq2SeqDecoder | None = None
    uniform_BN = torch.stack([_uniform(seed, max_tokens) for seed in seeds]).to(device)
    temperature_B = torch.tensor(temperatures, dtype=torch.float64, device=device)
    eos_E = torch.tensor(eos, device=device)
    done_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    token_B: Tensor | None = None
    tokens: list[Tensor] = []
    logps: list[Tensor] = []
    for _ in range(max_tokens):
        logits_BV = decoder(token_B)
        if mixture is not None:
            with mixture.within():
                second = second or _decoder(mixture.teacher, prompts, device)
                logits_BV = _mixed(logits_BV, second(token_B), mixture.weight)
        logits_BV = logits_BV[:, :vocabulary]
        token_B = draw(logits_BV, temperature_B, uniform_BN[:, len(tokens)], top_p, top_k)
        tokens.append(token_B)
        logps.append(logits_BV.log_softmax(-1).gather(1, token_B[:, None])[:, 0])
        done_B |= torch.isin(token_B, eos_E)
        if done_B.all() and not in_step:
            break
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
