"""The stage through real Ray Train: two workers, and a driver killed in the middle."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_jobs import column, distill_job, session

from plad_ray.artifacts import Store
from plad_ray.errors import PladError
from plad_ray.stages import Stage, run_stage
from plad_ray.train.launch import RESULT, forget_torn_record, record_of
from plad_ray.train.run import run, run_in_turn
from tests.conftest import worker_lines

ROOT = Path(__file__).parents[2]


def lines_of(job) -> list[dict[str, float]]:
    return [json.loads(line) for line in (job.out.local_folder() / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.train
@pytest.mark.usefixtures("gloo")
def test_two_workers_give_the_run_of_one(ray_session, store, tiny_llama):
    """ZeRO 2 on two workers, micro-batches of 3, against one process with ZeRO 0: 1e-5 on every line."""
    expected = session(distill_job(store, tiny_llama, name="alone"))
    job = distill_job(store, tiny_llama, train={"workers": 2, "zero_stage": 2, "micro_batch": 3, "checkpoint_every": 4})
    store.write_bytes(record_of(job.out), b'{"checkpoint_results": [')  # as a kill may leave it
    job = replace(job, run="run-of-two", runtime=job.runtime.model_copy(update={"logs": "json"}))
    outcome = run(job)
    assert (outcome.rows_in, outcome.rows_out) == (24, 24)
    assert outcome.metrics["steps"] == 6
    for name in ("loss", "grad_norm", "rewards/margins", "num_tokens"):
        torch.testing.assert_close(column(lines_of(job), name), column(expected, name), rtol=1e-5, atol=1e-5)
    said = [(line["stage"], line["level"], line["message"]) for line in worker_lines("run-of-two")]
    assert said == [("distill", "info", "checkpoint after step 4 of 6")]


@pytest.mark.train
@pytest.mark.usefixtures("gloo")
def test_trainings_in_turn_are_those_alone_and_one_that_cannot_start_stops_no_other(ray_session, store, tiny_llama):
    settings = {"lora": {"r": 4, "dropout": 0.2}}, {"epochs": 3, "learning_rate": 3e-3}
    jobs = [distill_job(store, tiny_llama, name=f"turn{i}", **more) for i, more in enumerate(settings)]
    bad = distill_job(store, tiny_llama, name="bad", lora={"target_modules": ["nope"]})
    first, error, second = run_in_turn([jobs[0], bad, jobs[1]])
    assert isinstance(error, PladError) and "distill: lora.target_modules ('nope',)" in str(error)
    for i, (job, outcome) in enumerate(zip(jobs, (first, second), strict=True)):
        alone = session(distill_job(store, tiny_llama, name=f"alone{i}", **settings[i]))
        assert column(lines_of(job)).tolist() == pytest.approx(column(alone).tolist(), abs=1e-6)
        assert outcome.rows_out == 24 and outcome.seconds > 0
        assert job.out.store.exists(job.out.file(RESULT)), "another start would not do it again"
    assert not bad.out.store.exists(bad.out.file(RESULT))


def test_only_a_list_of_checkpoints_that_was_cut_off_is_forgotten(store, tiny_llama):
    out = distill_job(store, tiny_llama).out
    forget_torn_record(out)
    for content, kept in ((b'{"latest_checkpoint_result": null}', True), (b'{"latest_check', False), (b"", False)):
        store.write_bytes(record_of(out), content)
        forget_torn_record(out)
        assert store.exists(record_of(out)) == kept


def test_what_does_not_go_together_is_refused_before_ray_starts(store, tiny_llama):
    with pytest.raises(PladError, match="all needs stage 3"):
        run(distill_job(store, tiny_llama, train={"offload": "all", "zero_stage": 2}))
    half = distill_job(store, tiny_llama)
    half.config["model"]["dtype"] = "bfloat16"
    with pytest.raises(PladError, match="use stage 1, 2 or 3"):
        run(half)
    four_bit = distill_job(store, tiny_llama)
    four_bit.config["model"]["load_in_4bit"] = True
    with pytest.raises(PladError, match="needs GPUs"):
        run(four_bit)


KILLED = """
import pickle, sys
from pathlib import Path
from plad_ray.cluster import connect
from plad_ray.config import Runtime
from plad_ray.stages import Stage, run_stage
from plad_ray.train.run import run
if __name__ == "__main__":
    connect(Runtime())
    job = pickle.loads(Path(sys.argv[1]).read_bytes())
    run_stage(Stage("distill", run), job)
"""


@pytest.mark.chaos
@pytest.mark.train
@pytest.mark.usefixtures("gloo")
def test_killed_driver_resumes_from_its_last_checkpoint(ray_session, tmp_path, tiny_llama):
    """kill -9 after the first checkpoint; the same stage run again equals an unbroken run to 1e-6, dropout on."""
    store = Store(str(tmp_path / "store"))
    settings = {"epochs": 100, "lora": {"r": 4, "dropout": 0.2}}
    train = {"checkpoint_every": 10, "zero_stage": 2}
    expected = session(distill_job(store, tiny_llama, name="unbroken", train=train, **settings))
    job = distill_job(store, tiny_llama, name="killed", train=train, **settings)
    (tmp_path / "job.pkl").write_bytes(pickle.dumps(job))
    (tmp_path / "driver.py").write_text(KILLED)
    driver = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "job.pkl")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"},
        start_new_session=True,
    )
    snapshot = Path(job.out.path) / "work/train/killed/checkpoint_manager_snapshot.json"
    try:
        deadline = time.time() + 300
        while not (snapshot.is_file() and "checkpoint_2" in snapshot.read_text()):
            assert driver.poll() is None, "the driver ended before its first checkpoint"
            assert time.time() < deadline, "no checkpoint in 300 s"
            time.sleep(0.05)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert not job.out.finished
    run_stage(Stage("distill", run), job)
    got = lines_of(job)
    assert [line["step"] for line in got] == list(range(1, 301)), "no line twice, none missing"
    for name in ("loss", "grad_norm", "num_tokens"):
        torch.testing.assert_close(column(got, name), column(expected, name), rtol=1e-6, atol=1e-6)
    assert not job.out.store.exists(job.out.file("work")), "checkpoints go once the artifact is published"
