"""Models read in Ray tasks: shares come back in order, errors readable, and what dies runs again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Runtime
from plad_ray.errors import PladError
from plad_ray.placement import asked_by
from plad_ray.stages import Job, Stage
from plad_ray.study import likelihoods
from plad_ray.tasks import at_workers, device_of
from tests.study.here import Here


@pytest.fixture
def job(tmp_path) -> Job:
    store = Store(str(tmp_path / "runs"))
    runtime = Runtime.model_validate({"train": {"workers": 2, "cpus_per_worker": 1}})
    return Job("read", {"folder": str(tmp_path)}, {}, Artifact(store, "read-0"), runtime)


def test_shares_come_back_in_order_from_other_processes(job, ray_session):
    found = at_workers(job, lambda job, number: (number, torch.get_num_threads(), os.getpid()), 2)
    assert [number for number, *_ in found] == [0, 1]
    assert all(threads == 1 and pid != os.getpid() for _, threads, pid in found)


def test_the_message_to_the_user_is_what_was_raised(job, ray_session):
    def refuse(job: Job, number: int) -> None:
        raise PladError(f"share {number} of {job.stage} has nothing to read")

    with pytest.raises(PladError, match=r"^share \d of read has nothing to read$"):
        at_workers(job, refuse, 2)


def test_a_killed_worker_reads_again(job, ray_session):
    def die_once(job: Job, number: int) -> int:
        mark = Path(job.config["folder"], f"began-{number}")
        if number == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert at_workers(job, die_once, 2) == [0, 1]
    assert Path(job.config["folder"], "began-1").exists()


def test_models_lie_where_a_training_worker_has_its_own():
    assert device_of(Runtime()).type == "cpu"
    assert device_of(Runtime.model_validate({"train": {"gpus_per_worker": 1}})).type == "cuda"


def test_a_cluster_without_room_for_them_is_told_before(tmp_path):
    exp = Here(tmp_path, tmp_path / "student", tmp_path / "teacher").experiment()
    reads = Stage("likelihoods", likelihoods.run, {"at_workers": True})
    assert asked_by(exp, [reads]).keys() == asked_by(exp, [Stage("distill", likelihoods.run, {"training": {}})]).keys()
    assert "training" in asked_by(exp, [reads]) and "training" not in asked_by(exp, [])
