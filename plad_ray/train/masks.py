"""Attention masks of prefix-shared sequences, in the form that each architecture takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

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


def segment_masks(segments: Segments, config: PreTrainedConfig) -> Tensor | dict[str, Tensor]:
    """Boolean masks [S, 1, L, L], True where a query (row) sees a key (column). A dict by kind of layer where the config
    names kinds, as transformers' own ``create_masks_for_generate`` does."""
    visible_SLL = _visible(segments)
    kinds = layer_kinds(config)
    declared = hasattr(type(config), "sliding_window")  # else a stray key, which the architecture does not read
    window = config.sliding_window if declared else None
    if kinds is None:
        return _within(visible_SLL, segments, window)[:, None]
    windows = {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}
    return {kind: _within(visible_SLL, segments, w)[:, None] for kind, w in windows.items()}


def layer_kinds(config: PreTrainedConfig) -> list[str] | None:
    """The kind of each layer, where the architecture has several."""
    return getattr(config, "layer_types", None)


def _visible(segments: Segments) -> Tensor:
    """A token sees, of its own row, the prompt and its own candidate up to itself."""
    row_SL, candidate_SL = segments.row_SL, segments.candidate_SL
    L = row_SL.shape[1]
    index_L = torch.arange(L, device=row_SL.device)
    visible_SLL = row_SL[:, :, None] == row_SL[:, None, :]
    visible_SLL &= (candidate_SL[:, None, :] == 0) | (candidate_SL[:, :, None] == candidate_SL[:, None, :])
    visible_SLL &= index_L[:, None] >= index_L[None, :]
    return visible_SLL


def _within(visible_SLL: Tensor, segments: Segments, window: int | None) -> Tensor:
    """Only keys less than ``window`` positions back. Positions, since a candidate's indices count its siblings too."""
    if window is None:
        return visible_SLL
    position_SL = segments.position_SL
    return visible_SLL & (position_SL[:, :, None] - position_SL[:, None, :] < window)
