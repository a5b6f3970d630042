"""Per-token values of response tokens, without ever holding logits of [B, L, V]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plad_ray.objectives import Objective, Values
from plad_ray.objectives.base import token_logps
from plad_ray.train.forward import causal_model, head_gives_logits, lm_head, response_hidden
from plad_ray.train.frozen import FrozenModels
from plad_ray.train.layout import Batch

#: Logits computed at once (positions × vocabulary); 64 MiB in fp32.
CHUNK_ELEMENTS = 2**24


class ResponseValues(nn.Module):
    """A model whose forward pass gives the objective's values of each response token, [B, K, T], 0 where there is none.

    Only positions that predict a response token reach the LM heads (the student's and those of the frozen models that the
    objective reads), chunk by chunk, recomputed in the backward pass when there is more than one. Modules are called,
    never their weights, so ZeRO-3 and PEFT hooks work as usual; it is the root module that DeepSpeed gets, frozen models
    included, so that ZeRO-3 shards those too.
    """

    def __init__(self, model: nn.Module, objective: Objective, frozen: FrozenModels | None = None):
        super().__init__()
        self.model = model
        self.objective = objective
        self.frozen = frozen or FrozenModels()
        self.frozen_modules = nn.ModuleDict(self.frozen.own)
        self.head_alone = head_gives_logits(model)
        self.frozen_alone = {name: head_gives_logits(module) for name, module in self.frozen.own.items()}
        #: ids that every model whose logits are compared has: padded vocabularies differ
        compared = [model, *(self.frozen.own[name] for name in objective.logits_of if name in self.frozen.own)]
        self.shared_vocabulary = min(causal_model(m).config.get_text_config().vocab_size for m in compared)

    def train(self, mode: bool = True) -> ResponseValues:
        super().train(mode)
        self.frozen_modules.eval()
        return self

    def forward(self, batch: Batch) -> Values:
        frozen = {name: self._frozen_hidden(name, batch) for name in self.objective.logits_of}
        hidden_N = response_hidden(self.model, batch, self.head_alone)
        student = lm_head(self.model, self.head_alone)
        heads = {name: self._frozen_head(name) for name in frozen}

        def chunk(hidden_N: Tensor, ids_N: Tensor, *frozen_N: Tensor) -> Values:
            logits_NV = student(hidden_N)
            with torch.no_grad():
                others = {name: heads[name](h_N) for name, h_N in zip(heads, frozen_N, strict=True)}
            others = {name: logits[:, : self.shared_vocabulary] for name, logits in others.items()}
            return self.objective.per_token(logits_NV[:, : self.shared_vocabulary], others, ids_N)

        return _in_chunks(chunk, batch, hidden_N, batch.target_N, *frozen.values())

    @torch.no_grad()
    def frozen_logps(self, name: str, batch: Batch) -> Tensor:
        """Log-probs [B, K, T] of the response tokens under the frozen model ``name``."""
        head = self._frozen_head(name)

        def chunk(hidden_N: Tensor, ids_N: Tensor) -> Values:
            return {"logp": token_logps(head(hidden_N), ids_N)}

        return _in_chunks(chunk, batch, self._frozen_hidden(name, batch), batch.target_N)["logp"]

    def _frozen_hidden(self, name: str, batch: Batch) -> Tensor:
        with torch.no_grad(), self.frozen.view(name, self.model) as model:
            return response_hidden(model, batch, self._alone(name))

    def _frozen_head(self, name: str) -> nn.Module:
        return lm_head(self.frozen.own.get(name, self.model), self._alone(name))

    def _alone(self, name: str) -> bool:
        return self.frozen_alone.get(name, self.head_alone)


def _in_chunks(chunk: Callable[..., Values], batch: Batch, *rows_N: Tensor) -> Values:
    """``chunk`` over equal pieces of ``rows_N``, put where they belong: [B, K, T] by name."""
    if batch.chunks == 1:
        values = [chunk(*rows_N)]
    else:
        pieces = zip(*(rows.tensor_split(batch.chunks) for rows in rows_N), strict=True)
        values = [checkpoint(chunk, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return {name: scatter(torch.cat([v[name] for v in values]), batch) for name in values[0]}


def scatter(values_N: Tensor, batch: Batch) -> Tensor:
    """Put each value at its (row, candidate, token), zeros elsewhere."""
    flat = values_N.new_zeros(batch.mask_BKT.numel()).index_copy(0, batch.place_N, values_N)
    return flat.view_as(batch.mask_BKT)


def chunk_count(positions: int, vocabulary: int) -> int:
    """Chunks for the largest worker's ``positions``; all workers must use the same number (ZeRO-3 gathers in each)."""
    return max(1, -(-positions * vocabulary // CHUNK_ELEMENTS))
