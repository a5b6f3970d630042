"""Bytes that a training worker or an engine holds at most.

Weights, gradients and optimizer follow ZeRO's accounting (arXiv 1910.02054, §3 and Figure 1): with Adam and 16-bit weights
(2 + 2 + 12) bytes a trainable parameter, of which the stages divide the last 12, then the gradients, then the weights by
the number of workers. Activations are not estimated but counted: the trainer's own batch goes through the model on the meta
device, forward and backward, and every tensor's bytes are added up while it lives.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from plad_ray.config import TrainRuntime
from plad_ray.planning.shapes import Shape, trainable
from plad_ray.train.deepspeed import config_file
from plad_ray.train.forward import causal_model, response_hidden
from plad_ray.train.layout import Batch, Row, Segments, Span
from plad_ray.train.logprobs import CHUNK_ELEMENTS
from plad_ray.train.seq2seq import Seq2SeqBatch

#: copies of a chunk of logits [n, V] that live at once: logits, their fp32 log-softmax, its gradient, the logits' gradient
CHUNK_COPIES = 4
#: what fused kernels leave of the activations, measured on a Llama (benchmarks/RESULTS.md); not counted on with
#: gradient checkpointing, where it was not measured
FUSED = 0.72
#: bytes of a process that trains before its model is there: Python with its libraries, and on a GPU CUDA's context besides
PROCESS, CUDA_CONTEXT = 0.75e9, 0.8e9
#: DeepSpeed's default, elements
REDUCE_BUCKET = 500_000_000


@dataclass(frozen=True)
class Zero:
    """Bytes of one worker for the model's states."""

    weights: float
    gradients: float
    optimizer: float


def zero_states(
    frozen: float, trained: int, stage: int, workers: int, dtype: str = "bfloat16", offload: str = "none"
) -> Zero:
    """``frozen``: bytes of weights that are not trained; ``trained``: how many parameters are.

    Adam's two moments and, from stage 1 on, an fp32 copy of the weights: 8 or 12 bytes a trained parameter. ``offload``
    moves the optimizer, or all of it, to the host.
    """
    each = 2 if dtype == "bfloat16" else 4
    weights = frozen + trained * each
    gradients = float(trained * each)
    optimizer = float(trained * (12 if stage else 8))
    if stage >= 1:
        optimizer /= workers
    if stage >= 2:
        gradients /= workers
    if stage >= 3:
        weights /= workers
    if offload != "none":
        optimizer = 0.0
    return Zero(0.0 if offload == "all" else weights, gradients, optimizer)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one worker, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    process: float
    trained: int

    @property
    def total(self) -> float:
        """Activations and a chunk of logits are there together when the last layer is done."""
        states = self.weights + self.gradients + self.optimizer
        return states + self.activations + self.logits + self.buffers + self.process


def training(
    shape: Shape, model: nn.Module, runtime: TrainRuntime, batch: Batch, frozen: float = 0.0
) -> TrainingMemory:
    """Of a worker that trains ``model`` (of ``shape``, on the meta device) on micro-batches like ``batch``; ``frozen``:
    bytes of frozen models beside it."""
    if runtime.gradient_checkpointing:
        causal_model(model).gradient_checkpointing_enable({"use_reentrant": False})
    trained = trainable(model)
    base = 0.0 if trained == shape.parameters else shape.weights
    states = zero_states(base + frozen, trained, runtime.zero_stage, runtime.workers, shape.dtype, runtime.offload)
    vocabulary = int(shape.text.vocab_size)
    on = "cuda" if runtime.gpus_per_worker else "cpu"
    chunk = min(CHUNK_ELEMENTS[on], len(batch.source_N) * vocabulary)
    fused = runtime.fused_kernels and not runtime.gradient_checkpointing
    return TrainingMemory(
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=activations(model, batch) * (FUSED if fused else 1.0),
        logits=float(CHUNK_COPIES * chunk * 4),
        buffers=_buffers(shape, runtime, trained),
        process=PROCESS if runtime.gpus_per_worker == 0 else CUDA_CONTEXT,
        trained=trained,
    )


def like_rows(count: int, prompt: int, response: int, candidates: int) -> list[Row]:
    """``count`` rows of those lengths."""
    tokens = np.ones(prompt, np.int32), tuple(np.ones(response, np.int32) for _ in range(candidates))
    return [Row(*tokens, (0.0,) * candidates) for _ in range(count)]


def _buffers(shape: Shape, runtime: TrainRuntime, trained: int) -> float:
    """What DeepSpeed sets aside: a bucket of gradients, and under ZeRO-3 the weights that are gathered at once. On a CPU
    only what is written is resident."""
    if runtime.zero_stage == 0:
        return 0.0
    zero = json.loads(config_file(runtime, shape.dtype).read_text())["zero_optimization"]
    bucket = int(zero.get("reduce_bucket_size", REDUCE_BUCKET))
    if runtime.gpus_per_worker == 0:
        bucket = min(bucket, trained)
    live = min(int(zero.get("stage3_max_live_parameters", 0)), shape.parameters) if runtime.workers > 1 else 0
    return (bucket + live) * shape.bytes_each


def activations(model: nn.Module, batch: Batch) -> float:
    """Bytes that a forward and a backward pass of ``model`` (on the meta device) over ``batch`` add at their peak, apart
    from LM head and loss. Gradients of the weights are not counted."""
    model.train()
    if batch.segments is None and not isinstance(batch, Seq2SeqBatch):
        # a mask that is given: making one of lengths reads numbers, which meta tensors have none of
        batch = replace(batch, segments=_causal(batch.ids_SL))
    moved = batch.to(torch.device("meta"))
    with Peak(model) as peak, efficient_attention():
        response_hidden(model, moved).sum().backward()
    for parameter in model.parameters():
        parameter.grad = None
    return float(peak.most)


def _causal(ids_SL: Tensor) -> Segments:
    zeros_SL, L = torch.zeros_like(ids_SL), ids_SL.shape[1]
    whole = (Span(0, L, L),)
    return Segments(torch.arange(L).expand_as(ids_SL), zeros_SL, zeros_SL, (whole,) * len(ids_SL))


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, those of the model and of the gradients of its weights apart."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.known = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
        self.shapes = {p.shape for p in model.parameters() if p.requires_grad}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # a number of a meta tensor: encoder-decoders ask whether a mask hides nothing, and it does not
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        if storage._cdata in self.known or value.shape in self.shapes:
            return
        self.known.add(storage._cdata)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, storage._cdata, size)

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@contextmanager
def efficient_attention() -> Generator[None]:
    """``scaled_dot_product_attention`` as the kernels of real devices do it: no matrix of queries × keys is kept (the meta
    device would keep it). Replaced and not overridden by a mode, since the backward pass computes checkpoints again outside
    of modes."""
    functional: Any = F
    own = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Attention.apply(query, key, value)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
