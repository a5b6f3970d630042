"""What vLLM can serve, and how its engines are set up: requests go in as token ids, ids come back.

The traps this file avoids are listed with their evidence where they are handled; none of them shows as an error at once.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from plad_ray.config import Generate
from plad_ray.errors import PladError
from plad_ray.generate.pools import EnginePool, adapter_config, check_context
from plad_ray.generate.tasks import map_engine
from plad_ray.generate.vllm_actor import VllmEngine

if TYPE_CHECKING:
    from ray.data import Dataset

#: what vLLM's CPU attention kernels can do (vllm/v1/attention/backends/cpu_attn.py)
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
#: what vLLM accepts as max_lora_rank (vllm/config/lora.py)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: model types that vLLM serves without adapters only (their classes in vllm/model_executor/models lack SupportsLoRA)
WITHOUT_LORA = ("bloom", "dbrx", "falcon", "gpt2", "gptj", "stablelm")
#: sequences an engine works on at once: ours on a CPU, and the most that vLLM takes by itself on a GPU (H100; others 256)
CPU_SEQUENCES, GPU_SEQUENCES = 128, 1024
#: engine arguments that change the text, and so belong to identity, or that this module sets: where each one lives
REFUSED = {
    "model": "model.path",
    "tokenizer": "model.path",
    "revision": "model.revision",
    "tokenizer_revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "dtype": "model.dtype",
    "quantization": "model.load_in_4bit",
    "max_model_len": "model.max_length",
    "seed": "seed (the experiment's; every request has its own)",
    "enable_lora": "nothing: it is set when a policy has an adapter",
    "max_lora_rank": "nothing: it is set from the adapters",
    "max_loras": "nothing: it is set from the adapters",
    "logits_processors": "generate",
    "logprobs_mode": "nothing: verification reads raw log-probs",
    "generation_config": "generate",
    "override_generation_config": "generate",
    "hf_overrides": "model.path (change its config.json)",
    "kv_cache_dtype": "nothing yet: a quantised cache changes the text",
    "speculative_config": "nothing yet",
}


def check(pool: EnginePool) -> None:
    """Everything that can be known before an engine starts. Raises PladError."""
    check_engine_kwargs(pool)
    config = pool.config()
    check_architecture(config)
    check_context(config, pool.model)
    if pool.runtime.gpus == 0:
        check_vllm_cpu_head_size(config)
        if pool.model.load_in_4bit:
            raise PladError(f"{pool.role}.model.load_in_4bit needs GPUs: set runtime.{pool.role}.gpus")
    if pool.adapters:
        check_takes_lora(config)
    for folder in pool.adapters.values():
        check_adapter(folder)


def check_engine_kwargs(pool: EnginePool) -> None:
    """PladError for an argument that changes the result, does not go with the GPUs, or crashes a CPU engine."""
    given, where, gpus = pool.runtime.engine_kwargs, f"runtime.{pool.role}.engine_kwargs", pool.runtime.gpus
    for key in given:
        if key in REFUSED:
            raise PladError(f"{where}.{key}: runtime must not change the result; the place for it is {REFUSED[key]}")
    ways = given.get("tensor_parallel_size", 1) * given.get("pipeline_parallel_size", 1)
    if gpus > 0 and ways > 1 and gpus != ways:
        raise PladError(f"runtime.{pool.role}.gpus is {gpus:g}, but {where} spreads the model over {ways}")
    if gpus > 1 and gpus != int(gpus):
        raise PladError(f"runtime.{pool.role}.gpus is {gpus:g}: an engine has whole GPUs, or a share of one")
    if 0 < gpus < 1 and given.get("gpu_memory_utilization", 1) > gpus:
        raise PladError(
            f"runtime.{pool.role}.gpus is {gpus:g}, and an engine takes nearly all memory of its GPU: set {where}."
            f"gpu_memory_utilization to its share, {gpus:g} at most ({0.9 * gpus:g} leaves some room)"
        )
    if gpus == 0 and given.get("enable_chunked_prefill"):
        raise PladError(f"{where}.enable_chunked_prefill: a seeded request crashes vLLM's CPU engine with it")


def check_architecture(config: PretrainedConfig) -> None:
    """PladError when vLLM has no such architecture, or it is an encoder-decoder."""
    # A table, not vLLM's registry: that would import vLLM (6 s) and calls T5 and GPT-Neo servable by its fallback.
    if getattr(config, "is_encoder_decoder", False) or config.model_type == "gpt_neo":
        raise PladError(
            f"vLLM does not serve {config.model_type} models; set engine: transformers for the role that uses it"
        )


def check_takes_lora(config: PretrainedConfig) -> None:
    """PladError when vLLM serves the architecture, but no adapter on it."""
    if config.model_type in WITHOUT_LORA:
        raise PladError(
            f"vLLM serves {config.model_type} models without LoRA adapters; set engine: transformers for the role that "
            "uses it"
        )


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    text = config.get_text_config()
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def check_vllm_cpu_head_size(config: PretrainedConfig) -> None:
    """PladError when vLLM's CPU attention lacks the model's head size (it would fail at the first request)."""
    size = head_size(config)
    if size not in CPU_HEAD_SIZES:
        raise PladError(
            f"vLLM on CPU has no attention for head size {size} (it has {', '.join(map(str, CPU_HEAD_SIZES))}); set "
            "engine: transformers for the role that uses it, or give the role a GPU"
        )


def check_lora_rank(rank: int) -> int:
    """The smallest ``max_lora_rank`` of vLLM that holds ``rank``; PladError above the largest."""
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise PladError(f"LoRA rank {rank} is above what vLLM serves ({LORA_RANKS[-1]}); use a smaller lora.r")


def check_adapter(folder: str) -> None:
    """PladError for what vLLM does not apply: DoRA, trained biases, whole modules saved beside the LoRA."""
    config = adapter_config(folder)
    check_lora_rank(config["r"])
    for key, harmless in (("use_dora", (False, None)), ("bias", ("none", None)), ("modules_to_save", (None, []))):
        if config.get(key) not in harmless:
            raise PladError(f"adapter {folder}: vLLM does not apply {key} = {config[key]!r}; use engine: transformers")


def branch(requests: Dataset, pool: EnginePool) -> Dataset:
    """Requests of one pool to ANSWER rows."""
    from ray.data import ActorPoolStrategy

    runtime = pool.runtime
    return map_engine(
        requests,
        VllmEngine,
        (pool, engine_kwargs(pool), {name: sampling_params(pool.generate, pool.eos(name)) for name in pool.policies}),
        pool,
        batch_size=runtime.batch_size,
        compute=ActorPoolStrategy(
            size=runtime.replicas,
            max_tasks_in_flight_per_actor=in_flight(pool),
            max_concurrent_calls_per_actor=concurrent_blocks(pool),
            enable_true_multi_threading=True,
        ),
        num_gpus=runtime.gpus or None,
        accelerator_type=runtime.accelerator_type,
        runtime_env={"env_vars": environment(pool)},
    )


def concurrent_blocks(pool: EnginePool) -> int:
    """Blocks that one engine works on at a time: as many as fill it, and one that waits."""
    if pool.alone:
        return 1
    runtime = pool.runtime
    sequences = runtime.engine_kwargs.get("max_num_seqs", GPU_SEQUENCES if runtime.gpus > 0 else CPU_SEQUENCES)
    return max(2, math.ceil(sequences / runtime.batch_size) + 1)


def in_flight(pool: EnginePool) -> int:
    """Blocks that one replica has at a time."""
    return 1 if pool.alone else 2 * concurrent_blocks(pool)


def engine_kwargs(pool: EnginePool) -> dict[str, Any]:
    """Arguments of vLLM's engine: what the model says, what a CPU needs, and over those what the user gave."""
    model, base = pool.model, pool.base
    kwargs: dict[str, Any] = {
        "model": base.base,
        "dtype": model.dtype,
        "max_model_len": model.max_length,
        "trust_remote_code": base.trust_remote_code,
        "disable_log_stats": not pool.metrics,
        # several GPUs of one machine: Ray's own executor leaves its placement groups behind (ray #64035)
        "distributed_executor_backend": "mp" if pool.runtime.gpus > 1 else "uni",
        # a model's generation_config.json would change sampling behind the experiment's back
        "generation_config": "vllm",
    }
    if base.revision is not None:
        kwargs["revision"] = kwargs["tokenizer_revision"] = base.revision
    if model.load_in_4bit:
        kwargs["quantization"] = "bitsandbytes"
    if pool.runtime.gpus > 1:
        kwargs["tensor_parallel_size"] = int(pool.runtime.gpus)
    if pool.adapters:
        rank = max(adapter_config(folder)["r"] for folder in pool.adapters.values())
        kwargs |= {"enable_lora": True, "max_lora_rank": check_lora_rank(rank), "max_loras": min(8, len(pool.adapters))}
    if pool.adapters and pool.runtime.gpus == 0:
        # The CPU's LoRA kernel takes "no adapter" (slot -1) for the last slot, so beside an adapter's requests those of
        # the base would get that adapter too (seen in vLLM 0.32): the last slot stays empty, its weights are zeros.
        kwargs["max_loras"] = len(pool.adapters) + 1
    if pool.runtime.gpus == 0:
        # A seeded request whose prefill is chunked crashes the CPU engine ("CPU Generator does not use offset"), and
        # another engine would meet it again: no chunks, and a budget that several whole prompts fit.
        kwargs |= {
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, 8 * model.max_length),
            "max_num_seqs": CPU_SEQUENCES,
        }
    return kwargs | pool.runtime.engine_kwargs


def environment(pool: EnginePool) -> dict[str, str]:
    """Environment of the engine actors."""
    variables = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if pool.runtime.gpus == 0:
        variables |= {
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a process for the engine alone is one more for the same cores
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, int(pool.runtime.cpus))),
        }
    for name in ("HF_HUB_OFFLINE", "HF_HOME", "TRANSFORMERS_OFFLINE"):
        if name in os.environ:
            variables[name] = os.environ[name]
    return variables


def sampling_params(generate: Generate, eos: tuple[int, ...]) -> dict[str, Any]:
    """vLLM SamplingParams that the requests of a policy share; reasoning may hold a stop string, so then those are
    looked for afterwards only."""
    stop = list(generate.stop) if generate.strip_reasoning is None else []
    return {
        "top_p": generate.top_p,
        "top_k": generate.top_k,
        "max_tokens": generate.max_tokens,
        "stop_token_ids": list(eos),
        "ignore_eos": True,  # ours are in stop_token_ids; the model config's own may be another
        "stop": stop or None,
        "detokenize": bool(stop),
    }
