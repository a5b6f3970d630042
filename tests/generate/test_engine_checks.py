"""What is refused before any engine starts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers import GPTNeoConfig, LlamaConfig, T5Config

from plad_ray.artifacts import Store
from plad_ray.config import Generate, Model
from plad_ray.errors import PladError
from plad_ray.generate import transformers_engine, vllm_engine
from plad_ray.generate.pools import build_pools, check_context
from plad_ray.generate.verify import judge
from tests.conftest import save_tiny_model
from tests.generate.generate_jobs import adapter_artifact, make_job, policy, prompt_rows, prompts_artifact


def pool_of(store, model, runtime=None, inputs=None, engine="vllm", **settings):
    job = make_job(
        store, {"teacher": policy(model, "teacher", engine, **settings)}, inputs or {}, {"teacher": runtime or {}}
    )
    return build_pools(job)[0]


@pytest.mark.parametrize(
    ("key", "place"),
    [("dtype", "model.dtype"), ("max_model_len", "model.max_length"), ("revision", "model.revision"), ("seed", "seed")],
)
def test_engine_kwargs_that_change_the_result_are_refused(store, tiny_llama, key, place):
    pool = pool_of(store, tiny_llama, {"engine_kwargs": {key: 1}})
    with pytest.raises(PladError, match=f"runtime.teacher.engine_kwargs.{key}.*{place}"):
        vllm_engine.check(pool)


def test_other_engine_kwargs_reach_vllm(store, tiny_llama):
    pool = pool_of(store, tiny_llama, {"engine_kwargs": {"max_num_seqs": 7, "swap_space": 1}})
    vllm_engine.check(pool)
    kwargs = vllm_engine.engine_kwargs(pool)
    assert (kwargs["max_num_seqs"], kwargs["swap_space"]) == (7, 1)
    assert kwargs["max_model_len"] == 48 and kwargs["dtype"] == "float32"
    assert kwargs["enable_chunked_prefill"] is False and kwargs["max_num_batched_tokens"] >= 8 * 48
    assert "enable_lora" not in kwargs


def test_a_pool_of_its_own_works_on_one_block_and_metrics_need_stats(store, tiny_llama):
    job = make_job(
        store, {"teacher": policy(tiny_llama, engine="vllm")}, {}, {"engine_metrics": True, "engine_tries": 5}
    )
    [pool] = build_pools(job)
    assert vllm_engine.engine_kwargs(pool)["disable_log_stats"] is False and pool.tries == 5
    assert vllm_engine.in_flight(pool) == 2 * vllm_engine.concurrent_blocks(pool) == 2 * (128 // 64 + 1)
    alone = replace(pool, alone=True)
    assert vllm_engine.in_flight(alone) == vllm_engine.concurrent_blocks(alone) == 1


def test_chunked_prefill_is_refused_on_cpu_and_left_alone_on_gpu(store, tiny_llama):
    with pytest.raises(PladError, match="enable_chunked_prefill"):
        vllm_engine.check(pool_of(store, tiny_llama, {"engine_kwargs": {"enable_chunked_prefill": True}}))
    gpu = pool_of(store, tiny_llama, {"gpus": 2})
    vllm_engine.check(gpu)
    kwargs = vllm_engine.engine_kwargs(gpu)
    assert vllm_engine.concurrent_blocks(gpu) * gpu.runtime.batch_size >= 1024, "vLLM's own max_num_seqs on an H100"
    assert "enable_chunked_prefill" not in kwargs and "enforce_eager" not in kwargs
    assert (kwargs["tensor_parallel_size"], kwargs["distributed_executor_backend"]) == (2, "mp")
    with pytest.raises(PladError, match=r"gpus is 2.*over 4"):
        vllm_engine.check(pool_of(store, tiny_llama, {"gpus": 2, "engine_kwargs": {"tensor_parallel_size": 4}}))


def test_engines_that_share_a_gpu_share_its_memory(store, tiny_llama):
    for kwargs in ({}, {"gpu_memory_utilization": 0.9}):
        with pytest.raises(PladError, match=r"runtime.teacher.gpus is 0.5.*gpu_memory_utilization.*0.45 leaves"):
            vllm_engine.check(pool_of(store, tiny_llama, {"gpus": 0.5, "engine_kwargs": kwargs}))
    vllm_engine.check(pool_of(store, tiny_llama, {"gpus": 0.5, "engine_kwargs": {"gpu_memory_utilization": 0.5}}))
    with pytest.raises(PladError, match=r"gpus is 1\.5: an engine has whole GPUs"):
        vllm_engine.check(pool_of(store, tiny_llama, {"gpus": 1.5}))


def test_adapters_get_rank_and_a_spare_slot(store, tiny_llama):
    adapter = adapter_artifact(store, tiny_llama, "sft-0", rank=12)
    kwargs = vllm_engine.engine_kwargs(pool_of(store, tiny_llama, inputs={"teacher/0": adapter}))
    assert kwargs["max_lora_rank"] == 16
    assert kwargs["max_loras"] == 2, "the CPU kernel applies the last slot to requests without an adapter"


def test_lora_ranks():
    assert [vllm_engine.check_lora_rank(r) for r in (1, 2, 8, 9, 65, 257, 512)] == [1, 8, 8, 16, 128, 320, 512]
    with pytest.raises(PladError, match="513"):
        vllm_engine.check_lora_rank(513)


def test_adapters_vllm_cannot_apply(store, tiny_llama):
    adapter = adapter_artifact(store, tiny_llama, "sft-0")
    file = adapter.local_folder() / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(PladError, match="use_dora"):
        vllm_engine.check(pool_of(store, tiny_llama, inputs={"teacher/0": adapter}))


def test_head_size_and_architecture():
    with pytest.raises(PladError, match=r"head size 8 .*engine: transformers"):
        vllm_engine.check_vllm_cpu_head_size(LlamaConfig(hidden_size=64, num_attention_heads=8))
    vllm_engine.check_vllm_cpu_head_size(LlamaConfig(hidden_size=64, num_attention_heads=8, head_dim=32))
    for config in (GPTNeoConfig(), T5Config()):
        with pytest.raises(PladError, match="engine: transformers"):
            vllm_engine.check_architecture(config)
    vllm_engine.check_architecture(LlamaConfig())


def test_adapters_on_an_architecture_that_takes_none(store, tmp_path):
    gpt2 = save_tiny_model(tmp_path / "gpt2", "gpt2")
    vllm_engine.check(pool_of(store, gpt2))
    adapter = adapter_artifact(store, gpt2, "sft-0", targets=["c_attn"])
    with pytest.raises(PladError, match=r"gpt2 models without LoRA.*engine: transformers"):
        vllm_engine.check(pool_of(store, gpt2, inputs={"teacher/0": adapter}))


def test_context():
    model = Model(path="x", max_length=300)
    with pytest.raises(PladError, match=r"max_length 300 exceeds the 256"):
        check_context(LlamaConfig(max_position_embeddings=256), model)
    check_context(LlamaConfig(max_position_embeddings=300), model)


def test_transformers_engine_takes_no_engine_kwargs(store, tiny_llama):
    with pytest.raises(PladError, match="engine_kwargs"):
        transformers_engine.check(pool_of(store, tiny_llama, {"engine_kwargs": {"x": 1}}, engine="transformers"))


def test_generation_fails_before_ray_starts(store, tmp_path, monkeypatch):
    from plad_ray.generate import run as generate_run

    monkeypatch.setattr(generate_run, "connect", lambda runtime: pytest.fail("Ray was started"))
    small = save_tiny_model(tmp_path / "small", hidden_size=32)
    job = make_job(
        store, {"teacher": policy(small, "teacher", "vllm")}, {"prompts": prompts_artifact(store, prompt_rows(2))}
    )
    with pytest.raises(PladError, match="head size 16"):
        generate_run.run(job)


def test_sampling_parameters():
    plain = vllm_engine.sampling_params(Generate(max_tokens=5, top_p=0.9, stop=("x",)), (2, 7))
    assert plain["stop_token_ids"] == [2, 7] and plain["max_tokens"] == 5
    assert plain["stop"] == ["x"] and plain["detokenize"] is True
    thinking = vllm_engine.sampling_params(Generate(stop=("x",), strip_reasoning=("<a>", "</a>")), (2,))
    assert thinking["stop"] is None and thinking["detokenize"] is False


def found(**numbers):
    return {"max": 1e-6, "mean": 1e-7, "base": 0.3, "effect": 1.0, "zero": 0.0, "tokens": 20.0} | numbers


def test_verdict(store, tiny_llama):
    adapter = adapter_artifact(store, tiny_llama, "sft-0")
    pool = pool_of(store, tiny_llama, inputs={"teacher/0": adapter})
    judge("teacher", pool, found())
    judge("teacher", pool, found(effect=0.0, zero=1.0, base=0.0))
    for numbers in ({"max": 2e-3}, {"max": float("nan")}):
        with pytest.raises(PladError, match=r"disagree about adapter.*verify_engine"):
            judge("teacher", pool, found(**numbers))
    with pytest.raises(PladError, match="does not act"):
        judge("teacher", pool, found(effect=0.0))
    half = pool_of(Store(store.root), tiny_llama, dtype="bfloat16")
    judge("teacher", half, found(max=0.2, mean=0.01))
    with pytest.raises(PladError, match="bfloat16"):
        judge("teacher", half, found(max=0.2, mean=0.06))
