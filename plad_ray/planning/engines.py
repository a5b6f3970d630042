"""What an engine holds: weights, its work space, and the KV cache that is left for sequences."""

from __future__ import annotations

import os
from dataclasses import dataclass

from plad_ray.config import Pool
from plad_ray.generate.vllm_engine import CPU_SEQUENCES, GPU_SEQUENCES
from plad_ray.planning.hardware import GIB, Device
from plad_ray.planning.memory import CUDA_CONTEXT, PROCESS
from plad_ray.planning.shapes import Shape

#: share of a GPU's memory that vLLM takes by default
UTILIZATION = 0.92


@dataclass(frozen=True)
class EngineMemory:
    """Bytes over all devices of one engine; ``cache`` is what is left for keys and values."""

    weights: float
    workspace: float
    cache: float
    process: float
    sequences: int  # of the longest kind, at once
    fits: bool

    @property
    def total(self) -> float:
        return self.weights + self.workspace + max(0.0, self.cache) + self.process


def batches(shape: Shape, pool: Pool, tokens: int) -> EngineMemory:
    """An engine of kind ``transformers``: a batch of ``pool`` at a time, of sequences of ``tokens`` tokens."""
    batch = pool.batch_size
    workspace = batch * tokens * _states(shape) + 2 * batch * int(shape.text.vocab_size) * 4
    process = CUDA_CONTEXT if pool.gpus else PROCESS
    return EngineMemory(shape.weights, workspace, batch * tokens * shape.kv_token, process, batch, True)


def _states(shape: Shape) -> float:
    """Bytes of a token on its way through a layer: its states and the two halves of a gated MLP."""
    hidden = int(shape.text.hidden_size)
    sizes = (getattr(shape.text, name, None) for name in ("intermediate_size", "d_ff", "decoder_ffn_dim"))
    inner = next((int(size) for size in sizes if size), 4 * hidden)
    return (4 * hidden + 2 * inner) * shape.bytes_each


def engine(shape: Shape, pool: Pool, device: Device, tokens: int) -> EngineMemory:
    """A vLLM engine of ``pool`` for sequences of at most ``tokens`` tokens."""
    given = pool.engine_kwargs
    on_cpu = pool.gpus == 0
    step_tokens, sequences_at_once = (max(4096, 8 * tokens), CPU_SEQUENCES) if on_cpu else _gpu_limits(device)
    step = int(given.get("max_num_batched_tokens", step_tokens))
    most = int(given.get("max_num_seqs", sequences_at_once))
    # fp32 logits of every sequence, and their softmax
    workspace = step * _states(shape) + 2 * most * int(shape.text.vocab_size) * 4
    if on_cpu:
        process, cache = PROCESS, float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")) * GIB
    else:
        process = CUDA_CONTEXT * max(1.0, pool.gpus)
        share = float(given.get("gpu_memory_utilization", UTILIZATION))
        cache = share * device.memory * max(1.0, pool.gpus) - shape.weights - workspace - process
    sequences = min(most, int(cache // (tokens * shape.kv_token)))
    return EngineMemory(shape.weights, workspace, cache, process, sequences, sequences >= 1)


def _gpu_limits(device: Device) -> tuple[int, int]:
    """Tokens of a step and sequences at once, by vLLM's defaults for offline work (``EngineArgs.get_batch_defaults``)."""
    large = device.memory >= 70 * GIB and not device.name.startswith("A100")
    return (16384, GPU_SEQUENCES) if large else (8192, 256)
