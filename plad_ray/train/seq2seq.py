"""Encoder-decoders: their batches, and their forward pass cut down to the positions that predict a response token.

A prompt is encoded once, whatever the number of its candidates; each candidate is one sequence of the decoder, which begins
with its start token and so predicts the first response token at its first position.

Shape suffixes: B prompts, P longest prompt, S candidates of the batch, L longest decoder sequence, H hidden size, N response
tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from plad_ray.models.sampling import decoder_start
from plad_ray.train.layout import Batch, Layout, Row, concatenate


@dataclass(frozen=True, kw_only=True)
class Seq2SeqBatch(Batch):
    """``ids_SL`` and ``attention_SL`` are the decoder's; ``source_N`` holds flat positions in them."""

    encoder_ids_BP: Tensor
    encoder_attention_BP: Tensor
    owner_S: Tensor  # the prompt (in B) of each decoder sequence


def encode_decode(rows: list[Row], start: int, pad: int, chunks: int = 1) -> Seq2SeqBatch:
    """Prompts and decoder sequences, padded on the right; every mask comes from lengths, ``pad`` is never looked at.

    To the decoder its start token is what a prompt is to a causal model: what the first response token is predicted from.
    """
    begun = np.array([start], np.int32)
    decoder = concatenate([replace(row, prompt=begun) for row in rows], pad, chunks)
    ids_BP, attention_BP = _padded([row.prompt for row in rows], pad)
    of_decoder = {f.name: getattr(decoder, f.name) for f in fields(decoder)}
    tokens = sum(len(row.prompt) + len(c) for row in rows if row.real for c in row.candidates)
    return Seq2SeqBatch(
        **(of_decoder | {"tokens": tokens}),
        encoder_ids_BP=ids_BP,
        encoder_attention_BP=attention_BP,
        owner_S=torch.tensor([b for b, row in enumerate(rows) for _ in row.candidates]),
    )


def seq2seq_layout(config: PretrainedConfig) -> Layout:
    """The one layout of encoder-decoders. Raises PladError for a config without a decoder start token."""
    start = decoder_start(config)
    return Layout("encoder-decoder", lambda rows, pad, chunks: encode_decode(rows, start, pad, chunks), _length)


def _length(row: Row) -> int:
    return row.tokens


def _padded(sequences: list[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of right-padded ``sequences``."""
    lengths = np.array([len(sequence) for sequence in sequences])
    ids = np.full((len(sequences), lengths.max()), pad, np.int64)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
    attention = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
    return torch.from_numpy(ids), torch.from_numpy(attention)


def decoder_hidden(model: PreTrainedModel, batch: Seq2SeqBatch) -> Tensor:
    """[S, L, H] last states of the decoder; each prompt is encoded once."""
    encoded_BPH = model.get_encoder()(
        input_ids=batch.encoder_ids_BP, attention_mask=batch.encoder_attention_BP
    ).last_hidden_state
    attention_SP = batch.encoder_attention_BP[batch.owner_S]
    return _decode(model, batch.ids_SL, batch.attention_SL, encoded_BPH[batch.owner_S], attention_SP)


def few_tokens(model: PreTrainedModel, ids_1T: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's last states over ``ids_1T`` (which are the prompt, too), and the model's logits there."""
    logits = model(input_ids=ids_1T, decoder_input_ids=ids_1T, use_cache=False).logits
    everything_1T = torch.ones_like(ids_1T)
    encoded = model.get_encoder()(input_ids=ids_1T, attention_mask=everything_1T).last_hidden_state
    return _decode(model, ids_1T, everything_1T, encoded, everything_1T), logits


def head_input(config: PretrainedConfig, hidden: Tensor) -> Tensor:
    """``hidden`` scaled where the family does so before its head (T5 with tied embeddings)."""
    scaled = getattr(config, "scale_decoder_outputs", False)
    return hidden * config.hidden_size**-0.5 if scaled else hidden


def _decode(
    model: PreTrainedModel, ids_SL: Tensor, attention_SL: Tensor, encoded_SPH: Tensor, attention_SP: Tensor
) -> Tensor:
    return model.get_decoder()(
        input_ids=ids_SL,
        attention_mask=attention_SL,
        encoder_hidden_states=encoded_SPH,
        encoder_attention_mask=attention_SP,
        use_cache=False,
    ).last_hidden_state
