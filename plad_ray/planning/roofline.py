"""Least times by a roofline: work over what a device reaches, compute or memory bandwidth, whichever is slower.

Products of x[n, d] with W[d, m] are 2·n·d·m FLOPs; attention is 4·d FLOPs for a query and a key that it sees, a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from plad_ray.planning.hardware import Device
from plad_ray.planning.shapes import Shape

#: shares of the data sheets' peaks that engines and trainers reach: assumptions, shown beside every plan
PREFILL, TRAINING, BANDWIDTH = 0.5, 0.4, 0.7


@dataclass(frozen=True)
class Time:
    seconds: float
    bound: str  # compute | bandwidth


def attention(shape: Shape, queries: float, context: float) -> float:
    """FLOPs of ``queries`` that see ``context`` keys each, in all layers."""
    return 4.0 * shape.layers * int(shape.text.hidden_size) * queries * context


def generation(
    shape: Shape, device: Device, ways: float, batch: int, requests: int, prompts: int, prompt: int, response: int
) -> Time:
    """Of one engine over ``ways`` devices: each distinct prompt is read once (prefix caching), then ``batch`` sequences at a
    time grow by a token a step, which reads all weights and the cache of what is there so far."""
    rate = device.flops(shape.dtype) * ways * PREFILL
    read = 2.0 * shape.body * prompts * prompt + attention(shape, float(prompts) * prompt, prompt / 2)
    batch = min(batch, requests)
    context = prompt + response / 2
    compute = batch * (2.0 * (shape.body + shape.head) + attention(shape, 1, context)) / rate
    traffic = (shape.weights + batch * context * shape.kv_token) / (device.bandwidth * ways * BANDWIDTH)
    steps = requests / batch * response
    bound = "compute" if compute > traffic or read / rate > steps * traffic else "bandwidth"
    return Time(read / rate + steps * max(compute, traffic), bound)


def training(
    shape: Shape,
    device: Device,
    workers: int,
    rows: float,
    tokens: int,
    context: float,
    positions: int,
    full: bool,
    recompute: bool,
    frozen: tuple[Shape, ...] = (),
) -> Time:
    """Of ``rows`` rows of ``tokens`` tokens, of which ``positions`` reach the LM head. Backward through frozen weights takes
    as much as forward, through trained ones twice as much; ``recompute``: the forward pass is done again."""
    body = tokens * 2.0 * shape.body + attention(shape, tokens, context)
    passes = (3 if full else 2) + recompute
    flops = passes * body + (3 if full else 2) * positions * 2.0 * shape.head
    for other in frozen:
        flops += tokens * 2.0 * other.body + attention(other, tokens, context) + positions * 2.0 * other.head
    return Time(rows * flops / (device.flops(shape.dtype) * workers * TRAINING), "compute")
