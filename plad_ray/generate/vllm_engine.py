"""vLLM behind ray.data.llm: requests go in as token ids with their own sampling parameters, ids come back.

The traps this file avoids are listed with their evidence where they are handled; none of them shows as an error at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from plad_ray.config import Generate
from plad_ray.errors import PladError
from plad_ray.generate.pools import EnginePool, adapter_config, check_context
from plad_ray.generate.tasks import ONE_TASK, VllmRequest, vllm_answer

if TYPE_CHECKING:
    from ray.data import Dataset

#: what vLLM's CPU attention kernels can do (vllm/v1/attention/backends/cpu_attn.py)
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
#: what vLLM accepts as max_lora_rank (vllm/config/lora.py)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: model types that vLLM serves without adapters only (their classes in vllm/model_executor/models lack SupportsLoRA)
WITHOUT_LORA = ("bloom", "dbrx", "falcon", "gpt2", "gptj", "stablelm")
#: what Ray's processor calls its stage that holds the engine
ENGINE_STAGE = "vLLMEngineStage"
#: sequences a CPU engine works on at once
CPU_SEQUENCES = 128
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
    """PladError for an argument that changes the result, names the wrong number of GPUs, or crashes a CPU engine."""
    given, where = pool.runtime.engine_kwargs, f"runtime.{pool.role}.engine_kwargs"
    for key in given:
        if key in REFUSED:
            raise PladError(f"{where}.{key}: runtime must not change the result; the place for it is {REFUSED[key]}")
    ways = given.get("tensor_parallel_size", 1) * given.get("pipeline_parallel_size", 1)
    if pool.runtime.gpus > 0 and ways > 1 and pool.runtime.gpus != ways:
        raise PladError(f"runtime.{pool.role}.gpus is {pool.runtime.gpus:g}, but {where} spreads the model over {ways}")
    if pool.runtime.gpus == 0 and given.get("enable_chunked_prefill"):
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
    """Requests of one pool to ANSWER rows (failed ones as ray.data.llm leaves them)."""
    from ray.data.llm import build_processor

    weights = {name: policy.adapter or policy.base for name, policy in pool.policies.items()}
    # The same for every row of a pool: where some rows have null, Arrow hands the others' 0 on as 0.0, and a float there
    # kills the engine's input thread, which nobody notices: all requests then wait for ever.
    logprobs = {"logprobs": 0 if pool.adapters else None}
    sampling = {name: sampling_params(pool.generate, pool.eos(name)) | logprobs for name in pool.policies}
    processor = build_processor(
        processor_config(pool),
        preprocess=VllmRequest(weights, sampling),
        postprocess=vllm_answer,
        preprocess_map_kwargs=ONE_TASK,
        postprocess_map_kwargs=ONE_TASK,
    )
    # the processor's own configuration has no place for it, and Ray would try a block whose engine dies without end
    processor.get_stage_by_name(ENGINE_STAGE).map_batches_kwargs["max_task_retries"] = pool.tries - 1
    _set_engine(processor, pool)
    return processor(requests)


def _set_engine(processor: Any, pool: EnginePool) -> None:
    """Ray's engine, but it copies its weights out of the object store before it starts (it may be on any machine), and each
    request comes back once, whole: Ray would have vLLM hand on an output for every token, and drop all but the last."""
    stage = processor.get_stage_by_name(ENGINE_STAGE)

    class Engine(stage.fn):  # type: ignore[name-defined]
        def __init__(self, *arguments: Any, fetch: Callable[[], None], **more: Any):
            fetch()
            super().__init__(*arguments, **more)
            self.llm._prepare_llm_request = final_only(self.llm._prepare_llm_request)

    arguments = {**stage.fn_constructor_kwargs, "fetch": pool.fetch}
    # A copy: at an assignment Ray's validator runs again without the bundle it has consumed, and asks for a GPU instead,
    # for which a machine without one waits for ever (seen in Ray 2.60).
    processor.stages[ENGINE_STAGE] = stage.model_copy(update={"fn": Engine, "fn_constructor_kwargs": arguments})


def final_only(prepare: Callable[[dict[str, Any]], Awaitable[Any]]) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    """``prepare`` makes a request of a row; an enum as this one does not pass through the Arrow that rows are."""
    from vllm.sampling_params import RequestOutputKind

    async def prepared(row: dict[str, Any]) -> Any:
        request = await prepare(row)
        request.params.output_kind = RequestOutputKind.FINAL_ONLY
        return request

    return prepared


def concurrent_batches(pool: EnginePool) -> int:
    """Blocks that one engine works on at a time: as many as fill it, and one that waits."""
    if pool.alone:
        return 1
    return max(2, math.ceil(engine_kwargs(pool).get("max_num_seqs", 256) / pool.runtime.batch_size) + 1)


def in_flight(pool: EnginePool) -> int:
    """Blocks that one replica has at a time."""
    return 1 if pool.alone else 2 * concurrent_batches(pool)


def processor_config(pool: EnginePool) -> Any:
    """The vLLMEngineProcessorConfig of a pool."""
    from ray.data.llm import vLLMEngineProcessorConfig

    runtime, kwargs = pool.runtime, engine_kwargs(pool)
    return vLLMEngineProcessorConfig(
        model_source=pool.base.base,
        engine_kwargs=kwargs,
        concurrency=(runtime.replicas, runtime.replicas),  # an int would mean autoscaling from 1 (ray #59144)
        batch_size=runtime.batch_size,
        max_concurrent_batches=concurrent_batches(pool),
        max_tasks_in_flight_per_actor=in_flight(pool),
        should_continue_on_error=True,
        log_engine_metrics=pool.metrics,
        accelerator_type=runtime.accelerator_type,
        placement_group_config={"bundles": [{"CPU": runtime.cpus, "GPU": runtime.gpus}]},
        runtime_env={"env_vars": environment(pool)},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def engine_kwargs(pool: EnginePool) -> dict[str, Any]:
    """Arguments of vLLM's engine: what the model says, what a CPU needs, and over those what the user gave."""
    model, base = pool.model, pool.base
    kwargs: dict[str, Any] = {
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
        # ray.data.llm would restart it for ever: no chunks, and a budget that several whole prompts fit.
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
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # keeps the worker inside the engine process
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
