"""Preference objectives in training: each moves what it should, against the student as it was where it needs that."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from train_jobs import WORDS, column, distill_job, pair_rows_table, publish, session, sft_job

from plad_ray.objectives import build
from plad_ray.records import list_schema
from plad_ray.stages import Job
from plad_ray.train.layout import concatenate
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.worker import prepare, sections, work
from plad_ray.train.world import World

pytestmark = pytest.mark.usefixtures("gloo")
EVERY = {
    "batch_size": 24,
    "epochs": 25,
    "schedule": "constant",
    "lora": {"r": 4, "dropout": 0.0, "target_modules": "all-linear"},
}
HERE = World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None)


def list_table() -> pa.Table:
    """Chosen and rejected of each pair in turn first, and in two of three lists a third text between them in score."""
    rows = []
    for i, pair in enumerate(pair_rows_table().to_pylist()):
        texts = [(pair["chosen"], 1.0, "stop"), (pair["rejected"], 0.0, pair["rejected_finish_reason"])]
        texts = texts[:: 1 if i % 2 else -1] + ([(WORDS[(3 * i) % 40], 0.5, "stop")] if i % 3 else [])
        columns = dict(
            zip(("candidates", "scores", "finish_reasons"), map(list, zip(*texts, strict=True)), strict=True)
        )
        rids = [f"{i}:{k}" for k in range(len(texts))]
        rows.append({"prompt": pair["prompt"], "prompt_id": pair["prompt_id"], "rids": rids, **columns})
    return pa.Table.from_pylist(rows, schema=list_schema(chat=False))


def preference_job(store, base, objective: dict, sft: Job | None = None, name: str = "distill-0", **settings) -> Job:
    """A distillation of ``base`` (its adapter ``sft``, where given) with the frozen models that ``objective`` reads."""
    job = distill_job(store, base, name=name, objective=objective, **settings)
    kind = build(objective["name"], {k: v for k, v in objective.items() if k != "name"})
    if kind.trains_on == "lists":
        job.inputs["pairs"] = publish(store, "lists-0", list_table())
    for frozen in kind.logps_of:
        job.config.setdefault("frozen", {})[frozen] = job.config["model"]
    if sft is not None:
        job.inputs.update({"base/0": sft.out, **{f"frozen/{frozen}/0": sft.out for frozen in kind.logps_of}})
    return job


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "dpo", "beta": 0.5},
        {"name": "dpo", "beta": 0.5, "reverse": True},
        {"name": "simpo"},
        {"name": "slic", "sft_weight": 0.1},
        {"name": "rso", "gamma": 0.5},
        {"name": "rso", "gamma": 0.5, "kind": "hinge"},
        {"name": "rrhf"},
        {"name": "lipo", "beta": 0.5, "labels": "rank"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_each_objective_orders_the_texts_it_is_given(objective, store, tiny_llama):
    lines = session(preference_job(store, tiny_llama, objective, **EVERY))  # each line is of all rows
    first, last = lines[0], lines[-1]
    assert last["loss"] < first["loss"] - 0.02
    assert last["rewards/margins"] > first["rewards/margins"] + 0.3
    assert last["rewards/accuracies"] > max(0.8, first["rewards/accuracies"])
    gaps = [line["logps/chosen"] - line["logps/rejected"] for line in (first, last)]
    assert gaps[1] > gaps[0] + 0.5  # at this learning rate the last bits of a sum move it by a tenth
    if "rewards/list_accuracies" in first:
        assert last["rewards/list_accuracies"] > max(0.8, first["rewards/list_accuracies"])
        assert first["candidates"] == pytest.approx(2 + 2 / 3)


@pytest.fixture
def start(request, store, tiny_llama) -> Job | None:
    """How the student came to be: the bare base, or an adapter of LoRA SFT on it."""
    if request.param == "base":
        return None
    job = sft_job(store, {"path": str(tiny_llama)}, lora={"r": 4, "dropout": 0.0})
    session(job)
    return job


both_starts = pytest.mark.parametrize("start", ["base", "adapter"], indirect=True)


@both_starts
def test_the_reference_is_exactly_the_student_at_its_start_and_stays_so(start, store, tiny_llama):
    job = preference_job(store, tiny_llama, {"name": "dpo"}, start)
    parts = prepare(job, HERE, *sections(job.config))
    assert parts.frozen.adapters == {"reference": None if start is None else "reference"}
    assert not parts.frozen.own, "no second copy of the base"
    module = ResponseValues(parts.model, parts.objective, parts.frozen).eval()
    batch = concatenate(parts.rows[:6], pad=0)
    reference = module.frozen_logps("reference", batch)
    with torch.no_grad():
        assert torch.equal(module(batch)["logp"], reference)
        for name, parameter in parts.model.named_parameters():
            if parameter.requires_grad:
                assert "reference" not in name
                parameter.add_(0.1)
        assert not torch.allclose(module(batch)["logp"], reference, atol=1e-3)
    assert torch.equal(module.frozen_logps("reference", batch), reference)


@both_starts
def test_dpo_starts_at_log_two_and_its_reward_margin_grows(start, store, tiny_llama):
    job = preference_job(store, tiny_llama, {"name": "dpo", "beta": 0.5}, start, batch_size=24, epochs=8)
    lines = session(job)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    margins = column(lines, "rewards/margins")
    assert margins[-1] > 0.1 and bool(np.all(np.diff(margins) > 0))


def test_micro_batches_do_not_change_a_run_on_lists_of_unequal_size(store, tiny_llama):
    curves = [
        # not LiPO: its weights follow the order of rewards, which at the first step are all 0 but for rounding
        session(preference_job(store, tiny_llama, {"name": "rrhf"}, name=f"distill-{m}", train={"micro_batch": m}))
        for m in (8, 3, 1)
    ]
    for name in ("loss", "grad_norm", "rewards/list_accuracies", "candidates"):
        for other in curves[1:]:
            torch.testing.assert_close(column(other, name), column(curves[0], name), rtol=1e-5, atol=1e-6)


def test_lists_without_scores_are_refused(store, tiny_llama):
    job = preference_job(store, tiny_llama, {"name": "rrhf"})
    rows = list_table().to_pylist()
    rows[2]["scores"] = [None] * len(rows[2]["scores"])
    job.inputs["pairs"] = publish(store, "lists-broken", pa.Table.from_pylist(rows, schema=list_schema(chat=False)))
    expected = "the texts of prompt p2 have no score, and the objective needs one: set scorer.name"
    assert work(job, HERE) == {"error": expected}
