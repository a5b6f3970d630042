"""``plad merge`` on artifacts put in place by hand; whatever is checked here needs no Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from plad_ray import parts
from plad_ray.artifacts import Store
from plad_ray.cli import app
from plad_ray.config import Averaging, load
from plad_ray.models.load import load_model
from plad_ray.pipeline import plan
from plad_ray.records import PROMPT, RESPONSE
from tests.conftest import save_tiny_model
from tests.generate.generate_jobs import prompt_rows
from tests.merge.ends import adapter_artifact, dense, dense_log_probs, log_probs, policy_of, rows_artifact

ROWS = "".join(json.dumps({"prompt": row["prompt"], "reference": row["reference"]}) + "\n" for row in prompt_rows(30))


@pytest.fixture(autouse=True)
def no_ray(request, monkeypatch):
    """Adapters are averaged without Ray; weights are learned where training workers are."""
    if "ray_session" in request.fixturenames:
        return

    def started(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("plad_ray.cluster.connect", started)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("teacher"), seed=9)


@pytest.fixture
def experiment(tmp_path, teacher, base) -> Path:
    """The student's SFT is a LoRA adapter, which distillation continues."""
    (tmp_path / "data.jsonl").write_text(ROWS)
    file = tmp_path / "exp.yaml"
    sections = {
        "name": "tiny",
        "data": {"source": "files", "path": str(tmp_path / "data.jsonl")},
        "teacher": {"model": {"path": str(teacher), "max_length": 64}},
        "student": {"model": {"path": str(base), "max_length": 64}, "sft": {"lora": {"r": 4}}},
        "distill": {"lora": {"r": 4}},
        "generate": {"max_tokens": 8},
        "runtime": {"store": str(tmp_path / "runs")},
    }
    file.write_text(yaml.safe_dump(sections))
    return file


@pytest.fixture
def trained(experiment, start, distilled) -> Path:
    """The experiment with SFT and distillation done."""
    exp = load(experiment)
    stages, store = plan(exp).stages, Store(exp.runtime.store)
    adapter_artifact(store, stages["sft-student"].artifact_name, start)
    adapter_artifact(store, stages["distill"].artifact_name, distilled)
    return experiment


def merge(*arguments: object):
    return CliRunner().invoke(app, ["merge", *map(str, arguments)], catch_exceptions=False)


