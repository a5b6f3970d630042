from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from plad_ray.config import Model
from plad_ray.generate import requests, verify
from plad_ray.generate.pools import build_pools
from plad_ray.generate.tasks import REQUEST
from plad_ray.generate.transformers_engine import TransformersEngine
from plad_ray.models.policy import resolve
from plad_ray.models.sampling import draw as draw_token
from plad_ray.models.sampling import sample
from plad_ray.models.tokens import decode, encode_prompt, eos_ids
from tests.conftest import save_tiny_model
from tests.generate.generate_jobs import adapter_artifact, draw, make_job, policy, prompt_rows, prompts_artifact


@pytest.mark.parametrize("model_type", ["llama", "gpt_neo", "gpt2"])
def test_greedy_equals_generate(tmp_path, model_type):
    """GPT-Neo's local layer sees 4 tokens: padding on the left must not take their place."""
    folder = save_tiny_model(tmp_path / model_type, model_type)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    prompts = [(tokenizer(row["prompt"]).input_ids * 4)[: 2 + 5 * i] for i, row in enumerate(prompt_rows(4))]
    together = sample(model, prompts, [0.0] * 4, [0] * 4, 12, (2,))
    for prompt, (ids, logps) in zip(prompts, together, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        assert ids == expected[0, len(prompt) :].tolist()
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(
            torch.tensor(logps, dtype=torch.float64),
            logits.gather(1, torch.tensor(ids)[:, None])[:, 0].double(),
            atol=1e-4,
            rtol=0,
        )


def test_sampled_rows_do_not_depend_on_their_batch(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    prompts = [[3 + i, 4, 5 + i][: 1 + i % 3] for i in range(6)]
    temperatures, seeds = [0.7, 0.0, 1.5, 1.0, 0.7, 2.0], [11, 12, 13, 14, 15, 16]
    together = [ids for ids, _ in sample(model, prompts, temperatures, seeds, 8, (2,))]
    alone = [sample(model, [p], [t], [s], 8, (2,))[0][0] for p, t, s in zip(prompts, temperatures, seeds, strict=True)]
    assert together == alone
    other = [ids for ids, _ in sample(model, prompts, temperatures, [s + 1 for s in seeds], 8, (2,))]
    assert other[1] == together[1] and other[2] != together[2]


def test_draws_follow_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)).expand(1000, -1)
    uniform = torch.arange(1000, dtype=torch.float64) / 1000
    one = torch.ones(1000, dtype=torch.float64)
    assert draw_token(logits, one, uniform, 1.0, 0).bincount().tolist() == [500, 200, 300]
    assert draw_token(logits, one, uniform, 1.0, 2).bincount(minlength=3).tolist() == [625, 0, 375]
    assert draw_token(logits, one, uniform, 0.5, 0).bincount(minlength=3).tolist() == [1000, 0, 0]
    assert draw_token(logits, 0.5 * one, uniform, 1.0, 0).bincount().tolist() == [658, 105, 237]  # 25 : 4 : 9 of 38
    assert draw_token(logits, 0 * one, uniform, 1.0, 0).bincount().tolist() == [1000]


def test_adapters_side_by_side(store, tiny_llama):
    first, second = adapter_artifact(store, tiny_llama, "a-0"), adapter_artifact(store, tiny_llama, "b-0", seed=9)
    specs = {n: policy(tiny_llama, "student", "transformers", [draw(temperatures=(0.0,))]) for n in ("base", "a", "b")}
    job = make_job(store, specs, {"prompts": prompts_artifact(store, prompt_rows(6)), "a/0": first, "b/0": second})
    (pool,) = build_pools(job)
    rows = list(
        requests.encoded(
            requests.pool_requests(job.inputs["prompts"], pool, {n: s["draws"] for n, s in specs.items()}, 0), pool
        )
    )
    import pyarrow as pa

    rows = list(requests.mark_verified(rows, ["a"], 2))
    answers = TransformersEngine(pool)(pa.Table.from_pylist(rows, schema=REQUEST)).to_pylist()
    assert sorted(a["rid"] for a in answers) == sorted(r["rid"] for r in rows)
    for name, artifact in (("base", None), ("a", first), ("b", second)):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        if artifact is not None:
            model = PeftModel.from_pretrained(model, artifact.local_folder())
        mine = [a for a in answers if a["policy"] == name]
        expected = sample(model.eval(), [a["prompt_token_ids"] for a in mine], [0.0] * 6, [0] * 6, 8, (2,))
        assert [a["ids"] for a in mine] == [ids for ids, _ in expected]
    sampled = [
        {"prompt_ids": a["prompt_token_ids"], "ids": a["ids"], "logprobs": a["logprobs"]}
        for a in answers
        if a["logprobs"]
    ]
    assert len(sampled) == 2
    good = verify.measure(pool.policies["a"], "float32", sampled)
    assert good["max"] < 1e-5 < 1e-2 < good["base"]
    wrong = verify.measure(pool.policies["b"], "float32", sampled)
    assert wrong["max"] > 1e-2, "log-probs of another adapter do not pass"
    assert verify.measure(pool.policies["base"], "float32", sampled)["max"] > 1e-2


def test_a_zero_adapter_is_known_as_one(store, tiny_llama):
    zero = adapter_artifact(store, tiny_llama, "zero-0", scale=0)
    policy_ = resolve(Model(path=str(tiny_llama)), zero)
    sampled = [{"prompt_ids": [3, 4], "ids": [5, 6], "logprobs": [-1.0, -1.0]}]
    found = verify.measure(policy_, "float32", sampled)
    assert found["zero"] == 1 and found["effect"] == 0
    acting = resolve(Model(path=str(tiny_llama)), adapter_artifact(store, tiny_llama, "a-0"))
    assert verify.measure(acting, "float32", sampled)["zero"] == 0


@pytest.mark.parametrize("folder", ["stories260K/hf", "babyllama_char/hf_tok105"])
def test_real_models_tell_stories(shared, folder):
    """Head sizes 8 and 16, stories that end with ``<s>``: vLLM on CPU serves neither."""
    section = Model(path=str(shared / "models" / folder), eos_token="<s>", max_length=256)
    model = AutoModelForCausalLM.from_pretrained(section.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(section.path)
    prompts = [encode_prompt(tokenizer, {"prompt": text}, section) for text in ("Once upon a time", "One day, a")]
    drawn = sample(model, prompts, [0.0, 0.0], [0, 0], 40, eos_ids(tokenizer, section))
    text = decode(tokenizer, drawn[0][0])
    assert "there was a" in text.lower(), text
