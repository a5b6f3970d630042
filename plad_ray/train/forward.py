"""One forward pass of one model over a batch, cut down to the positions that predict a response token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plad_ray.models.load import is_seq2seq
from plad_ray.train import seq2seq
from plad_ray.train.layout import Batch


def response_hidden(model: nn.Module, batch: Batch, head_alone: bool) -> Tensor:
    """[N, H] what the LM head gets at each predicting position; with ``head_alone`` False the logits [N, V] there."""
    base = causal_model(model)
    if isinstance(batch, seq2seq.Seq2SeqBatch):
        return seq2seq.response_hidden(base, batch, head_alone)
    if head_alone:
        hidden_SLH = base.get_decoder()(
            input_ids=batch.ids_SL, attention_mask=batch.attention_SL, use_cache=False
        ).last_hidden_state
        return hidden_SLH.flatten(0, 1)[batch.source_N]
    # the architecture does more between decoder and logits (scaling, soft-capping): let it do so
    logits_SLV = base(input_ids=batch.ids_SL, attention_mask=batch.attention_SL, use_cache=False).logits
    return logits_SLV.flatten(0, 1)[batch.source_N]


def lm_head(model: nn.Module, head_alone: bool) -> nn.Module:
    """What turns ``response_hidden`` into logits."""
    return causal_model(model).get_output_embeddings() if head_alone else nn.Identity()


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
    if is_seq2seq(base.config):
        same = seq2seq.head_gives_logits(base, ids)
    else:
        logits = base(input_ids=ids, use_cache=False).logits
        same = torch.equal(logits, head(base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state))
    model.train(training)
    return same