def done(*arguments: object) -> str:
    result = merge(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def check(folder: Path, adapter: bool, base, start, distilled, base_weight: dict) -> None:
    """Log-probs of what was written equal those of the dense average."""
    policy = policy_of(base, folder) if adapter else policy_of(folder)
    weights = dense(policy_of(base, start), policy_of(base, distilled), base_weight)
    got = log_probs(load_model(policy))
    torch.testing.assert_close(got, dense_log_probs(base, weights), rtol=0, atol=1e-5)


def test_without_averaging_base_and_adapter_are_merged(trained, tmp_path, base, start, distilled):
    assert f"merged model: {tmp_path / 'out'}" in done(trained, "--out", tmp_path / "out")
    check(tmp_path / "out", False, base, start, distilled, dict.fromkeys([None, 0, 1, 2, 3], 0.0))
    assert not list((tmp_path / "runs").glob("average-*"))


def test_plain_averages_as_model_and_as_adapter(trained, tmp_path, base, start, distilled):
    done(trained, "--out", tmp_path / "model", "--base-weight", 0.3)
    check(tmp_path / "model", False, base, start, distilled, dict.fromkeys([None, 0, 1, 2, 3], 0.3))
    assert "adapter: " in done(trained, "--out", tmp_path / "adapter", "--base-weight", 0.3, "--adapter")
    check(tmp_path / "adapter", True, base, start, distilled, dict.fromkeys([None, 0, 1, 2, 3], 0.3))
    assert len(list((tmp_path / "runs").glob("average-distilled-*"))) == 1, "computed once"
    note = json.loads((tmp_path / "adapter" / "plad.json").read_text())
    assert note["averaged"] == {"base_weight": 0.3, "parts": [{"layers": [0, 3], "base_weight": 0.3}]}
    done(trained, "--out", tmp_path / "low", "--layers", "low", "--adapter")
    check(tmp_path / "low", True, base, start, distilled, {None: 0.0, 0: 0.2, 1: 0.0, 2: 0.0, 3: 0.0})


def test_learned_weights_from_the_students_own_text(trained, tmp_path, base, start, distilled, ray_session):
    """The text is there already, as a run on a cluster would have left it."""
    exp = load(trained)
    whole, store = plan(exp), Store(exp.runtime.store)
    how = Averaging(base_weight=0.4, parts=2)
    stage = parts.average(exp, "distilled", whole.stages["distill"], how, whole.stages["prompts"], ())
    with_start = parts.average(
        exp, "distilled", whole.stages["distill"], how, whole.stages["prompts"], (whole.stages["sft-student"],)
    )
    assert stage.digest != with_start.digest
    prompts = prompt_rows(12)
    rows_artifact(store, whole.stages["prompts"].artifact_name, prompts, PROMPT)
    said = [
        {"rid": row["prompt_id"], "prompt_id": row["prompt_id"], "text": f" w{3 * i} w{i}", "finish_reason": "stop"}
        for i, row in enumerate(prompts)
    ]
    rows_artifact(store, with_start.inputs["responses"].artifact_name, said, RESPONSE)
    done(trained, "--out", tmp_path / "out", "--base-weight", 0.4, "--parts", 2, "--adapter")
    manifest = with_start.artifact(store).manifest
    first, second = (part["base_weight"] for part in manifest["metrics"]["parts"])
    assert (first + second) / 2 == pytest.approx(0.4, abs=1e-6) and first != second
    assert manifest["rows"] == {"in": 12, "out": 12, "dropped": {}} and len(manifest["metrics"]["curve"]) == 1
    check(tmp_path / "out", True, base, start, distilled, {None: 0.4, 0: first, 1: first, 2: second, 3: second})


def test_what_changes_the_average_is_its_identity(experiment):
    exp = load(experiment)
    stages = plan(exp).stages

    def digest(**how: Any) -> str:
        start = (stages["sft-student"],)
        return parts.average(exp, "distilled", stages["distill"], Averaging(**how), stages["prompts"], start).digest

    plain = digest()
    assert digest(epsilon=0.5, learning_rate=1, prompts=5, temperature=0) == plain, "read with parts only"
    assert len({plain, digest(base_weight=0.3), digest(layers="low"), digest(parts=2)}) == 4
    learned = [digest(parts=2, **{key: value}) for key, value in (("epsilon", 0.5), ("prompts", 5), ("l1", 1.0))]
    assert len({digest(parts=2), *learned}) == 4
    assert plan(load(experiment, ["merge.base_weight=0.5"])).report.digest == plan(exp).report.digest


REFUSED = [
    (["--base-weight", 1.5], ["merge.base_weight", "less than or equal to 1", "1.5"]),
    (["--base-weight", -0.1], ["merge.base_weight", "-0.1"]),
    (["--layers", "lowest"], ["merge.layers", "lowest", "middle"]),
    (["--parts", 3, "--layers", "low"], ["layers low and parts 3 exclude each other"]),
    (["--arm", "seqkd"], ["--arm seqkd", "distilled"]),
    (["--adapter"], ["without averaging", "distill-"]),
]


@pytest.mark.parametrize(("options", "expected"), REFUSED)
def test_refused_before_any_compute(options, expected, trained, tmp_path):
    result = merge(trained, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    for part in expected:
        assert part in result.stderr


def test_too_many_parts_are_refused_before_text_is_generated(trained, tmp_path):
    result = merge(trained, "--out", tmp_path / "out", "--parts", 9)
    assert result.exit_code == 2 and "9 parts of 4 adapted layers: merge.parts can be at most 4" in result.stderr


def test_missing_ends_are_named(experiment, trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not empty" in merge(trained, "--out", tmp_path / "full", "--base-weight", 0.2).stderr
    store = tmp_path / "runs"
    shutil.rmtree(next(store.glob("sft-student-*")))
    assert "the start of arm distilled is unknown" in merge(trained, "--out", tmp_path / "out").stderr
    shutil.rmtree(next(store.glob("distill-*")))
    assert "arm distilled is not trained yet" in merge(trained, "--out", tmp_path / "out").stderr


def test_a_whole_model_is_not_merged(experiment, base, tmp_path):
    """Full SFT and full distillation: what lies there is one plain model."""
    changes = ["student.sft.method=full", "distill.method=full"]
    exp = load(experiment, changes)
    stages, store = plan(exp).stages, Store(exp.runtime.store)
    for name in ("sft-student", "distill"):
        artifact = stages[name].artifact(store)
        store.upload(base, artifact.file("files"))
        artifact.finish({})
    for options in ([], ["--base-weight", 0.2], ["--adapter"]):
        result = merge(experiment, *changes, "--out", tmp_path / "out", *options)
        assert result.exit_code == 2 and not (tmp_path / "out").exists()
        assert "distilled with method full" in result.stderr and stages["distill"].artifact(store).path in result.stderr


def test_the_best_answers_need_a_scorer(experiment, tmp_path):
    result = merge(experiment, "merge.top=0.5", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "merge.top below 1 needs scores: set scorer.name" in result.stderr
