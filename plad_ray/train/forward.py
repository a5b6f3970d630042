"""One forward pass of one model over a batch, cut down to the positions that predict a response token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from plad_ray.errors import PladError
from plad_ray.models.load import is_seq2seq
from plad_ray.train import seq2seq
from plad_ray.train.last_block import last_block_at
from plad_ray.train.layout import Batch
from plad_ray.train.masks import decoder_inputs
from plad_ray.train.patching import forward_replaced


def response_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """[N, H] what the LM head gets at each predicting position."""
    base = causal_model(model)
    if isinstance(batch, seq2seq.Seq2SeqBatch):
        hidden_SLH = seq2seq.decoder_hidden(base, batch)
    else:
        with last_block_at(base, batch.read_M):
            hidden_SLH = base.get_decoder()(**decoder_inputs(batch, base.config)).last_hidden_state
    return hidden_SLH.flatten(0, 1)[batch.source_N]


class Head:
    """What turns ``response_hidden`` into logits [N, V].

    The LM head alone where that is all there is; else all that the architecture does after its decoder (scaling,
    soft-capping), by calling the model with a decoder that answers with these states.
    """

    def __init__(self, model: nn.Module):
        self.base = causal_model(model)
        self.alone = head_gives_logits(model)
        if not self.alone:
            hidden, logits = _few_tokens(self.base)
            if not torch.equal(self(hidden[0]), logits[0]):
                raise PladError(
                    f"{type(self.base).__name__} has no logits that follow from its decoder's last states, so it "
                    "cannot be trained"
                )

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        if self.alone:
            return self.base.get_output_embeddings()(seq2seq.head_input(self.base.config, hidden_NH))
        ids_1N = torch.zeros(1, len(hidden_NH), dtype=torch.long, device=hidden_NH.device)
        ids: dict[str, Any] = {"input_ids": ids_1N}
        if is_seq2seq(self.base.config):
            ids = {"encoder_outputs": (hidden_NH[None],), "decoder_input_ids": ids_1N}
        answer = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_NH[None])  # type: ignore[arg-type]
        with forward_replaced(self.base.get_decoder(), lambda *_, **__: answer):
            return self.base(**ids, use_cache=False).logits[0]

    @property
    def trained(self) -> bool:
        """Whether any weight of the LM head gets a gradient."""
        head = self.base.get_output_embeddings()
        return head is None or any(weight.requires_grad for weight in head.parameters())


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
    hidden, logits = _few_tokens(base)
    return torch.equal(logits, head(seq2seq.head_input(base.config, hidden)))


@torch.no_grad()
def _few_tokens(base: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The decoder's last states over a few tokens, and the logits there."""
    training = base.training
    base.eval()
    ids = torch.arange(1, 6, device=base.device)[None] % base.config.get_text_config().vocab_size
    if is_seq2seq(base.config):
        hidden, logits = seq2seq.few_tokens(base, ids)
    else:
        logits = base(input_ids=ids, use_cache=False).logits
        hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    base.train(training)
    return hidden, logits
