"""The demo submitted to machines that share nothing but a bucket, two of which die on the way."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from plad_ray.artifacts import Store
from plad_ray.config import load
from plad_ray.generate import parts
from plad_ray.pipeline import plan
from plad_ray.stages import job_of
from tests.chaos.checks import check_rows, check_store, check_training
from tests.chaos.scenarios import steps, train_alone
from tests.machines import ROOT, Machine, can_be_apart, environment, machines

SMALL = [
    "data.sizes={train: 256, distill: 256, dev: 8, test: 16}",
    "teacher.sft.epochs=1",
    "student.sft.epochs=1",
    "pairs.limit=96",
    "pairs.drop_truncated_chosen=false",
    "compare={}",
    "distill.batch_size=8",
    "distill.epochs=20",
    "evaluate.bootstrap=100",
    "runtime.teacher={batch_size: 8, engine_kwargs: {max_num_seqs: 4}}",
    "runtime.student={batch_size: 8, engine_kwargs: {max_num_seqs: 4}}",
    "runtime.train.checkpoint_every=10",
]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.engine
@pytest.mark.train
@pytest.mark.timeout(1500)
def test_a_submitted_demo_outlives_two_of_its_machines(s3_root, tmp_path):
    """One dies while its engine generates, one while it trains; every request has one row, and training is unbroken."""
    if not can_be_apart():
        pytest.skip("no mount namespaces here")
    overrides = [*SMALL, f"runtime.store={s3_root}"]
    exp, store, log = load(ROOT / "jobs/demo.yaml", overrides), Store(s3_root), tmp_path / "log"
    stages = plan(exp).stages
    made = {name: stage.artifact(store) for name, stage in stages.items()}
    with machines(tmp_path / "machines", 3, cpus=4, apart=True) as cluster:
        command = [sys.executable, "-m", "plad_ray", "submit", "jobs/demo.yaml", *overrides]
        command += ["--address", cluster.dashboard]
        with log.open("wb") as stream:
            submitted = subprocess.Popen(
                command, cwd=ROOT, env=environment(cluster.head.folder), stdout=stream, stderr=subprocess.STDOUT
            )

        def kill(title: str, begun: Callable[[], bool]) -> Machine:
            while not (begun() and (found := [m for m in cluster.workers if m.workers(title)])):
                assert submitted.poll() is None, log.read_text()
                time.sleep(0.2)
            cluster.kill(found[0])
            return found[0]

        answered = made["responses"].file(parts.FOLDER)
        generating = kill(r"MapBatches\(VllmEngine\)", lambda: len(store.files(answered)) >= 2)
        assert not made["responses"].finished, "killed too late"
        kill("RayTrainWorker", lambda: steps(made["distill"]) > 0)
        assert not made["distill"].finished, "killed too late"
        assert submitted.wait(900) == 0, log.read_text()
        copies = {m.folder.name: copied(m) for m in (generating, *cluster.workers, cluster.head)}

    assert all(artifact.finished for artifact in made.values())
    check_rows(made["responses"], 2 * (256 + 2 * 16))
    check_rows(made["eval-responses"], 2 * 16)
    check_training(made["distill"], train_alone(job_of(stages["distill"], store, exp.runtime), tmp_path))
    check_store(store)
    assert all(copies.values()), "whoever needs weights has them on its own disk"
    elsewhere = [p for p in (tmp_path / "machines").rglob("*") if p.name in ("manifest.json", "lease.json")]
    assert elsewhere == [], "artifacts lie in the bucket alone"


def copied(machine: Machine) -> list[str]:
    """Artifacts whose files the machine keeps copies of."""
    return sorted(folder.parent.name for folder in (machine.folder / "copies").glob("*/files"))
