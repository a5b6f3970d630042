"""From the experiment file to adapters: two rounds of iterative distillation, an objective from outside the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plad_ray.artifacts import Artifact
from plad_ray.config import Experiment, Model, parse
from plad_ray.models.load import load_model, load_tokenizer
from plad_ray.models.policy import resolve
from plad_ray.pipeline import plan
from plad_ray.train.sampler import Plan
from tests.conftest import save_tiny_model
from tests.generate.generate_jobs import prompt_rows
from tests.train import whole_runs

pytestmark = pytest.mark.usefixtures("gloo")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("teacher"), seed=5)


@pytest.fixture
def experiment(tmp_path, tiny_llama, teacher) -> Any:
    """A tuned student (LoRA) and a teacher, both answered by transformers."""
    rows = [{"prompt": row["prompt"], "reference": " w1"} for row in prompt_rows(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(tuned: str = "lora", **distill: Any) -> Experiment:
        lora = {"r": 4, "dropout": 0.0, "target_modules": "all-linear"}
        shared = {"max_length": 64}
        sections = {
            "name": "tiny",
            "data": {"source": "files", "path": str(tmp_path / "data.jsonl")},
            "teacher": {"model": {"path": str(teacher), **shared}, "engine": "transformers"},
            "student": {
                "model": {"path": str(tiny_llama), **shared},
                "engine": "transformers",
                "sft": {"method": tuned, "lora": lora, "learning_rate": 1e-2, "batch_size": 8},
            },
            "generate": {"max_tokens": 6},
            "pairs": {"drop_truncated_chosen": False},
            "distill": {"lora": lora, "learning_rate": 1e-2, "batch_size": 8, "schedule": "constant", **distill},
            "runtime": {"store": str(tmp_path / "runs"), "train": {"zero_stage": 0}},
        }
        return parse(sections)

    return make


def lines(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in (artifact.local_folder() / "metrics.jsonl").read_text().splitlines()]


def texts(artifact: Artifact) -> dict[str, str]:
    """What the student said, by prompt."""
    rows = artifact.rows(["policy", "split", "prompt_id", "text"])
    return {row["prompt_id"]: row["text"] for row in rows if (row["policy"], row["split"]) == ("student", "distill")}


def test_the_second_round_trains_on_what_the_first_student_says(experiment):
    exp = experiment(rounds=2, epochs=3, objective={"name": "plad_rank", "margin": 5.0})
    made = whole_runs.run(exp, plan(exp).report.inputs["train/distilled"])
    assert "distill-round2" in made and "distill" not in made
    before, after = texts(made["responses"]), texts(made["responses-student-round2"])
    assert before.keys() == after.keys() and sum(before[i] != after[i] for i in before) > len(before) / 2
    pairs = {row["prompt_id"]: row for row in made["pairs-round2"].rows()}
    assert pairs and all(row["rejected"] == after[i] for i, row in pairs.items())
    first = {row["prompt_id"]: row for row in made["pairs"].rows()}
    assert all(row["rejected"] == before[i] for i, row in first.items())
    assert all(pairs[i]["chosen"] == first[i]["chosen"] for i in pairs.keys() & first.keys()), (
        "the teacher's text stays"
    )
    check_goes_on_from_the_first(exp, made)


def test_whole_models_go_from_round_to_round(experiment):
    """What round 1 trained is served as a base of its own, and round 2 goes on from it."""
    exp = experiment("full", method="full", rounds=2, epochs=3, learning_rate=1e-3)
    made = whole_runs.run(exp, plan(exp).report.inputs["train/distilled"])
    before, after = texts(made["responses"]), texts(made["responses-student-round2"])
    assert before.keys() == after.keys() and any(before[i] != after[i] for i in before)
    names = ("sft-student", "distill-round1", "distill-round2")
    start, first, second = (load_file(made[name].local_folder() / "model.safetensors") for name in names)
    assert start.keys() == first.keys() == second.keys()
    assert not [n for n in start if torch.equal(start[n], first[n]) or torch.equal(first[n], second[n])]
    rows = list(made["pairs-round2"].rows())
    model = load_model(policy := resolve(exp.student.model, made["sft-student"], made["distill-round1"]))
    picked = [rows[i] for i in Plan(len(rows), 8, 3, exp.seed).step_rows(0)]
    logps = [spoken(model, load_tokenizer(policy), row) for row in picked]
    assert lines(made["distill-round2"])[0]["rewards/chosen"] == pytest.approx(sum(logps) / len(logps), rel=1e-4)


def check_goes_on_from_the_first(exp: Experiment, made: dict[str, Artifact]) -> None:
    """The first step of round 2 has the loss that round 1's adapter has on it: that is where training went on."""
    line = lines(made["distill-round2"])[0]
    rows = list(made["pairs-round2"].rows())
    picked = [rows[i] for i in Plan(len(rows), 8, 3, exp.seed).step_rows(0)]
    policy = resolve(exp.student.model, made["sft-student"], made["distill-round1"])
    model, tokenizer = load_model(policy), load_tokenizer(policy)
    logps = [spoken(model, tokenizer, row) for row in picked]
    assert line["rewards/chosen"] == pytest.approx(sum(logps) / len(logps), rel=1e-4)
    start, first, second = (
        load_file(made[name].local_folder() / "adapter_model.safetensors")
        for name in ("sft-student", "distill-round1", "distill-round2")
    )
    assert start.keys() == first.keys() == second.keys()
    assert any(not torch.equal(start[n], first[n]) for n in start), "round 1 moved"
    assert any(not torch.equal(first[n], second[n]) for n in first), "round 2 moved"


def spoken(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """Log-prob of a pair's chosen text, by a plain forward pass."""
    head, tail = tokenizer(row["prompt"]).input_ids, tokenizer(row["chosen"]).input_ids
    tail += [tokenizer.eos_token_id] if row["chosen_finish_reason"] == "stop" else []
    with torch.no_grad():
        table = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(table[len(head) - 1 + t, token].item() for t, token in enumerate(tail))


def test_an_objective_from_outside_the_package_runs_from_the_experiment_file(experiment):
    """It asks for a student that is distilled first and pulls its own towards it."""
    exp = experiment(objective={"name": "tests.train.external_objective:Pull", "strength": 2.0}, epochs=12)
    last = plan(exp).report.inputs["train/distilled"]
    made = whole_runs.run(exp, last)
    curve = lines(made["distill"])
    assert curve[0]["drift"] == pytest.approx(0, abs=1e-5), "the reference is the student as it starts"
    assert curve[-1]["drift"] > 0.1 and curve[-1]["loss"] < 0.3 * curve[0]["loss"]
    ahead = made[last.inputs["frozen/ahead/1"].name]
    assert lines(ahead)[-1]["rewards/margins"] > lines(ahead)[0]["rewards/margins"] + 0.5
    said = []
    for artifacts in ([], [ahead], [made["distill"]]):
        policy = resolve(exp.student.model, made["sft-student"], *artifacts)
        said.append([spoken(load_model(policy), load_tokenizer(policy), row) for row in made["pairs"].rows()])
    start, goal, reached = map(torch.tensor, said)
    assert (reached - goal).abs().mean() < 0.6 * (start - goal).abs().mean()
    assert Model.model_validate(made["distill"].manifest["config"]["frozen"]["ahead"]) == exp.student.model
