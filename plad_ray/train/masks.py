"""Attention masks of prefix-shared sequences, in the form that each architecture takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig

from plad_ray.train import flex
from plad_ray.train.attention import blocks_of
from plad_ray.train.layout import Batch, Segments

#: Kinds of layers whose mask can be made from positions.
KINDS = ("full_attention", "sliding_attention")


def decoder_inputs(batch: Batch, config: PreTrainedConfig) -> dict[str, Any]:
    """What a decoder of ``config`` gets for ``batch``, ids included."""
    inputs: dict[str, Any] = {"input_ids": batch.ids_SL, "use_cache": False}
    if batch.segments is None:
        return inputs | {"attention_mask": batch.attention_SL}
    masks = segment_masks(batch.segments, config.get_text_config())
    inputs |= {"attention_mask": masks, "position_ids": batch.segments.position_SL}
    blocks = blocks_of(batch.segments, config.get_text_config().model_type)
    return inputs if blocks is None else inputs | {"plad_blocks": blocks}


def segment_masks(segments: Segments, config: PreTrainedConfig) -> Tensor | BlockMask | dict[str, Any]:
    """Boolean masks [S, 1, L, L], True where a query (row) sees a key (column), or FlexAttention's form of them. A dict by
    kind of layer where the config names kinds, as transformers' own ``create_masks_for_generate`` does."""
    kinds = layer_kinds(config)
    declared = hasattr(type(config), "sliding_window")  # else a stray key, which the architecture does not read
    window = config.sliding_window if declared else None
    if kinds is None:
        return _mask(segments, window, config)
    windows = {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}
    return {kind: _mask(segments, w, config) for kind, w in windows.items()}


def layer_kinds(config: PreTrainedConfig) -> list[str] | None:
    """The kind of each layer, where the architecture has several."""
    return getattr(config, "layer_types", None)


def _mask(segments: Segments, window: int | None, config: PreTrainedConfig) -> Tensor | BlockMask:
    S, L = segments.position_SL.shape
    device = segments.position_SL.device
    sees = _sees(segments, window)
    if flex.pays(config, L, device):
        return flex.block_mask(sees, S, L, device)
    index_L = torch.arange(L, device=device)
    sequence_S11 = torch.arange(S, device=device)[:, None, None]
    return sees(sequence_S11, sequence_S11, index_L[:, None], index_L)[:, None]


def _sees(segments: Segments, window: int | None) -> flex.Sees:
    """A token sees, of its own row, the prompt and its own candidate up to itself, less than ``window`` positions back.
    Positions, since a candidate's indices count its siblings too."""
    position_SL, row_SL, candidate_SL = segments.position_SL, segments.row_SL, segments.candidate_SL

    def sees(s: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (candidate_SL[s, key] == 0) | (candidate_SL[s, key] == candidate_SL[s, query])
        visible = own & (row_SL[s, key] == row_SL[s, query]) & (key <= query)
        return visible if window is None else visible & (position_SL[s, query] - position_SL[s, key] < window)

    return sees
