"""Every method on the demo task, from text to report: one experiment whose arms are all of them.

Ray and the vLLM engines are real and shared by the arms; training runs in this process, by the function that Ray Train's
workers run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plad_ray import config
from plad_ray.artifacts import Store
from plad_ray.objectives import OBJECTIVES
from plad_ray.pipeline import plan
from plad_ray.stages import Job, execute
from plad_ray.train.worker import work
from plad_ray.train.world import World

ROOT = Path(__file__).parents[1]


def experiment(root: Path, arms: dict[str, Any]) -> config.Experiment:
    """The demo with a budget for seconds; ``arms`` beside plad_rank."""
    tiny = {
        "data.sizes": {"train": 96, "distill": 12, "dev": 4, "test": 6},
        "teacher.sft.epochs": 1,
        "teacher.sft.batch_size": 32,
        "student.model.scratch.config.hidden_size": 96,  # else it would start as its teacher does, and learn the same
        "student.model.scratch.config.num_attention_heads": 3,
        "student.model.scratch.config.num_key_value_heads": 3,
        "student.sft.epochs": 1,
        "student.sft.batch_size": 32,
        "student.draw": {"temperatures": [1.0], "samples": 3},
        "pairs.limit": None,
        "pairs.drop_truncated_chosen": False,
        "scorer": {"name": "rouge"},  # the task's own reward is 0 for everything that models this raw say
        "generate.max_tokens": 12,
        "distill.epochs": 1,
        "distill.batch_size": 4,
        "evaluate": {"temperatures": [0.7], "bootstrap": 100},
        "compare": arms,
        "runtime": {"store": str(root / "runs"), "parallel_stages": 1, "verify_engine": False},
    }
    return config.load(ROOT / "jobs/demo.yaml", [f"{key}={json.dumps(value)}" for key, value in tiny.items()])


def train_here(jobs: list[Job], callbacks: Any = ()) -> list[dict[str, Any]]:
    results = [work(job, World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None)) for job in jobs]
    for job, result in zip(jobs, results, strict=True):
        assert "error" not in result, f"{job.stage}: {result['error']}"
    return results


@pytest.mark.engine
@pytest.mark.usefixtures("gloo", "ray_session")
def test_every_method_runs_on_the_demo_from_text_to_report(tmp_path, monkeypatch):
    monkeypatch.setattr("plad_ray.train.launch.launch", train_here)
    arms = {
        name.replace("_", "-"): {"distill": {"objective": {"name": name}}} for name in OBJECTIVES if name != "plad_rank"
    }
    arms["plad-margin"]["pairs"] = {"reward_share": 1.0}  # such a teacher's text is not the better one
    check(experiment(tmp_path, arms))


def check(exp: config.Experiment) -> None:
    """Run it; every arm has learned, is evaluated and is in the report."""
    whole, store = plan(exp), Store(exp.runtime.store)
    execute(whole.targets, store, exp.runtime, say=lambda _: None)
    metrics = store.read_json(whole.stages["evaluate"].artifact(store).file("files/metrics.json"))
    evaluated = {row["policy"] for row in metrics["table"]}
    assert evaluated == {"teacher", "student", *exp.arms()}
    for arm in exp.arms():
        trained = whole.report.inputs[f"train/{arm}"].artifact(store)
        lines = (trained.local_folder() / "metrics.jsonl").read_text().splitlines()
        assert any(json.loads(line)["grad_norm"] > 0 for line in lines), f"{arm} learned nothing"
        assert (trained.local_folder() / "adapter_model.safetensors").is_file()
    page = store.read_bytes(whole.report.artifact(store).file("files/report.html")).decode()
    assert all(arm in page for arm in exp.arms())


@pytest.mark.engine
@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("ray_session")
def test_one_method_of_each_family_through_ray_train(tmp_path):
    """Teacher logits, fresh samples, a reference, lists, models trained first, and two rounds: nothing is in process."""
    arms = {name: {"distill": {"objective": {"name": name}}} for name in ("kd", "gkd", "dpo", "lipo", "aligndistil")}
    check(experiment(tmp_path, {**arms, "iterated": {"distill": {"rounds": 2}}}))
