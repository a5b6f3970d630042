"""Other families through a real vLLM engine, with a LoRA adapter beside the base where vLLM takes one: its log-probs are
those of transformers."""

from __future__ import annotations

import pytest

from plad_ray.artifacts import Store
from plad_ray.generate import run as generate_run
from plad_ray.generate.pools import build_pools
from plad_ray.models.load import load_model
from plad_ray.models.sampling import sample
from plad_ray.models.tokens import encode_prompt
from tests.conftest import save_tiny_model
from tests.generate.generate_jobs import adapter_artifact, draw, make_job, policy, prompt_rows, prompts_artifact

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

#: PEFT's default target modules by family; none: vLLM serves it without adapters
TARGETS = {"qwen2": ("q_proj", "v_proj"), "gpt_neox": ("query_key_value",), "gpt2": ()}


@pytest.mark.parametrize("model_type", TARGETS)
def test_a_family_is_served_as_transformers_computes_it(model_type, tmp_path, ray_session):
    store, rows = Store(str(tmp_path / "runs")), prompt_rows(12)
    base = save_tiny_model(tmp_path / "base", model_type, seed=2)
    spec = policy(base, "student", "vllm", [draw(temperatures=(0.0, 0.8))])
    policies, inputs = {"student": spec}, {"prompts": prompts_artifact(store, rows)}
    if TARGETS[model_type]:
        policies["tuned"] = spec
        inputs["tuned/0"] = adapter_artifact(store, base, "sft-student-0", targets=TARGETS[model_type])
    job = make_job(store, policies, inputs)
    outcome = generate_run.run(job)
    assert outcome.rows_out == 24 * len(policies) and not outcome.dropped
    for name, found in outcome.metrics.get("verified", {}).items():
        print(model_type, name, found)
        assert found["max"] < 1e-3
        assert name == "student" or found["base"] > 10 * found["max"]
    assert set(outcome.metrics.get("verified", {})) == (set(policies) if TARGETS[model_type] else set())
    (pool,) = build_pools(job)
    answers = {row["rid"]: row["token_ids"] for row in job.out.rows()}
    for name in policies:
        eos = pool.eos(name)
        prompts = [encode_prompt(pool.tokenizer(name), row, pool.model) for row in rows]
        drawn = sample(load_model(pool.policies[name]), prompts, [0.0] * 12, [0] * 12, 8, eos)
        for row, (tokens, _) in zip(rows, drawn, strict=True):
            assert answers[f"{row['prompt_id']}:{name}:0:0"] == [t for t in tokens if t not in eos]
