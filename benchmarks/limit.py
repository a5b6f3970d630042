"""The least time a step could take: its matrix products and nothing else, at the rate that each reaches by itself."""

from __future__ import annotations

import torch

from benchmarks.clock import Time, middle, timed
from benchmarks.shape import Shape

REPEATS = 4


def products(shape: Shape) -> list[tuple[int, int, int, int]]:
    """(count, m, k, n) of the products x[m, k] · W[k, n] that LoRA on q and v needs with shared prompts.

    Forward and the gradient with respect to the input for every frozen matrix, but no gradient below layer 0's attention,
    and no gradient of frozen weights; the LM head at predicting positions alone.
    """
    answers = shape.pairs * shape.candidates * shape.answer
    tokens = shape.pairs * shape.prompt + answers
    H, M, layers = shape.hidden, shape.intermediate, shape.layers
    narrow = H * (shape.kv_heads or shape.heads) // shape.heads
    return [
        (2 * layers + 2 * layers - 1, tokens, H, H),  # q and o forward and backward
        (2 * layers, tokens, H, narrow),  # k and v forward
        (2 * layers - 2, tokens, narrow, H),  # and backward
        (2 * layers + layers, tokens, H, M),  # gate and up forward, down backward
        (layers + 2 * layers, tokens, M, H),  # down forward, gate and up backward
        (1, answers, H, shape.vocabulary),
        (1, answers, shape.vocabulary, H),
    ]


def attention_flops(shape: Shape) -> float:
    """Over the pairs of tokens that see each other; the backward pass is twice the forward pass."""
    P, A = shape.prompt, shape.answer
    pairs = P * (P + 1) / 2 + shape.candidates * (A * P + A * (A + 1) / 2)
    return 3 * 4 * pairs * shape.hidden * shape.layers * shape.pairs


def product_flops(shape: Shape) -> float:
    return sum(count * 2.0 * m * k * n for count, m, k, n in products(shape))


def flops(shape: Shape) -> float:
    """That one step needs."""
    return product_flops(shape) + attention_flops(shape)


def seconds(shape: Shape) -> Time:
    """Of one step. Attention's products are taken at the rate of the others."""
    wall = cpu = 0.0
    dtype = getattr(torch, shape.dtype)
    for count, m, k, n in products(shape):
        x, w = (torch.randn(*size, dtype=dtype, device=shape.device) for size in ((m, k), (k, n)))
        took = middle([timed(lambda x=x, w=w: x @ w) for _ in range(REPEATS)])
        wall, cpu = wall + count * took.wall, cpu + count * took.cpu
    share = flops(shape) / product_flops(shape)
    return Time(wall * share, cpu * share)
