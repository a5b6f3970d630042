"""Encoder-decoders through the transformers engine: against transformers' own generate and a plain forward pass."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from plad_ray.config import Model
from plad_ray.errors import PladError
from plad_ray.generate import requests, transformers_engine, verify
from plad_ray.generate.pools import build_pools
from plad_ray.generate.responses import part_row
from plad_ray.generate.tasks import REQUEST
from plad_ray.models.policy import resolve
from plad_ray.models.sampling import sample
from tests.generate.generate_jobs import adapter_artifact, draw, make_job, policy, prompt_rows, prompts_artifact

TARGETS = ["q", "v"]


def loaded(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_greedy_equals_generate_and_log_probs_a_plain_forward(tiny_t5):
    model, tokenizer = loaded(tiny_t5)
    prompts = [tokenizer(row["prompt"]).input_ids[-2 - i :] for i, row in enumerate(prompt_rows(4))]
    assert [len(p) for p in prompts] == [2, 3, 4, 5] and all(p[-1] == 2 for p in prompts)
    drawn = sample(model, prompts, [0.0, 0.0, 0.9, 0.0], [0, 0, 5, 0], 12, (2,))
    for prompt, (ids, logps), greedy in zip(prompts, drawn, (True, True, False, True), strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        if greedy:
            assert [0, *ids] == expected[0].tolist()
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *ids[:-1]]])).logits[0]
        by_hand = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].double()
        torch.testing.assert_close(torch.tensor(logps, dtype=torch.float64), by_hand, atol=1e-4, rtol=0)


def test_sampled_rows_do_not_depend_on_their_batch(tiny_t5):
    model, _ = loaded(tiny_t5)
    prompts = [[3 + i, 4, 5 + i, 2][: 2 + i % 3] for i in range(6)]
    temperatures, seeds = [0.7, 0.0, 1.5, 1.0, 0.7, 2.0], [11, 12, 13, 14, 15, 16]
    together = [ids for ids, _ in sample(model, prompts, temperatures, seeds, 8, (2,))]
    alone = [sample(model, [p], [t], [s], 8, (2,))[0][0] for p, t, s in zip(prompts, temperatures, seeds, strict=True)]
    assert together == alone
    other = [ids for ids, _ in sample(model, prompts, temperatures, [s + 1 for s in seeds], 8, (2,))]
    assert other[1] == together[1] and other[2] != together[2]


def test_the_prompt_is_encoded_once(tiny_t5):
    model, _ = loaded(tiny_t5)
    calls = []
    model.get_encoder().register_forward_hook(lambda *a: calls.append(1))
    sample(model, [[3, 4, 2], [5, 2]], [1.0, 1.0], [1, 2], 6, (99,))
    assert len(calls) == 1


def test_adapters_side_by_side_and_verified(store, tiny_t5):
    first = adapter_artifact(store, tiny_t5, "a-0", targets=TARGETS)
    second = adapter_artifact(store, tiny_t5, "b-0", seed=9, targets=TARGETS)
    spec = policy(tiny_t5, "student", "transformers", [draw(temperatures=(0.0,))])
    inputs = {"prompts": prompts_artifact(store, prompt_rows(6)), "a/0": first, "b/0": second}
    job = make_job(store, {"base": spec, "a": spec, "b": spec}, inputs)
    (pool,) = build_pools(job)
    assert pool.seq2seq
    transformers_engine.check(pool)
    draws = {name: [draw(temperatures=(0.0,))] for name in pool.policies}
    rows = list(requests.encoded(requests.pool_requests(job.inputs["prompts"], pool, draws, 0), pool))
    assert all(row["prompt_token_ids"][-1] == 2 for row in rows), "the encoder's input ends with EOS"
    rows = list(requests.mark_verified(rows, ["a"], 2))
    answers = transformers_engine.TransformersEngine(pool)(pa.Table.from_pylist(rows, schema=REQUEST)).to_pylist()
    for name, artifact in (("base", None), ("a", first), ("b", second)):
        model, tokenizer = loaded(tiny_t5)
        if artifact is not None:
            model = PeftModel.from_pretrained(model, artifact.local_folder()).eval()
        for answer in (a for a in answers if a["policy"] == name):
            ids = model.generate(input_ids=torch.tensor([answer["prompt_token_ids"]]), max_new_tokens=8)[0].tolist()[1:]
            assert answer["ids"] == ids
            row = part_row({name: pool}, answer)
            assert row["text"] == tokenizer.decode(ids, skip_special_tokens=True)
            assert row["finish_reason"] == ("stop" if ids[-1] == 2 else "length")
    sampled = [
        {"prompt_ids": a["prompt_token_ids"], "ids": a["ids"], "logprobs": a["logprobs"]}
        for a in answers
        if a["logprobs"]
    ]
    assert len(sampled) == 2
    good = verify.measure(pool.policies["a"], "float32", sampled)
    assert good["max"] < 1e-5 < 1e-2 < good["base"]
    assert verify.measure(pool.policies["b"], "float32", sampled)["max"] > 1e-2


def test_each_side_has_max_length_for_itself(store, tiny_t5):
    """8 prompt tokens and 8 new ones fit max_length 8; a prompt of 9 does not."""
    rows = [{**prompt_rows(1)[0], "prompt": " ".join(["w1"] * words)} for words in (7, 8)]
    job = make_job(store, {"t": policy(tiny_t5, engine="transformers", max_length=8)}, {})
    (pool,) = build_pools(job)
    tokenizer = pool.tokenizer("t")
    assert [len(ids) for ids in requests.prompt_ids(rows[:1], tokenizer, pool)] == [8]
    with pytest.raises(PladError, match=r"9 tokens exceed model\.max_length 8"):
        requests.prompt_ids(rows[1:], tokenizer, pool)


def test_a_config_without_a_start_token_is_refused(tiny_t5):
    model, _ = loaded(tiny_t5)
    model.config.decoder_start_token_id = None
    with pytest.raises(PladError, match="no decoder_start_token_id"):
        sample(model, [[3, 2]], [0.0], [0], 2, (2,))


def test_an_adapter_that_adds_nothing_is_known_as_one(store, tiny_t5):
    zero = adapter_artifact(store, tiny_t5, "zero-0", scale=0, targets=TARGETS)
    sampled = [{"prompt_ids": [3, 4, 2], "ids": [5, 6], "logprobs": [-1.0, -1.0]}]
    found = verify.measure(resolve(Model(path=str(tiny_t5)), zero), "float32", sampled)
    assert found["zero"] == 1 and found["effect"] == 0
