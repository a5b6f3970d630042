"""Per-token values of response tokens, without ever holding logits of [B, L, V]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from plad_ray.objectives import Objective
from plad_ray.train.layout import Batch

#: Logits computed at once (positions × vocabulary); 64 MiB in fp32.
CHUNK_ELEMENTS = 2**24


class ResponseValues(nn.Module):
    """A model whose forward pass gives the objective's value of each response token, [B, K, T], 0 where there is none.

    Only positions that predict a response token reach the LM head, chunk by chunk (recomputed in the backward pass when
    there is more than one chunk). Modules are called, never their weights, so ZeRO-3 and PEFT hooks work as usual; it
    is the root module that DeepSpeed gets.
    """

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model = model
        self.objective = objective
        self.head_alone = head_gives_logits(model)

    def forward(self, batch: Batch) -> Tensor:
        base = causal_model(self.model)
        if self.head_alone:
            hidden_SLH = base.get_decoder()(
                input_ids=batch.ids_SL, attention_mask=batch.attention_SL, use_cache=False
            ).last_hidden_state
            rows_N = hidden_SLH.flatten(0, 1)[batch.source_N]
        else:  # the architecture does more between decoder and logits (scaling, soft-capping): let it do so
            logits_SLV = base(input_ids=batch.ids_SL, attention_mask=batch.attention_SL, use_cache=False).logits
            rows_N = logits_SLV.flatten(0, 1)[batch.source_N]
        return scatter(self._values(base, rows_N, batch), batch)

    def _values(self, base: PreTrainedModel, rows_N: Tensor, batch: Batch) -> Tensor:
        head = base.get_output_embeddings() if self.head_alone else nn.Identity()

        def chunk(rows_N: Tensor, ids_N: Tensor) -> Tensor:
            return self.objective.per_token(head(rows_N), ids_N)

        if batch.chunks == 1:
            return chunk(rows_N, batch.target_N)
        pairs = zip(rows_N.tensor_split(batch.chunks), batch.target_N.tensor_split(batch.chunks), strict=True)
        return torch.cat(
            [checkpoint(chunk, r_N, i_N, use_reentrant=False, preserve_rng_state=False) for r_N, i_N in pairs]
        )


def scatter(values_N: Tensor, batch: Batch) -> Tensor:
    """Put each value at its (row, candidate, token), zeros elsewhere."""
    flat = values_N.new_zeros(batch.mask_BKT.numel()).index_copy(0, batch.place_N, values_N)
    return flat.view_as(batch.mask_BKT)


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator,return-value]


@torch.no_grad()
def head_gives_logits(model: nn.Module) -> bool:
    """Whether LM head(decoder(x)) is exactly the model's logits; tried on a few tokens, so no list of architectures.

    Bit for bit: the same modules do the same work, while any scaling or soft-capping in between shows in the last bits.
    """
    base = causal_model(model)
    head = base.get_output_embeddings()
    if head is None:
        return False
    training = model.training
    model.eval()
    ids = torch.arange(1, 6, device=base.device)[None] % base.config.get_text_config().vocab_size
    logits = base(input_ids=ids, use_cache=False).logits
    alone = head(base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
    model.train(training)
    return torch.equal(logits, alone)


def chunk_count(positions: int, vocabulary: int) -> int:
    """Chunks for the largest worker's ``positions``; all workers must use the same number (ZeRO-3 gathers in each)."""
    return max(1, -(-positions * vocabulary // CHUNK_ELEMENTS))
