"""The last layer's feed-forward block, computed only where its output is read.

Of the last layer nothing is read but the positions that predict a response token, and a feed-forward block treats each
position alone. Prompts are long and answers short, so most of the block's work would be for nobody.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plad_ray.train.patching import forward_replaced

#: Model types whose last block is one module ``mlp`` from [S, L, H] to [S, L, H], each position by itself.
POSITION_WISE = ("llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "mistral", "gemma2", "gemma3_text")


@contextmanager
def last_block_at(model: PreTrainedModel, read_M: Tensor) -> Generator[None]:
    """Within, ``model``'s last feed-forward block is computed at the distinct flat positions ``read_M`` of S·L alone, and
    is 0 elsewhere. Without effect for other model types, and under gradient checkpointing, which runs layers once more
    when this is over."""
    block = None if model.is_gradient_checkpointing else _last_block(model)
    if block is None:
        yield
        return
    whole = block.forward

    def at_read(hidden_SLH: Tensor) -> Tensor:
        flat = hidden_SLH.flatten(0, 1)
        read_1MH = whole(flat[read_M][None])
        return torch.zeros_like(flat).index_copy(0, read_M, read_1MH[0]).view_as(hidden_SLH)

    with forward_replaced(block, at_read):
        yield


def _last_block(model: PreTrainedModel) -> nn.Module | None:
    if model.config.get_text_config().model_type not in POSITION_WISE:
        return None
    decoder = model.get_decoder()
    layers = decoder.h if hasattr(decoder, "h") else decoder.layers
    block: nn.Module = layers[-1].mlp
    return block
