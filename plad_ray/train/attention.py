"""Attention over prefix-shared sequences in blocks of queries: most of what a dense mask hides is not computed.

A block of queries looks from the first token of its earliest row to its own last one. Of the last layer nothing is read but
the positions that predict a response token, so there no other asks anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plad_ray.train.flex import flex
from plad_ray.train.layout import PROVEN, Segments, Span

#: Queries of a block, at most. On CPUs smaller ones cost more in calls than they save.
QUERIES = 144


@dataclass(frozen=True)
class Block:
    """Queries ``first`` to before ``end``, keys ``start`` to before ``end``, of all sequences."""

    start: int
    first: int
    end: int


@dataclass(frozen=True)
class Blocks:
    """What every layer computes but the last, and what the last does."""

    every: tuple[Block, ...]
    last: tuple[Block, ...]


def blocks_of(segments: Segments, model_type: str) -> Blocks | None:
    """None: one dense mask, for unknown models, and off CPUs, where blocks were never measured."""
    if model_type not in PROVEN or segments.position_SL.device.type != "cpu":
        return None
    spans = [span for row in segments.spans for span in row]
    length = segments.position_SL.shape[1]
    count = -(-length // QUERIES)
    edges = list(pairwise(length * i // count for i in range(count + 1)))
    every = _blocks(edges, [(span, span.start) for span in spans])
    return Blocks(every, _blocks(edges, [(span, span.prompt_end - 1) for span in spans]))


def _blocks(edges: Iterable[tuple[int, int]], asking: list[tuple[Span, int]]) -> tuple[Block, ...]:
    """The part of each stretch of queries that is wanted: of each span, from the position given to its end."""
    found = []
    for a, b in edges:
        inside = [(span, first) for span, first in asking if first < b and span.end > a]
        if inside:
            first = max(a, min(first for _, first in inside))
            end = min(b, max(span.end for span, _ in inside))
            found.append(Block(min(span.start for span, _ in inside), first, end))
    return tuple(found)


def in_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    plad_blocks: Blocks | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, [S, heads, L, D] to [S, L, heads, D]; of ``plad_blocks`` alone where there are any, and
    0 elsewhere. FlexAttention where the mask is made for it."""
    if isinstance(attention_mask, BlockMask):
        return flex(query, key, value, attention_mask, options.get("scaling")), None
    if plad_blocks is None or options.get("dropout") or query.shape[-1] != value.shape[-1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    assert attention_mask is not None, "sequences that share prompts come with their mask"
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    blocks = plad_blocks.last if _is_last(module) else plad_blocks.every
    return _InBlocks.apply(query, key, value, attention_mask, blocks, options.get("scaling")), None


def _is_last(attention: Any) -> bool:
    return int(attention.layer_idx) == attention.config.num_hidden_layers - 1


class _InBlocks(torch.autograd.Function):
    """The kernels that SDPA has on CPUs, called by themselves: cut out and put together by autograd, states and gradients
    would be copied more often than they are used."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible_S1LL: Tensor,
        blocks: tuple[Block, ...],
        scale: float | None,
    ) -> Tensor:
        S, heads, L, D = query.shape
        out_SLHD = query.new_zeros(S, L, heads, D)
        sums = []
        for block in blocks:
            out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *_cut_out(block, query, key, value), attn_mask=_added(block, visible_S1LL, query), scale=scale
            )
            out_SLHD[:, block.first : block.end] = out.transpose(1, 2)
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, visible_S1LL, out_SLHD, *sums)
        ctx.blocks, ctx.scale = blocks, scale
        return out_SLHD

    @staticmethod
    def backward(ctx: Any, grad_SLHD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, visible_S1LL, out_SLHD, *sums = ctx.saved_tensors
        grads = [torch.zeros_like(states) for states in (query, key, value)]
        for block, log_sum in zip(ctx.blocks, sums, strict=True):
            out, grad = (states[:, block.first : block.end].transpose(1, 2) for states in (out_SLHD, grad_SLHD))
            of_block = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad,
                *_cut_out(block, query, key, value),
                out,
                log_sum,
                0.0,
                False,
                attn_mask=_added(block, visible_S1LL, query),
                scale=ctx.scale,
            )
            for whole, part in zip(_cut_out(block, *grads), of_block, strict=True):
                whole += part
        return *grads, None, None, None


def _cut_out(block: Block, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    seen = slice(block.start, block.end)
    return query[:, :, block.first : block.end], key[:, :, seen], value[:, :, seen]


def _added(block: Block, visible_S1LL: Tensor, like: Tensor) -> Tensor:
    """What is added to the block's scores."""
    visible = visible_S1LL[:, :, block.first : block.end, block.start : block.end]
    return torch.zeros(visible.shape, dtype=like.dtype).masked_fill_(~visible, -torch.inf)


ALL_ATTENTION_FUNCTIONS.register("sdpa", in_blocks)
