"""The gradient does not depend on micro-batches or workers; training does what its objective says; resume is exact."""

from __future__ import annotations

import gc
import json
import math
import weakref
from itertools import pairwise

import pyarrow as pa
import pytest
import torch
from train_jobs import WORDS, column, distill_job, pair_rows_table, publish, session, sft_job

from plad_ray.config import Model
from plad_ray.models.load import load_model, load_tokenizer
from plad_ray.models.policy import resolve
from plad_ray.models.tokens import encode_response
from plad_ray.train import worker
from plad_ray.train.worker import train_texts, work
from plad_ray.train.world import World

pytestmark = pytest.mark.usefixtures("gloo")
NAMES = ("loss", "grad_norm", "rewards/chosen", "rewards/accuracies", "lengths/rejected", "num_tokens", "epoch")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_llama, gloo):
    """The curve with each step in one micro-batch."""
    from plad_ray.artifacts import Store

    store = Store(str(tmp_path_factory.mktemp("loop")))
    return session(distill_job(store, tiny_llama, train={"micro_batch": 8}, epochs=2.5, **SFT_TERM))


SFT_TERM = {"objective": {"name": "plad_rank", "margin": 2.0, "sft_weight": 0.5}}


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4])
def test_micro_batch_size_does_not_change_the_run(micro_batch, whole, store, tiny_llama):
    job = distill_job(store, tiny_llama, train={"micro_batch": micro_batch, "zero_stage": 2}, epochs=2.5, **SFT_TERM)
    got = session(job)
    assert len(got) == math.ceil(2.5 * 24 / 8) == len(whole)
    for name in NAMES:
        torch.testing.assert_close(column(got, name), column(whole, name), rtol=1e-5, atol=1e-5)


def test_metric_lines(whole):
    first, last = whole[0], whole[-1]
    assert [line["step"] for line in whole] == list(range(1, 9))
    assert last["epoch"] == 2.5, "the last step is half a batch"
    assert first["lr"] == 1e-2 and last["lr"] == pytest.approx(1e-2 / 8)
    assert {"loss", "grad_norm", "num_tokens", "rewards/margins", "logps/chosen", "nll", "active"} <= set(first)
    assert all(later["num_tokens"] > earlier["num_tokens"] for earlier, later in pairwise(whole))


def test_loss_of_the_first_step_by_a_plain_forward_pass(whole, tiny_llama, store):
    """Hinge over all eight rows of step 1, from full logits of the untrained model (LoRA's B is 0)."""
    from plad_ray.train.sampler import Plan

    policy = resolve(Model(path=str(tiny_llama)))
    model, tokenizer = load_model(policy), load_tokenizer(policy)
    pairs = pair_rows_table().to_pylist()
    hinge, nll, tokens = [], 0.0, 0
    for index in Plan(24, 8, 2.5, 0).step_rows(0):
        pair = pairs[index]
        logp = []
        for side in ("chosen", "rejected"):
            prompt = tokenizer(pair["prompt"]).input_ids
            eos = None if pair[f"{side}_finish_reason"] == "length" else tokenizer.eos_token_id
            response = encode_response(tokenizer, pair[side], eos)
            with torch.no_grad():
                table = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            logp.append(sum(table[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)))
            if side == "chosen":
                nll, tokens = nll - logp[0], tokens + len(response)
        hinge.append(max(0.0, 2.0 - logp[0] + logp[1]))
    assert whole[0]["loss"] == pytest.approx(sum(hinge) / 8 + 0.5 * nll / tokens, rel=1e-5)


def test_plad_moves_chosen_above_rejected(store, tiny_llama):
    lora = {"r": 4, "dropout": 0.0, "target_modules": "all-linear"}
    job = distill_job(store, tiny_llama, batch_size=24, epochs=40, schedule="constant", lora=lora)
    lines = session(job)  # each line is of all pairs
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert lines[-1]["rewards/accuracies"] > max(0.9, lines[0]["rewards/accuracies"])
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"] + 0.5


