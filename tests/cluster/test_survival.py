"""The demo submitted to machines that share nothing but a bucket, two of which die on the way."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plad_ray.artifacts import Store
from plad_ray.config import load
from plad_ray.generate import parts
from plad_ray.pipeline import plan
from tests.chaos.scenarios import check_rows, check_training, checkpoints, train_alone
from tests.cluster.machines import Machine, can_separate, machines

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.sizes={train: 256, distill: 96, dev: 8, test: 16}",
    "teacher.sft.epochs=1",
    "student.sft.epochs=1",
    "compare={}",
    "distill.batch_size=8",
    "distill.epochs=4",
    "evaluate.bootstrap=100",
    "runtime.teacher.batch_size=8",
    "runtime.student.batch_size=8",
    "runtime.train.checkpoint_every=5",
]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.engine
@pytest.mark.train
@pytest.mark.timeout(1500)
def test_a_submitted_demo_outlives_two_of_its_machines(s3_root, tmp_path):
    """One dies while its engine generates, one while it trains; every request has one row, and training is unbroken."""
    if not can_separate():
        pytest.skip("no mount namespaces here")
    overrides = [*SMALL, f"runtime.store={s3_root}"]
    exp, store = load(ROOT / "jobs/demo.yaml", overrides), Store(s3_root)
    made = {name: stage.artifact(store) for name, stage in plan(exp).stages.items()}
    with machines(tmp_path / "machines", 3, 4) as cluster:
        command = [sys.executable, "-m", "plad_ray", "submit", "jobs/demo.yaml", *overrides]
        command += ["--address", cluster.dashboard]
        with (tmp_path / "log").open("wb") as log:
            submitted = subprocess.Popen(
                command, cwd=ROOT, env=cluster.environment, stdout=log, stderr=subprocess.STDOUT
            )

        def kill(title: str, begun: Callable[[], bool]) -> Machine:
            while not (begun() and (found := [m for m in cluster.workers if m.working_on(title)])):
                assert submitted.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
            found[0].kill()
            cluster.workers.remove(found[0])
            return found[0]

        answered = made["responses"].file(parts.FOLDER)
        generating = kill("FetchingEngine", lambda: len(store.files(answered)) >= 2)
        assert not made["responses"].finished, "killed too late"
        kill("RayTrainWorker", lambda: checkpoints(made["distill"]) >= 1)
        assert not made["distill"].finished, "killed too late"
        assert submitted.wait(900) == 0, (tmp_path / "log").read_text()
        copies = {m.folder.name: copied(m) for m in (generating, *cluster.workers, cluster.head)}

    assert all(artifact.finished for artifact in made.values())
    check_rows(made["responses"], 2 * (96 + 2 * 16))
    check_rows(made["eval-responses"], 2 * 16)
    check_training(made["distill"], train_alone(plan(exp).stages["distill"], store, exp, tmp_path))
    assert copies[generating.folder.name], "its engine had the weights on its own disk"
    assert all(copies.values()), "so had the one that went on, and the driver"
    elsewhere = [p for p in (tmp_path / "machines").rglob("*") if p.name in ("manifest.json", "lease.json")]
    assert elsewhere == [], "artifacts lie in the bucket alone"


def copied(machine: Machine) -> list[str]:
    """Artifacts whose files the machine keeps copies of."""
    return sorted(folder.parent.name for folder in (machine.folder / "copies").glob("*/files"))
