"""The averaging stage: which layers get which weight, and weights learned on the distilled student's own text."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from safetensors.torch import load_file, save_file

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Model, Runtime
from plad_ray.errors import PladError
from plad_ray.merge import lora, stage
from plad_ray.models.load import load_model, load_tokenizer
from plad_ray.models.policy import resolve
from plad_ray.models.sampling import sample
from plad_ray.models.tokens import decode, eos_ids
from plad_ray.records import PROMPT, RESPONSE, SCORE
from plad_ray.stages import Job, Stage, run_stage
from tests.generate.generate_jobs import prompt_rows
from tests.merge.ends import (
    LAYERS,
    adapter_artifact,
    dense,
    dense_log_probs,
    log_probs,
    make_end,
    policy_of,
    rows_artifact,
)
from tests.study.here import one_after_another

MAX_NEW = 8


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "runs"))


def averaging(store: Store, base, start, distilled, texts=None, name: str = "average-0", **how) -> Job:
    """``start`` None: the base itself."""
    inputs = {"distilled": adapter_artifact(store, "distill-0", distilled)} | (texts or {})
    if start is not None:
        inputs["start/0"] = adapter_artifact(store, "sft-student-0", start)
    config = {"model": {"path": str(base), "max_length": 64}, "averaging": how, "seed": 0}
    return Job("average-distilled", config, inputs, Artifact(store, name), Runtime())


@pytest.fixture
def alone(monkeypatch):
    """Weights are learned in this process."""
    monkeypatch.setattr(stage, "at_workers", one_after_another)


def run(job: Job) -> dict:
    run_stage(Stage(job.stage, stage.run, job.config), job, say=lambda _: None)
    return job.out.manifest["metrics"]


RANGES = {"all": [0.3] * 4, "low": [0.3, 0, 0, 0], "middle": [0, 0.3, 0, 0], "high": [0, 0, 0.3, 0.3]}


@pytest.mark.parametrize("layers", RANGES)
def test_layer_ranges(layers, store, base, start, distilled):
    """Thirds of four layers: 0, 1, 2–3; the others stay as distilled."""
    job = averaging(store, base, start, distilled, base_weight=0.3, layers=layers)
    parts = run(job)["parts"]
    assert [p["base_weight"] for p in parts for _ in range(p["layers"][0], p["layers"][1] + 1)] == RANGES[layers]
    weights = dense(policy_of(base, start), policy_of(base, distilled), {None: 0.0, **dict(enumerate(RANGES[layers]))})
    policy = resolve(Model(path=str(base)), job.inputs["start/0"], job.out)
    got = log_probs(load_model(policy))
    torch.testing.assert_close(got, dense_log_probs(base, weights), rtol=0, atol=1e-5)
    assert load_tokenizer(policy).vocab_size == load_tokenizer(policy_of(base)).vocab_size


def answers(store: Store, policy, temperature: float = 1.0, count: int = 24) -> dict[str, Artifact]:
    """Prompts, and what ``policy`` itself says to them."""
    model, tokenizer = load_model(policy), load_tokenizer(policy)
    prompts = prompt_rows(count)
    eos = eos_ids(tokenizer, Model(path="x"))
    asked = [tokenizer(row["prompt"]).input_ids for row in prompts]
    drawn = sample(model, asked, [temperature] * count, list(range(count)), MAX_NEW, eos)
    rows = []
    for prompt, (ids, _) in zip(prompts, drawn, strict=True):
        ended = ids[-1] in eos
        text = " " + decode(tokenizer, ids[:-1] if ended else ids)
        row = {"rid": prompt["prompt_id"], "prompt_id": prompt["prompt_id"], "policy": "student", "split": "distill"}
        rows.append(row | {"text": text, "finish_reason": "stop" if ended else "length"})
    return {
        "prompts": rows_artifact(store, "prompts-0", prompts, PROMPT),
        "responses": rows_artifact(store, "proxy-0", rows, RESPONSE),
    }


def plain_nll(model, tokenizer, texts) -> float:
    """Mean NLL a token by plain forward passes, one text at a time."""
    by_id = {row["prompt_id"]: row["prompt"] for row in texts["prompts"].rows()}
    total, tokens = 0.0, 0
    for row in texts["responses"].rows():
        if not row["text"].strip():
            continue
        prompt, response = tokenizer(by_id[row["prompt_id"]]).input_ids, tokenizer(row["text"]).input_ids
        response += [tokenizer.eos_token_id] if row["finish_reason"] == "stop" else []
        with torch.no_grad():
            table = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        total -= sum(table[len(prompt) - 1 + t, token].item() for t, token in enumerate(response))
        tokens += len(response)
    return total / tokens


def ends_that_differ_above(base, folder, form):
    """Start (None: the base) and distilled, which differ in layers 2–3 only."""
    start = make_end(base, folder / "start", seed=8, scale=0.05, target_modules="all-linear")
    distilled = make_end(base, folder / "distilled", seed=7, target_modules="all-linear")
    tensors, before = load_file(distilled / lora.TENSORS), load_file(start / lora.TENSORS)
    if form == "fresh adapter":
        start, before = None, {name: tensor * 0 for name, tensor in before.items()}
    save_file({n: before[n] if _layer(n) < 2 else t for n, t in tensors.items()}, distilled / lora.TENSORS)
    return start, distilled


def _layer(name: str) -> int:
    return int(name.split(".layers.")[1].split(".")[0])


@pytest.mark.parametrize("form", ["fresh adapter", "continued adapter"])
def test_learned_weights_spare_the_part_that_distillation_changed(form, store, sharp, tmp_path, alone):
    """Weight on layers 2–3 costs likelihood and weight on 0–1 costs none."""
    base, (start, distilled) = sharp, ends_that_differ_above(sharp, tmp_path, form)
    texts = answers(store, policy_of(base, distilled))
    job = averaging(store, base, start, distilled, texts, base_weight=0.4, parts=2, epochs=12, batch_size=8)
    metrics = run(job)
    low, high = (part["base_weight"] for part in metrics["parts"])
    assert [part["layers"] for part in metrics["parts"]] == [[0, 1], [2, 3]]
    assert (low + high) / 2 == pytest.approx(0.4, abs=1e-6) and high < 0.3 < 0.5 < low
    assert metrics["loss"]["learned"] < metrics["loss"]["plain"] - 0.05
    assert len(metrics["curve"]) == ceil(12 * job.out.manifest["rows"]["out"] / 8)
    starts = [job.inputs["start/0"]] if start else []
    policy = resolve(Model(path=str(base)), *starts, job.out)
    nll = plain_nll(load_model(policy), load_tokenizer(policy), texts)
    assert nll == pytest.approx(metrics["loss"]["learned"], rel=1e-4), (
        "the adapter written is the model that was learned"
    )
    plain = averaging(store, base, start, distilled, name="average-plain", base_weight=0.4)
    run(plain)
    policy = resolve(Model(path=str(base)), *starts, plain.out)
    nll = plain_nll(load_model(policy), load_tokenizer(policy), texts)
    assert nll == pytest.approx(metrics["loss"]["plain"], rel=1e-4)


def test_the_l1_term_holds_weights_at_their_mean(store, sharp, tmp_path, alone):
    start, distilled = ends_that_differ_above(sharp, tmp_path, "fresh adapter")
    texts = answers(store, policy_of(sharp, distilled), count=16)
    spread = []
    for l1 in (0.0, 1.0):
        how = {"base_weight": 0.4, "parts": 2, "epochs": 6, "batch_size": 8, "l1": l1}
        metrics = run(averaging(store, sharp, start, distilled, texts, name=f"average-{l1}", **how))
        low, high = (part["base_weight"] for part in metrics["parts"])
        spread.append(low - high)
    assert spread[0] > 0.1 and abs(spread[1]) < 0.5 * spread[0]


def test_micro_batches_do_not_change_what_is_learned(store, base, distilled, alone):
    texts = answers(store, policy_of(base, distilled), count=20)
    found = []
    for micro_batch in (3, 64):
        how = {"base_weight": 0.4, "parts": LAYERS, "l1": 0.01}
        job = averaging(store, base, None, distilled, texts, name=f"average-{micro_batch}", **how)
        runtime = Runtime.model_validate({"train": {"micro_batch": micro_batch}})
        found.append(run(Job(job.stage, job.config, job.inputs, job.out, runtime)))
    assert found[0]["curve"] == pytest.approx(found[1]["curve"], rel=1e-5)
    weights = [[part["base_weight"] for part in metrics["parts"]] for metrics in found]
    assert weights[0] == pytest.approx(weights[1], abs=1e-5) and len(set(weights[0])) == LAYERS


def test_only_the_best_answers_are_learned_from(store, base, distilled, ray_session):
    texts = answers(store, policy_of(base, distilled), count=20)
    rows = list(texts["responses"].rows(["rid", "text"]))
    spoken = [row["rid"] for row in rows if row["text"].strip()]
    scores = [{"rid": row["rid"], "score": float(-i)} for i, row in enumerate(rows)]
    texts["scores"] = rows_artifact(store, "proxy-scores-0", scores, SCORE)
    job = averaging(store, base, None, distilled, texts, parts=2, top=0.3)
    run(job)
    kept = -(-len(spoken) * 3 // 10)
    counted = {"empty": len(rows) - len(spoken), "below_top": len(spoken) - kept}
    expected = {"in": 20, "out": kept, "dropped": {reason: n for reason, n in counted.items() if n}}
    assert job.out.manifest["rows"] == expected


def test_ends_that_do_not_belong_together_are_refused(store, base, start, distilled, tmp_path):
    with pytest.raises(PladError, match="5 parts of 4 adapted layers"):
        run(averaging(store, base, start, distilled, {}, parts=5))
    fewer = make_end(base, tmp_path / "fewer", seed=1, target_modules=("q_proj",))
    with pytest.raises(PladError, match="did not start from"):
        run(averaging(store, base, fewer, distilled, name="average-1"))
    with pytest.raises(PladError, match="averaging needs an adapter and the student that it was trained from"):
        stage.read_ends(policy_of(base), policy_of(base))


def test_all_is_averaged_with_gpt2s_transposed_weights(store, tmp_path, alone):
    """Conv1D holds its weight transposed; hooks and LoRA arithmetic do not see it."""
    from tests.conftest import save_tiny_model

    gpt2 = save_tiny_model(tmp_path / "gpt2", "gpt2", n_embd=64, n_layer=2, n_head=2)
    distilled = make_end(gpt2, tmp_path / "distilled", seed=3, target_modules=("c_attn", "c_fc"))
    texts = answers(store, policy_of(gpt2, distilled), count=8)
    job = averaging(store, gpt2, None, distilled, texts, base_weight=0.5, parts=2)
    metrics = run(job)
    policy = policy_of(gpt2, job.out.local_folder())
    nll = plain_nll(load_model(policy), load_tokenizer(policy), texts)
    assert nll == pytest.approx(metrics["loss"]["learned"], rel=1e-4)