def test_margin_objective_needs_scores_in_every_row(store, tiny_llama):
    job = distill_job(store, tiny_llama, objective={"name": "plad_margin"})
    assert math.isfinite(session(job)[-1]["loss"])
    table = pair_rows_table().to_pylist()
    table[3]["rejected_score"] = None
    broken = publish(store, "pairs-broken", type(pair_rows_table()).from_pylist(table, schema=pair_rows_table().schema))
    job.inputs["pairs"] = broken
    result = work(job, World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None))
    assert result == {"error": "the texts of prompt p3 have no score, and the objective needs one: set scorer.name"}


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_training_leaves_no_model_behind(zero_stage, store, tiny_llama, monkeypatch):
    """Several trainings may follow each other in one process, each as large as its memory."""
    made = []

    def noted(*arguments, own=worker.prepare):
        parts = own(*arguments)
        made.append(weakref.ref(parts.model))
        return parts

    monkeypatch.setattr(worker, "prepare", noted)
    session(distill_job(store, tiny_llama, train={"zero_stage": zero_stage}))
    gc.collect()
    assert [model() for model in made] == [None]


def test_resume_is_exact_with_dropout(store, tiny_llama, tmp_path):
    """Same ZeRO stage and world size: equal to the bit where it matters, 1e-6 over the whole curve."""
    settings = {"lora": {"r": 4, "dropout": 0.3}, "weight_decay": 0.1, "warmup_ratio": 0.3, "schedule": "cosine"}
    train = {"checkpoint_every": 2, "zero_stage": 2, "micro_batch": 3}
    unbroken = distill_job(store, tiny_llama, name="unbroken", train=train, **settings)
    lines = session(unbroken, keep=tmp_path)
    resumed = distill_job(store, tiny_llama, name="resumed", train=train, **settings)
    again = session(resumed, resume=tmp_path / "4")
    for name in ("loss", "grad_norm", "num_tokens", "rewards/margins"):
        torch.testing.assert_close(column(again, name), column(lines, name), rtol=1e-6, atol=1e-6)
    weights = [load_state(job) for job in (unbroken, resumed)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-7)


def test_a_machine_about_to_be_taken_away_has_one_checkpoint_more(store, tiny_llama, tmp_path):
    """Asked after ten steps, and not again once it is known."""
    asked = []
    training = {"epochs": 10, "train": {"checkpoint_every": 1000}}
    whole = session(distill_job(store, tiny_llama, name="distill-whole", **training))
    lines = session(
        distill_job(store, tiny_llama, **training), keep=tmp_path, preempted=lambda: not asked.append("when") or True
    )
    assert [p.name for p in tmp_path.iterdir() if p.name.isdigit()] == ["10"] and len(asked) == 1 and len(whole) > 20
    resumed = session(distill_job(store, tiny_llama, name="distill-1", **training), resume=tmp_path / "10")
    for again in (lines, resumed):
        torch.testing.assert_close(column(again), column(whole), rtol=1e-6, atol=1e-6)


def test_a_finished_runs_last_checkpoint_gives_the_same_artifact(store, tiny_llama, tmp_path):
    """What a driver killed between the last step and the manifest finds: nothing left to train but the tail."""
    job = distill_job(store, tiny_llama, train={"checkpoint_every": 5})
    lines = session(job, keep=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["5"], "none after the last step"
    assert column(session(job, resume=tmp_path / "5")).tolist() == pytest.approx(column(lines).tolist(), abs=1e-6)


def test_checkpoint_holds_no_pickle(store, tiny_llama, tmp_path):
    session(distill_job(store, tiny_llama, train={"checkpoint_every": 5}), keep=tmp_path)
    files = sorted(p.name for p in (tmp_path / "5").iterdir())
    assert files == ["state.json", "state.safetensors"]
    meta = json.loads((tmp_path / "5" / "state.json").read_text())
    assert meta["step"] == 5 == meta["adam_step"] == len(meta["lines"])


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run(store, tiny_llama):
    settings = {"lora": {"r": 4, "dropout": 0.5}}
    first = session(distill_job(store, tiny_llama, name="a", **settings))
    again = session(distill_job(store, tiny_llama, name="b", **settings))
    without = session(distill_job(store, tiny_llama, name="c"))
    assert column(first).tolist() == column(again).tolist()
    assert column(first).tolist() != column(without).tolist()


def test_full_sft_from_scratch_learns_eos_and_reloads(store):
    """Random weights learn the references and to stop after them; the folder written is a plain model."""
    scratch = {"config": dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)}
    job = sft_job(
        store,
        {"scratch": scratch | {"tokenizer": "words"}},
        method="full",
        batch_size=24,
        epochs=100,
        learning_rate=3e-3,
    )
    lines = session(job)
    assert lines[-1]["loss"] < 0.1 < lines[0]["loss"]
    policy = resolve(Model.model_validate(job.config["model"]), job.out)
    model, tokenizer = load_model(policy), load_tokenizer(policy)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = f"{WORDS[7]} {WORDS[8]} {WORDS[9]}"  # row p1, whose reference is "w9 w7"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    assert out == [*tokenizer(f"{WORDS[9]} {WORDS[7]}").input_ids, tokenizer.eos_token_id]


