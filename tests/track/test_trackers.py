"""Training curves in TensorBoard, MLflow and W&B: what arrives there, and that a failing tracker harms nothing."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from plad_ray.config import Runtime, parse
from plad_ray.errors import PladError
from plad_ray.preflight import check
from plad_ray.stages import Stage
from plad_ray.track import choose
from plad_ray.track.base import Feed, Subject, Trackers
from plad_ray.track.choose import trackers
from tests.conftest import free_port
from tests.train.train_jobs import distill_job, session

LINES = [{"step": i, "epoch": i / 4, "loss": 2.0 / i, "rewards/margins": 0.1 * i} for i in range(1, 5)]


def subject(store: Path, start: int = 0) -> Subject:
    settings = {"training": {"learning_rate": 0.01, "lora": {"r": 4}}, "seed": 0}
    return Subject("distill-abc", str(store), "distill", settings, start)


def runtime(**track) -> Runtime:
    return Runtime.model_validate({"track": track})


def events(folder: Path, metric: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(metric)]


def test_tensorboard_is_the_default_and_holds_every_metric(tmp_path) -> None:
    with trackers(Runtime().track, subject(tmp_path)) as track:
        track(LINES[:2])
        track(LINES)
    folder = tmp_path / "tensorboard" / "distill-abc"
    for metric in ("loss", "rewards/margins", "epoch"):
        assert events(folder, metric) == [(line["step"], pytest.approx(line[metric])) for line in LINES]


def test_a_resumed_run_takes_back_the_steps_that_it_repeats(tmp_path) -> None:
    with trackers(Runtime().track, subject(tmp_path)) as track:
        track(LINES)
    with trackers(Runtime().track, subject(tmp_path, start=2), LINES[:2]) as track:
        track([*LINES[:2], {"step": 3, "loss": 9.0}])
    assert events(tmp_path / "tensorboard" / "distill-abc", "loss") == [(1, 2.0), (2, 1.0), (3, 9.0)]


def test_no_tracker_writes_nothing(tmp_path) -> None:
    with trackers(runtime(tensorboard=False).track, subject(tmp_path)) as track:
        track(LINES)
    assert list(tmp_path.iterdir()) == []


class Flaky:
    """A service that refuses its first answers."""

    def __init__(self, failures: int):
        self.failures, self.got, self.closed = failures, [], None

    def log(self, lines) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no answer\nsecond line")
        self.got += lines

    def close(self, finished: bool) -> None:
        self.closed = finished


def test_a_failure_is_said_once_and_made_up_for_later(caplog, monkeypatch) -> None:
    monkeypatch.setattr("plad_ray.track.base.PAUSE", 0.0)
    flaky = Flaky(2)
    with caplog.at_level(logging.WARNING), Trackers([Feed(lambda: flaky, "Flaky", (OSError,), 0)]) as track:
        for n in range(1, 5):
            track(LINES[:n])
    assert flaky.got == LINES and flaky.closed is True
    [warning] = caplog.records
    assert warning.getMessage().startswith("Flaky: no answer. Training goes on")


def test_a_failing_service_is_not_asked_again_at_once() -> None:
    opened = []

    def refuse():
        opened.append(1)
        raise ConnectionError("away")

    feed = Feed(refuse, "Flaky", (OSError,), 0)
    for n in range(1, 5):
        feed.send(LINES[:n])
    assert len(opened) == 1
    feed.close(LINES, True)
    assert len(opened) == 2


def test_a_bug_is_not_hidden() -> None:
    def broken():
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        Feed(broken, "Flaky", (OSError,), 0).send(LINES)


@pytest.mark.usefixtures("gloo")
def test_training_survives_a_server_that_is_away(tmp_path, tiny_llama, caplog) -> None:
    """A real training run with MLflow pointed at a closed port; TensorBoard beside it has the whole curve."""
    pytest.importorskip("mlflow")
    from plad_ray.artifacts import Store

    made = distill_job(Store(str(tmp_path)), tiny_llama)
    track = {"mlflow": {"uri": f"http://127.0.0.1:{free_port()}"}}
    made = made.__class__(
        **{**vars(made), "runtime": made.runtime.model_copy(update={"track": runtime(**track).track})}
    )
    with caplog.at_level(logging.WARNING, "plad_ray.track"):
        curve = session(made)
    assert len(curve) == 6
    assert events(tmp_path / "tensorboard" / made.out.name, "loss") == [
        (line["step"], pytest.approx(line["loss"])) for line in curve
    ]
    assert [r.getMessage().startswith("MLflow: ") for r in caplog.records if r.name.startswith("plad_ray.track")] == [
        True
    ]


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory):
    """A real server of this machine on a database of its own."""
    pytest.importorskip("mlflow")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--artifacts-destination", str(folder)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(120)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_mlflow_has_metrics_settings_and_one_run_an_artifact(mlflow_server, tmp_path) -> None:
    from mlflow import MlflowClient

    track = runtime(tensorboard=False, mlflow={"uri": mlflow_server, "experiment": "test"}).track
    with pytest.raises(RuntimeError), trackers(track, subject(tmp_path)) as feed:
        feed(LINES[:2])
        raise RuntimeError("the worker dies")
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("test").experiment_id
    [run] = client.search_runs([experiment])
    assert run.info.status == "FAILED" and run.info.run_name == "distill-abc"
    with trackers(track, subject(tmp_path, start=2), LINES[:2]) as feed:
        feed(LINES)
    [run] = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.data.tags["plad_ray.artifact"] == "distill-abc"
    assert run.data.params == {"training.learning_rate": "0.01", "training.lora.r": "4", "seed": "0"}
    for metric in ("loss", "rewards/margins"):
        history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))
        assert history == [(line["step"], line[metric]) for line in LINES]


@pytest.mark.slow
def test_wandb_offline_writes_a_run_that_can_be_synced(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    track = runtime(tensorboard=False, wandb={"mode": "offline", "project": "test"}).track
    with trackers(track, subject(tmp_path)) as feed:
        feed(LINES)
    [folder] = (tmp_path / "wandb").glob("offline-run-*-distill-abc")
    rows = history(folder / "run-distill-abc.wandb")
    assert [(row["_step"], row["loss"]) for row in rows] == [(line["step"], line["loss"]) for line in LINES]


def history(file: Path) -> list[dict[str, float]]:
    """Rows logged in W&B's own file."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in log_records(file.read_bytes()[7:], offset=7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def log_records(content: bytes, offset: int) -> Iterator[bytes]:
    """The records of LevelDB's log format, which W&B writes after a head of ``offset`` bytes: in blocks of 32 KiB, pieces
    with checksum, length and kind (whole, first, middle, last)."""
    at, record = 0, b""
    while at + 7 <= len(content):
        rest = 32768 - (at + offset) % 32768
        if rest < 7:
            at += rest
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_a_missing_package_is_said_before_any_compute(monkeypatch) -> None:
    monkeypatch.setattr("plad_ray.track.choose.find_spec", lambda name: None)
    stage = Stage("sft-student", lambda job: None, {"training": {}})
    exp = parse(
        {
            "name": "x",
            "data": {"source": "demo", "sizes": {"train": 1, "distill": 1, "dev": 1, "test": 1}},
            "teacher": {"model": {"path": "a"}},
            "student": {"model": {"path": "b"}},
            "runtime": {"track": {"wandb": {"mode": "offline"}}},
        }
    )
    with pytest.raises(PladError, match=r"package wandb is not installed; pip install 'plad-ray\[wandb\]'"):
        check(exp, [stage])


def test_wandb_online_without_a_key_is_said_before_any_compute(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    logins = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(logins))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    online, offline = (runtime(wandb={"mode": mode}).track for mode in ("online", "offline"))
    with pytest.raises(PladError, match=r"no key to log in with; set WANDB_API_KEY .*mode=offline"):
        choose.check(online)
    choose.check(offline)
    logins.write_text("machine api.wandb.ai login user password secret")
    choose.check(online)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(PladError, match="no key"):
        choose.check(online)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    choose.check(online)


def test_no_secret_in_the_config() -> None:
    with pytest.raises(ValueError, match="may hold no user or password"):
        runtime(mlflow={"uri": "http://me:secret@host:5000"})
