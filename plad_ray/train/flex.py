"""FlexAttention (arXiv 2412.05496) for long sequences on GPUs: blocks of 128 × 128 tokens that a mask hides are not
computed, and no layer holds a mask of L × L."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import PreTrainedConfig

from plad_ray.train.layout import PROVEN

#: From sequence, head, query and key (indices, of any shapes that broadcast) to whether that query sees that key.
Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

#: Tokens of a sequence from which on it is no slower than a dense mask, in less memory (benchmarks/RESULTS.md).
SHORTEST = 4096
#: Model types whose decoder takes its masks (tests/train/test_flex.py).
TYPES = tuple(name for name in PROVEN if name != "gpt2")


def pays(config: PreTrainedConfig, length: int, device: torch.device) -> bool:
    """Whether sequences of ``length`` tokens take it. It has no dropout."""
    if device.type != "cuda" or length < SHORTEST or config.model_type not in TYPES:
        return False
    return not config.attention_dropout


def block_mask(sees: Sees, sequences: int, length: int, device: torch.device) -> BlockMask:
    return create_block_mask(sees, sequences, None, length, length, device)


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """[S, heads, L, D] to [S, L, heads, D]; keys and values may have fewer heads."""
    grouped = query.shape[1] != key.shape[1]
    return _compiled()(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped).transpose(1, 2)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
