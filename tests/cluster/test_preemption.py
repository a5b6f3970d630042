"""A training whose machine is taken away with notice, as spot nodes are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from plad_ray.artifacts import Store
from plad_ray.config import load
from plad_ray.pipeline import plan
from plad_ray.stages import job_of
from tests.chaos.checks import check_store, check_training
from tests.chaos.scenarios import steps, train_alone, whole_experiment
from tests.conftest import save_tiny_model
from tests.machines import ROOT, environment, machines

NOTICE_S = 30
#: a minute or two of steps, and no checkpoint of their own accord
LONG = ["distill.epochs=1200", "runtime.train.checkpoint_every=1000000"]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.train
@pytest.mark.timeout(1200)
def test_a_notice_is_answered_with_a_checkpoint(tmp_path):
    """Without it the training would begin again: there is no other checkpoint."""
    store, log = Store(str(tmp_path / "runs")), tmp_path / "log"
    teacher, student = (save_tiny_model(tmp_path / name, seed=seed) for name, seed in (("teacher", 5), ("student", 0)))
    file = whole_experiment(store, tmp_path, teacher, student)
    exp = load(file, LONG)
    stage = plan(exp).stages["distill"]
    out = stage.artifact(store)
    short = tempfile.TemporaryDirectory(prefix="plad-")  # of sockets, whose names may have 107 bytes
    with short as folder, machines(Path(folder), 2, cpus=3) as cluster:
        command = [sys.executable, "-m", "plad_ray", "run", str(file), *LONG]
        variables = environment(cluster.head.folder) | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
        with log.open("wb") as stream:
            run = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=stream, stderr=subprocess.STDOUT)

        def wait(until) -> None:
            while not until():
                assert run.poll() is None, log.read_text()
                time.sleep(0.2)

        wait(lambda: "distill: " in log.read_text() and " steps" in log.read_text().rpartition("distill: ")[2])
        [machine] = [m for m in cluster.workers if m.workers("RayTrainWorker")]
        cluster.give_notice(machine, NOTICE_S)
        noticed = time.monotonic()
        wait(lambda: steps(out) > 0 or time.monotonic() > noticed + NOTICE_S)
        saved = steps(out)
        assert saved > 0, log.read_text()
        wait(lambda: time.monotonic() > noticed + NOTICE_S)
        assert not out.finished, "no step was left to lose"
        cluster.kill(machine)
        assert run.wait(900) == 0, log.read_text()
    check_training(out, train_alone(job_of(stage, store, exp.runtime), tmp_path))
    check_store(store)
