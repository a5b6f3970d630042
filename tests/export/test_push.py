"""``plad push`` against a stand-in of the Hub's HTTP API, in a process of its own: the library reads its endpoint once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from plad_ray.artifacts import Store
from plad_ray.errors import PladError
from plad_ray.export.push import push, stage
from plad_ray.pipeline import plan
from tests.export.finished import TEXTS, finished
from tests.export.hub import TOKEN, Hub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    finished(folder, data={"source": "files", "path": str(folder / "prompts.jsonl"), "limit": 3})
    return folder


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.shutdown()


def plad(hub: Hub, folder: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-m", "plad_ray", "push", str(folder / "exp.yaml"), "--repo", "org/name", *arguments]
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


def header(card: bytes) -> dict:
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_adapter_pairs_and_cards_arrive(hub, folder) -> None:
    for _ in range(2):  # again: the repositories are there already
        result = plad(hub, folder)
        assert result.returncode == 0, result.stderr + "\n".join(hub.asked)
    assert hub.private == {("model", "org/name"): True, ("dataset", "org/name-pairs"): True}
    model, pairs = hub.repos["model", "org/name"], hub.repos["dataset", "org/name-pairs"]
    assert set(model) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl"}
    assert model["adapter_model.safetensors"] == b"weights"
    assert header(model["README.md"])["datasets"] == ["org/name-pairs"]
    assert header(model["README.md"])["library_name"] == "peft"
    (folder / "got.parquet").write_bytes(pairs["data/train-00000-of-00001.parquet"])
    assert pq.read_table(folder / "got.parquet")["chosen"].to_pylist() == [chosen for _, chosen, _ in TEXTS]
    [config] = header(pairs["README.md"])["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    for content in (*model.values(), pairs["README.md"]):
        assert str(folder).encode() not in content and TOKEN.encode() not in content
    assert "plad_rank" in model["README.md"].decode().replace("\\", "") and "3 pairs" in pairs["README.md"].decode()


def test_a_whole_model_says_that_it_is_one(tmp_path) -> None:
    exp = finished(tmp_path, distill={"method": "full"})
    store = Store(exp.runtime.store)
    trained = plan(exp).report.inputs["train/distilled"].artifact(store)
    store.delete(trained.file("files"))
    store.write_bytes(trained.file("files/config.json"), b"{}")
    store.write_bytes(trained.file("files/model.safetensors"), b"weights")
    model, _ = stage(exp, "distilled", "org/name", tmp_path / "up")
    card = (model.folder / "README.md").read_bytes()
    assert set(model.files()) == {"README.md", "config.json", "model.safetensors"}
    assert header(card)["library_name"] == "transformers" and "lora" not in header(card)["tags"]
    assert b"adapter" not in card


def test_a_refused_token_is_one_message(hub, folder) -> None:
    result = plad(hub, folder, token="hf_wrong")
    assert result.returncode == 2 and "refused model org/name" in result.stderr and "Traceback" not in result.stderr
    assert hub.repos == {} and "hf_wrong" not in result.stderr


def test_a_dry_run_needs_no_token_and_no_hub(folder, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    from plad_ray.config import load

    told = push(load(folder / "exp.yaml"), "distilled", "org/name", True, dry_run=True)
    assert told[0].startswith("nothing is uploaded") and "model org/name" in told and "dataset org/name-pairs" in told
    assert any("adapter_model.safetensors" in line and "7 bytes" in line for line in told)
    with pytest.raises(PladError, match="HF_TOKEN is not set"):
        push(load(folder / "exp.yaml"), "distilled", "org/name", True, dry_run=False)


@pytest.mark.parametrize(
    ("arm", "repo", "message"),
    [
        ("distilled", "name", "organisation/name"),
        ("other", "a/b", "has distilled"),
        ("plain", "a/b", "not trained yet"),
    ],
)
def test_what_cannot_be_pushed_is_said_first(folder, arm, repo, message) -> None:
    from plad_ray.config import load

    with pytest.raises(PladError, match=message):
        push(load(folder / "exp.yaml"), arm, repo, True, dry_run=True)
