"""Families that vLLM does not serve, from prompts to report: a GPT-Neo teacher's text makes a T5 student better."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from plad_ray.artifacts import Store
from plad_ray.config import parse
from plad_ray.pipeline import plan
from plad_ray.running import run
from tests.conftest import save_tiny_model


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gpt_neo_teacher_to_t5_student(tmp_path: Path, ray_session):
    rows = [{"prompt": " ".join(f"w{(i + j) % 40}" for j in range(3 + i % 3)), "reference": f"w{i}"} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = save_tiny_model(tmp_path / "teacher", "gpt_neo", seed=1)
    student = save_tiny_model(tmp_path / "student", "t5", seed=2)
    pool = {"cpus": 0.5, "batch_size": 16}
    experiment = parse(
        {
            "name": "t5",
            "data": {
                "source": "files",
                "path": str(tmp_path / "data.jsonl"),
                "fractions": {"train": 0.4, "distill": 0.4, "dev": 0, "test": 0.2},
            },
            "teacher": {"model": {"path": str(teacher), "max_length": 32}, "engine": "transformers"},
            "student": {
                "model": {"path": str(student), "max_length": 16},
                "engine": "transformers",
                "sft": {"method": "lora", "batch_size": 8},
            },
            "generate": {"max_tokens": 6},
            "pairs": {"drop_truncated_chosen": False},
            "distill": {"batch_size": 8, "learning_rate": 1.0e-2, "epochs": 2},
            "scorer": {"name": "rouge"},
            "evaluate": {"temperatures": [0.0], "bootstrap": 100},
            "runtime": {"store": str(tmp_path / "runs"), "teacher": pool, "student": pool},
        }
    )
    run(experiment, None, False, False)
    store, stages = Store(experiment.runtime.store), plan(experiment).stages
    manifests = {name: stage.artifact(store).manifest for name, stage in stages.items()}
    assert manifests["responses"]["rows"]["out"] == 2 * (16 + 8), "both roles on distill and test prompts"
    verified = manifests["eval-responses"]["metrics"]["verified"]["distilled"]
    assert verified["max"] < 1e-3 < verified["effect"], "the adapter acts, and as it was trained"
    adapter = stages["distill"].artifact(store).local_folder()
    assert any(
        tensor.any() for name, tensor in load_file(adapter / "adapter_model.safetensors").items() if "lora_B" in name
    )
    lines = [json.loads(line) for line in (adapter / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"]
    page = (stages["report"].artifact(store).local_folder() / "report.html").read_text()
    assert "distilled" in page
