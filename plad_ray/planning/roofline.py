"""Least times by a roofline: work over what a device reaches, compute or memory bandwidth, whichever is slower.

Products of x[n, d] with W[d, m] are 2·n·d·m FLOPs; attention is 4·d FLOPs for a query and a key that it sees, a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from plad_ray.planning.hardware import Device
from plad_ray.planning.shapes import Shape

#: shares of the data sheets' peaks that engines and trainers reach: assumptions, shown beside every plan
PREFILL, BANDWIDTH = 0.5, 0.7
#: likewise of training: on CPUs, and on GPUs (an H100, benchmarks/RESULTS.md) without and with ``fused_kernels``
TRAINING_CPU, TRAINING, TRAINING_FUSED = 0.4, 0.27, 0.4


@dataclass(frozen=True)
class Time:
    seconds: float
    bound: str  # compute | bandwidth


def attention(shape: Shape, queries: float, context: float) -> float:
    """FLOPs of ``queries`` that see ``context`` keys each, in all layers."""
    return 4.0 * shape.layers * int(shape.text.hidden_size) * queries * context


@dataclass(frozen=True)
class Work:
    """A training row: ``tokens`` that see ``context`` keys each, of which ``positions`` reach the LM head. Those of an
    encoder-decoder are its decoder's; ``encoded`` is its prompt, which ``readers`` decoder sequences look at."""

    tokens: float
    context: float
    positions: int
    encoded: int = 0
    readers: int = 1


def forward(shape: Shape, work: Work) -> float:
    """FLOPs of a forward pass over one row, LM head apart."""
    decoder = work.tokens * 2.0 * (shape.body - shape.cross) + attention(shape, work.tokens, work.context)
    return decoder + encoding(shape, work.encoded, work.readers)


def encoding(shape: Shape, tokens: float, readers: int = 1) -> float:
    """FLOPs of a prompt of ``tokens`` tokens until ``readers`` decoders have its keys and values."""
    among = 4.0 * shape.encoder_layers * int(shape.text.hidden_size) * tokens * tokens
    return tokens * 2.0 * (shape.encoder + readers * shape.cross) + among


def generation(
    shape: Shape, device: Device, ways: float, batch: int, requests: int, prompts: int, prompt: int, response: int
) -> Time:
    """Of one engine over ``ways`` devices: ``prompts`` are read, then ``batch`` sequences at a time grow by a token a step,
    which reads all weights (an encoder-decoder's: of the decoder) and the cache of what is there so far."""
    rate = device.flops(shape.dtype) * ways * PREFILL
    if shape.seq2seq:
        read = prompts * encoding(shape, prompt)
    else:
        read = 2.0 * shape.body * prompts * prompt + attention(shape, float(prompts) * prompt, prompt / 2)
    batch = min(batch, requests)
    context = prompt + response / 2
    compute = batch * (2.0 * (shape.body - shape.cross + shape.head) + attention(shape, 1, context)) / rate
    weights = shape.weights - (shape.encoder + shape.cross) * shape.bytes_each
    traffic = (weights + batch * context * shape.kv_token) / (device.bandwidth * ways * BANDWIDTH)
    steps = requests / batch * response
    bound = "compute" if compute > traffic or read / rate > steps * traffic else "bandwidth"
    return Time(read / rate + steps * max(compute, traffic), bound)


def training(
    shape: Shape,
    device: Device,
    workers: int,
    rows: float,
    work: Work,
    full: bool,
    recompute: bool,
    frozen: tuple[Shape, ...] = (),
    fused: bool = False,
) -> Time:
    """Of ``rows`` rows like ``work``. Backward through frozen weights takes as much as forward, through trained ones twice
    as much; ``recompute``: the forward pass is done again; ``fused``: with fused kernels."""
    passes = (3 if full else 2) + recompute
    flops = passes * forward(shape, work) + (3 if full else 2) * work.positions * 2.0 * shape.head
    for other in frozen:
        flops += forward(other, work) + work.positions * 2.0 * other.head
    reached = device.flops(shape.dtype) * workers * training_share(device, fused)
    return Time(rows * flops / reached, "compute")


def training_share(device: Device, fused: bool) -> float:
    """Of the device's peak, what training reaches."""
    if device.shared:
        return TRAINING_CPU
    return TRAINING_FUSED if fused else TRAINING