def test_sft_makes_an_adapter_and_distillation_continues_it(store, tiny_llama):
    sft = sft_job(store, {"path": str(tiny_llama)}, lora={"r": 4})
    session(sft)
    distill = distill_job(store, tiny_llama)
    distill.inputs["base/0"] = sft.out
    lines = session(distill)
    fresh = session(distill_job(store, tiny_llama, name="fresh"))
    assert lines[0]["loss"] != pytest.approx(fresh[0]["loss"]), "it starts from the tuned adapter"
    before, after = load_state(sft), load_state(distill)
    assert before.keys() == after.keys() and any(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_full_distillation_trains_every_weight_from_where_the_student_is(zero_stage, store, tiny_llama):
    """Of a student that full SFT has made a model: the reference is that student, the artifact a model of its own."""
    sft = sft_job(store, {"path": str(tiny_llama)}, method="full", learning_rate=1e-3)
    session(sft)
    settings = {"objective": {"name": "dpo"}, "learning_rate": 3e-3, "epochs": 8, "batch_size": 24}
    job = distill_job(store, tiny_llama, frozen={"reference": tiny_llama}, train={"zero_stage": zero_stage}, method="full",
                      **settings)  # fmt: skip
    job.inputs.update({"base/0": sft.out, "frozen/reference/0": sft.out})
    lines = session(job)
    assert lines[0]["loss"] == pytest.approx(math.log(2)) and lines[-1]["loss"] < 0.9 * math.log(2)
    policy = resolve(Model.model_validate(job.config["model"]), sft.out, job.out)
    assert policy.adapter is None and policy.base == str(job.out.local_folder())
    start = load_model(resolve(Model.model_validate(job.config["model"]), sft.out)).state_dict()
    trained = load_model(policy).state_dict()
    assert start.keys() == trained.keys() and not [n for n in start if torch.equal(start[n], trained[n])]
    assert load_tokenizer(policy).get_vocab() == load_tokenizer(resolve(Model(path=str(tiny_llama)))).get_vocab()


def test_full_distillation_continues_no_adapter(store, tiny_llama):
    sft = sft_job(store, {"path": str(tiny_llama)}, lora={"r": 4})
    session(sft)
    job = distill_job(store, tiny_llama, method="full")
    job.inputs["base/0"] = sft.out
    result = work(job, World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None))
    assert "distill.method full cannot continue an adapter" in result["error"]


def test_continued_adapter_of_another_rank_is_refused(store, tiny_llama):
    sft = sft_job(store, {"path": str(tiny_llama)}, lora={"r": 8})
    session(sft)
    distill = distill_job(store, tiny_llama)
    distill.inputs["base/0"] = sft.out
    result = work(distill, World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None))
    assert "lora.r 4 does not fit the adapter" in result["error"]


def test_divergence_is_told(store, tiny_llama):
    job = sft_job(store, {"path": str(tiny_llama)}, method="full", learning_rate=1e30)
    result = work(job, World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None))
    assert "the run has diverged" in result["error"]


def test_gradient_checkpointing_changes_nothing(store, tiny_llama):
    plain = session(distill_job(store, tiny_llama, name="plain"))
    saving = session(distill_job(store, tiny_llama, name="saving", train={"gradient_checkpointing": True}))
    torch.testing.assert_close(column(saving), column(plain), rtol=1e-6, atol=1e-6)


def load_state(job) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(job.out.local_folder() / "adapter_model.safetensors")


def test_a_tokenizer_made_here_learns_from_the_whole_train_shard():
    """Teacher and student tuned on different amounts of the shard share one vocabulary, as white-box methods need."""
    table = pa.table(
        {"split": ["train", "test", "train"], "prompt": ["a b", "zzz", "c"], "reference": ["d", "zzz", None]}
    )
    assert train_texts(table) == ["a b", "c", "d"]
