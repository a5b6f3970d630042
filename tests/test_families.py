"""Families that vLLM does not serve, from prompts to report: a T5 or GPT-Neo student learns from the text of a GPT-Neo
teacher, or of one behind an API (Table 2 of PLaD is of this kind)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from plad_ray.artifacts import Store
from plad_ray.config import Experiment, parse
from plad_ray.pipeline import plan
from plad_ray.running import run
from tests.conftest import API_KEY, save_tiny_model
from tests.generate.api_server import serving


def experiment_of(folder: Path, teacher: dict[str, Any], pool: dict[str, Any], family: str = "t5") -> Experiment:
    rows = [{"prompt": " ".join(f"w{(i + j) % 40}" for j in range(3 + i % 3)), "reference": f"w{i}"} for i in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    student = save_tiny_model(folder / "student", family, seed=2)
    engine = {"cpus": 0.5, "batch_size": 16}
    return parse(
        {
            "name": family,
            "data": {
                "source": "files",
                "path": str(folder / "data.jsonl"),
                "fractions": {"train": 0.4, "distill": 0.4, "dev": 0, "test": 0.2},
            },
            "teacher": teacher,
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
            "runtime": {"store": str(folder / "runs"), "teacher": engine | pool, "student": engine},
        }
    )


def check_run(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Everything was generated, the adapter learned and is served as it was trained. Returns the manifests."""
    store, stages = Store(experiment.runtime.store), plan(experiment).stages
    manifests = {name: stage.artifact(store).manifest for name, stage in stages.items()}
    splits = Counter(stages["prompts"].artifact(store).table().column("split").to_pylist())
    assert manifests["responses"]["rows"]["out"] == 2 * (splits["distill"] + splits["test"])
    verified = manifests["eval-responses"]["metrics"]["verified"]["distilled"]
    assert verified["max"] < 1e-3 < verified["effect"], "the adapter acts, and as it was trained"
    adapter = stages["distill"].artifact(store).local_folder()
    assert any(
        tensor.any() for name, tensor in load_file(adapter / "adapter_model.safetensors").items() if "lora_B" in name
    )
    lines = [json.loads(line) for line in (adapter / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"]
    assert "distilled" in (stages["report"].artifact(store).local_folder() / "report.html").read_text()
    return manifests


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gpt_neo_teacher_to_t5_student(tmp_path: Path, ray_session):
    neo = save_tiny_model(tmp_path / "teacher", "gpt_neo", seed=1)
    teacher = {"model": {"path": str(neo), "max_length": 32}, "engine": "transformers"}
    experiment = experiment_of(tmp_path, teacher, {})
    run(experiment, None, False, False)
    check_run(experiment)


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["t5", "gpt_neo"])
def test_api_teacher_to_student(tmp_path: Path, ray_session, family):
    """Every prompt is asked for once, its tokens are counted and paid, and the key stays where it was."""
    with serving() as server:
        teacher = {"model": {"api": {"base_url": server.url, "name": "made-up"}}, "engine": "openai"}
        api = {"api_key_env": "PLAD_TEST_API_KEY", "input_price": 1.0, "output_price": 2.0}
        experiment = experiment_of(tmp_path, teacher, {"cpus": 0.5, "api": api}, family)
        run(experiment, None, False, False)
        manifests = check_run(experiment)
        assert len(server.asked) == len(server.answered) == manifests["responses"]["rows"]["out"] // 2
        assert all(asked.headers["authorization"] == f"Bearer {API_KEY}" for asked in server.asked)
        run(experiment, None, False, False)
        assert len(server.asked) == len(server.answered), "the second run asks nothing"
    paid = manifests["responses"]["metrics"]["api"]["teacher"]
    assert paid["cost"] == pytest.approx((paid["input_tokens"] + 2 * paid["output_tokens"]) / 1e6)
    kept = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert kept and not any(API_KEY.encode() in content for content in kept)
