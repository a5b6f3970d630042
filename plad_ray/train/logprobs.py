"""Per-token values of response tokens, without ever holding logits of [B, L, V]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plad_ray.objectives.base import Objective, Values, token_logps
from plad_ray.train.forward import Head, causal_model, response_hidden
from plad_ray.train.frozen import FrozenModels
from plad_ray.train.layout import Batch

#: Logits computed at once (positions × vocabulary), by kind of device: 32 and 128 MiB in fp32. A GPU wants larger products.
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**25}
#: From states [n, H], token ids [n] and frozen models' states to values [n] by name, each of its own position alone.
PerToken = Callable[..., Values]


class ResponseValues(nn.Module):
    """A model whose forward pass gives the objective's values of each response token, [B, K, T], 0 where there is none.

    Only positions that predict a response token reach the LM heads (the student's and those of the frozen models that the
    objective reads), chunk by chunk; no chunk's logits outlive it. Modules are called, never their weights, so ZeRO-3 and
    PEFT hooks work as usual; it is the root module that DeepSpeed gets, frozen models included, so that ZeRO-3 shards
    those too.
    """

    def __init__(self, model: nn.Module, objective: Objective, frozen: FrozenModels | None = None):
        super().__init__()
        self.model = model
        self.objective = objective
        self.frozen = frozen or FrozenModels()
        self.frozen_modules = nn.ModuleDict(self.frozen.own)
        self.head = Head(model)
        self.frozen_heads = {name: Head(module) for name, module in self.frozen.own.items()}
        #: ids that every model whose logits are compared has: padded vocabularies differ
        compared = [model, *(self.frozen.own[name] for name in objective.logits_of if name in self.frozen.own)]
        self.shared_vocabulary = min(causal_model(m).config.get_text_config().vocab_size for m in compared)

    def train(self, mode: bool = True) -> ResponseValues:
        super().train(mode)
        self.frozen_modules.eval()
        return self

    def forward(self, batch: Batch) -> Values:
        frozen = {name: self._frozen_hidden(name, batch) for name in self.objective.logits_of}
        heads = {name: self._frozen_head(name) for name in frozen}
        hidden_NH = response_hidden(self.model, batch)

        def per_token(hidden_NH: Tensor, ids_N: Tensor, *frozen_NH: Tensor) -> Values:
            logits_NV = self.head(hidden_NH)
            with torch.no_grad():
                others = {name: heads[name](h_NH) for name, h_NH in zip(heads, frozen_NH, strict=True)}
            others = {name: logits[:, : self.shared_vocabulary] for name, logits in others.items()}
            return self.objective.per_token(logits_NV[:, : self.shared_vocabulary], others, ids_N)

        in_chunks = checkpointed if self.head.trained else sloped
        return _placed(in_chunks(per_token, batch.chunks, hidden_NH, batch.target_N, *frozen.values()), batch)

    @torch.no_grad()
    def frozen_logps(self, name: str, batch: Batch) -> Tensor:
        """Log-probs [B, K, T] of the response tokens under the frozen model ``name``."""
        head = self._frozen_head(name)

        def per_token(hidden_NH: Tensor, ids_N: Tensor) -> Values:
            return {"logp": token_logps(head(hidden_NH), ids_N)}

        values = checkpointed(per_token, batch.chunks, self._frozen_hidden(name, batch), batch.target_N)
        return _placed(values, batch)["logp"]

    def _frozen_hidden(self, name: str, batch: Batch) -> Tensor:
        with torch.no_grad(), self.frozen.view(name, self.model) as model:
            return response_hidden(model, batch)

    def _frozen_head(self, name: str) -> Head:
        return self.frozen_heads.get(name, self.head)


def checkpointed(per_token: PerToken, chunks: int, *rows_N: Tensor) -> Values:
    """``per_token`` over equal pieces of ``rows_N``; with more than one, each is computed again in the backward pass."""
    if chunks == 1:
        return per_token(*rows_N)
    pieces = zip(*(rows.tensor_split(chunks) for rows in rows_N), strict=True)
    values = [checkpoint(per_token, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return {name: torch.cat([v[name] for v in values]) for name in values[0]}


def sloped(per_token: PerToken, chunks: int, hidden_NH: Tensor, *rows_N: Tensor) -> Values:
    """As ``checkpointed`` where the LM head is not trained, and faster: nothing is computed twice.

    A value depends on its own position's states alone, so the gradient of their sum holds every value's slope [N, H]. Those
    are taken while a chunk's logits are there, and scaled by the values' gradients in the backward pass.
    """
    if not (torch.is_grad_enabled() and hidden_NH.requires_grad):
        return checkpointed(per_token, chunks, hidden_NH, *rows_N)
    names: list[str] = []
    values = _Sloped.apply(hidden_NH, per_token, names, chunks, *rows_N)
    return dict(zip(names, values, strict=True))


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, per_token: PerToken, names: list[str], chunks: int, *rows_N: Tensor
    ) -> tuple[Tensor, ...]:
        pieces = zip(*(rows.tensor_split(chunks) for rows in (hidden_NH, *rows_N)), strict=True)
        found = [_values_and_slopes(per_token, *piece) for piece in pieces]
        names.extend(found[0][0])
        ctx.save_for_backward(*(torch.cat([slopes[name] for _, slopes in found]) for name in names))
        return tuple(torch.cat([values[name] for values, _ in found]) for name in names)

    @staticmethod
    def backward(ctx: Any, *grads_N: Tensor) -> tuple[Tensor | None, ...]:
        slopes = ctx.saved_tensors
        terms = (grad_N[:, None].to(s_NH.dtype) * s_NH for grad_N, s_NH in zip(grads_N, slopes, strict=True))
        return sum(terms), *[None] * (len(ctx.needs_input_grad) - 1)


def _values_and_slopes(per_token: PerToken, hidden_NH: Tensor, *rows_N: Tensor) -> tuple[Values, Values]:
    """``per_token`` of one piece, and each value's gradient [n, H] with respect to its own states."""
    with torch.enable_grad():
        leaf_NH = hidden_NH.detach().requires_grad_()
        values = per_token(leaf_NH, *rows_N)
    slopes = {}
    for left, (name, value_N) in enumerate(reversed(list(values.items()))):
        if value_N.requires_grad:
            (slopes[name],) = torch.autograd.grad(
                value_N, leaf_NH, torch.ones_like(value_N), retain_graph=left + 1 < len(values)
            )
        else:
            slopes[name] = torch.zeros_like(hidden_NH)
    return {name: value_N.detach() for name, value_N in values.items()}, slopes


def _placed(values: Values, batch: Batch) -> Values:
    return {name: scatter(values_N, batch) for name, values_N in values.items()}


def scatter(values_N: Tensor, batch: Batch) -> Tensor:
    """Put each value at its (row, candidate, token), zeros elsewhere."""
    flat = values_N.new_zeros(batch.mask_BKT.numel()).index_copy(0, batch.place_N, values_N)
    return flat.view_as(batch.mask_BKT)


def chunk_count(positions: int, vocabulary: int, device: torch.device) -> int:
    """Chunks for the largest worker's ``positions``; all workers must use the same number (ZeRO-3 gathers in each)."""
    return max(1, -(-positions * vocabulary // CHUNK_ELEMENTS[device.type]))
