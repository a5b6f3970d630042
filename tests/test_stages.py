"""Stages run once, side by side, under a lease; rows are conserved; what is finished is reused."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Runtime
from plad_ray.errors import PladError
from plad_ray.lease import Lease
from plad_ray.logs import Source
from plad_ray.slot import open_slot
from plad_ray.stages import Job, Outcome, Stage, execute, pending


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "runs"))


class Counted:
    """A stage function that writes one row and counts its runs."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def __call__(self, job: Job) -> Outcome:
        self.runs.append(job.stage)
        job.out.write_rows(pa.table({"stage": [job.stage]}))
        return Outcome(1, 1)


def chain(run) -> tuple[Stage, Stage, Stage]:
    first = Stage("first", run, {"n": 1})
    second = Stage("second", run, {"n": 2}, {"first": first})
    return first, second, Stage("third", run, {"n": 3}, {"second": second})


def go(target: Stage, store: Store, **options) -> Artifact:
    return execute([target], store, options.pop("runtime", Runtime()), say=lambda _: None, **options)[target.name]


def test_every_stage_runs_once_inputs_first_and_is_then_reused(store):
    run = Counted()
    third = chain(run)[2]
    assert go(third, store).finished
    assert run.runs == ["first", "second", "third"]
    go(third, store)
    assert len(run.runs) == 3 and pending([third], store) == []


def test_a_finished_stage_hides_what_lies_behind_it(store):
    run = Counted()
    first, second, third = chain(run)
    go(third, store)
    store.delete(first.artifact_name)
    store.delete(third.artifact_name)
    assert [s.name for s in pending([third], store)] == ["third"]
    go(third, store)
    assert run.runs == ["first", "second", "third", "third"]
    assert second.artifact(store).finished and not first.artifact(store).finished


def test_a_name_follows_from_config_version_and_inputs_only(store):
    def other(job: Job) -> Outcome:
        return Outcome()

    base = Stage("s", Counted(), {"a": 1})
    assert base.digest == Stage("s", other, {"a": 1}, cpus=4, gpus=2).digest
    assert base.digest != Stage("s", other, {"a": 2}).digest
    assert base.digest != Stage("s", other, {"a": 1}, version=2).digest
    assert base.digest != Stage("t", other, {"a": 1}).digest
    assert base.digest != Stage("s", other, {"a": 1}, {"x": Stage("x", other)}).digest
    identity = {"a": "content hash"}
    one = Stage("s", other, {"path": "/here"}, identity=identity)
    assert one.digest == Stage("s", other, {"path": "/there"}, identity=identity).digest


def test_the_manifest_tells_what_was_done(store):
    def run(job: Job) -> Outcome:
        store.write_bytes(job.out.file("work/scratch"), b"x")
        job.out.write_rows(pa.table({"x": [1, 2]}))
        return Outcome(5, 2, {"identical": 2, "empty": 1}, {"tokens": 7})

    first = Stage("first", Counted())
    artifact = go(Stage("s", run, {"a": 1}, {"up": first}), store)
    manifest = artifact.manifest
    assert manifest["rows"] == {"in": 5, "out": 2, "dropped": {"identical": 2, "empty": 1}}
    assert manifest["inputs"] == {"up": first.artifact_name} and manifest["metrics"] == {"tokens": 7}
    assert manifest["libraries"]["pyarrow"] == pa.__version__
    assert set(store.files(artifact.name)) - {".lease.lock"} == {"manifest.json", "rows/part-00000.parquet"}


def test_rows_that_vanish_fail_the_stage(store):
    stage = Stage("leaky", lambda job: Outcome(5, 3, {"empty": 1}))
    with pytest.raises(PladError, match="leaky: rows are not conserved: 5 in, 3 out"):
        go(stage, store)
    assert not stage.artifact(store).finished


def test_a_corrupted_input_stops_the_run_before_anything_starts(store):
    run = Counted()
    first, _, third = chain(run)
    go(first, store)
    name = first.artifact(store).file("rows/part-00000.parquet")
    store.write_bytes(name, store.read_bytes(name)[:-3])
    with pytest.raises(PladError, match=r"first-.* is corrupted"):
        go(third, store)
    assert run.runs == ["first"]


def test_an_unfinished_stage_resumes_in_its_own_folder(store):
    def run(job: Job) -> Outcome:
        half = job.out.file("work/half")
        if not store.exists(half):
            store.write_bytes(half, b"1")
            raise RuntimeError("killed")
        job.out.write_rows(pa.table({"x": [1]}))
        return Outcome(1, 1)

    stage = Stage("s", run)
    with pytest.raises(RuntimeError, match="killed"):
        go(stage, store)
    assert go(stage, store).finished
    work = stage.artifact(store).file("work")
    assert not store.exists(work)
    store.write_bytes(f"{work}/left", b"by a driver killed between manifest and deletion")
    assert go(stage, store).finished and not store.exists(work)


def test_independent_stages_run_side_by_side(store):
    """Each waits for the other: only a parallel run can end."""
    barrier = threading.Barrier(2, timeout=20)

    def run(job: Job) -> Outcome:
        barrier.wait()
        return Outcome()

    last = Stage("last", lambda job: Outcome(), {}, {n: Stage(n, run) for n in ("a", "b")})
    assert go(last, store, runtime=Runtime(parallel_stages=2)).finished


@pytest.mark.parametrize(("cpus", "capacity", "most"), [(2, (4, 0), 2), (3, (4, 0), 1), (9, (4, 0), 1), (0, (4, 0), 3)])
def test_capacity_limits_what_runs_together(store, cpus, capacity, most):
    lock, now, peak = threading.Lock(), [0], [0]

    def run(job: Job) -> Outcome:
        with lock:
            now[0] += 1
            peak[0] = max(peak[0], now[0])
        time.sleep(0.2)
        with lock:
            now[0] -= 1
        return Outcome()

    stages = {n: Stage(n, run, cpus=cpus) for n in "abc"}
    last = Stage("last", lambda job: Outcome(), {}, stages)
    go(last, store, runtime=Runtime(parallel_stages=3), capacity=capacity)
    assert peak[0] == most


@pytest.mark.parametrize(("in_turn", "groups"), [(1, []), (2, ["ab"]), (8, ["abcd"])])
def test_what_fits_no_longer_runs_in_turn_with_what_does(store, in_turn, groups):
    """Room for one: the others join it, as many as it may take; the rest wait for the next."""
    alone = Counted()
    together: list[str] = []

    def turns(jobs: list[Job]) -> list[Outcome | PladError]:
        together.append("".join(job.stage for job in jobs))
        return [PladError("b is bad") if job.stage == "b" else Outcome(2, 2, seconds=1.5) for job in jobs]

    stages = {n: Stage(n, alone, cpus=1, run_in_turn=turns, in_turn=in_turn) for n in "abcd"}
    last = Stage("last", alone, {}, stages)
    if in_turn == 1:
        go(last, store, capacity=(1, 0))
        assert alone.runs == [*"abcd", "last"] and together == groups
        return
    ended: list[tuple[str, bool]] = []
    with pytest.raises(PladError, match="b is bad"):
        go(last, store, capacity=(1, 0), ended=lambda stage, well: ended.append((stage, well)))
    assert together == groups and alone.runs == []
    assert ended == [(n, n != "b") for n in groups[0]], "what succeeded is kept"
    assert stages["a"].artifact(store).manifest["seconds"] == 1.5


def test_a_failure_lets_the_running_end_and_starts_nothing_more(store):
    started, ended = [], []

    def slow(job: Job) -> Outcome:
        time.sleep(0.5)
        ended.append(job.stage)
        return Outcome()

    def fails(job: Job) -> Outcome:
        time.sleep(0.1)
        raise PladError("the data is bad")

    def after(job: Job) -> Outcome:
        started.append(job.stage)
        return Outcome()

    slow_stage = Stage("slow", slow)
    after_slow = Stage("after", after, {}, {"slow": slow_stage})
    last = Stage("last", after, {}, {"fails": Stage("fails", fails), "after": after_slow})
    with pytest.raises(PladError, match="the data is bad"):
        go(last, store, runtime=Runtime(parallel_stages=2))
    assert ended == ["slow"] and started == []
    assert slow_stage.artifact(store).finished


def test_progress_reaches_the_reporter_by_stage(store):
    seen = []

    def run(job: Job) -> Outcome:
        job.progress(1, 2, "rows", loss=0.5)
        return Outcome()

    go(Stage("s", run), store, reporter=lambda stage: lambda *a, **k: seen.append((stage, a, k)))
    assert seen == [("s", (1, 2, "rows"), {"loss": 0.5})]


@pytest.mark.parametrize(("logs", "source"), [("json", Source("mine", "s · seed 3")), ("text", None)])
def test_workers_are_told_run_and_stage_where_structured_logs_are_asked(store, logs, source):
    seen = []

    def run(job: Job) -> Outcome:
        seen.append(job.source)
        return Outcome()

    go(Stage("s", run, of="seed 3"), store, runtime=Runtime(logs=logs), run="mine")
    assert seen == [source]


# --- the lease -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "s3", "gs"])
def any_store(request, store) -> Store:
    return store if request.param == "local" else Store(request.getfixturevalue(f"{request.param}_root"))


def write_lease(artifact: Artifact, **fields) -> None:
    content = {"id": "other", "host": "another-host", "pid": 1, "expires": time.time() + 60, **fields}
    artifact.store.write_json(artifact.file("lease.json"), content)


def test_the_lease_is_there_while_held_and_gone_after(any_store):
    artifact = Artifact(any_store, "a-1")
    with Lease(artifact) as lease:
        content = any_store.read_json(artifact.file("lease.json"))
        assert content["pid"] == os.getpid() and content["expires"] > time.time() + 50
        lease.check()
    assert not any_store.exists(artifact.file("lease.json"))


def test_a_live_holder_is_waited_for_by_name(any_store):
    artifact, said = Artifact(any_store, "a-1"), []
    write_lease(artifact, expires=time.time() + 1.5, pid=4711)
    start = time.time()
    with Lease(artifact, said.append, seconds=2):
        assert time.time() - start > 1
    assert len(said) == 1 and "another-host pid 4711" in said[0]


@pytest.mark.parametrize("how", ["expired", "dead process of this host"])
def test_a_dead_holder_blocks_nobody(any_store, how):
    artifact, said = Artifact(any_store, "a-1"), []
    if how == "expired":
        write_lease(artifact, expires=time.time() - 1)
    else:
        child = multiprocessing.get_context("spawn").Process(target=int)
        child.start()
        child.join()
        write_lease(artifact, host=os.uname().nodename, pid=child.pid)
    with Lease(artifact, said.append):
        assert not said


def test_a_writer_that_lost_its_lease_stops_before_it_commits(any_store):
    def run(job: Job) -> Outcome:
        job.out.write_rows(pa.table({"x": [1]}))
        write_lease(job.out)  # somebody took over
        return Outcome(1, 1)

    stage = Stage("s", run)
    with pytest.raises(PladError, match="the lease was lost to another-host pid 1"):
        go(stage, any_store)
    assert not stage.artifact(any_store).finished
    held = json.loads(any_store.read_bytes(stage.artifact(any_store).file("lease.json")))
    assert held["id"] == "other", "the loser must leave the winner's lease alone"


def test_a_held_lease_is_renewed(any_store):
    artifact = Artifact(any_store, "a-1")
    with Lease(artifact, seconds=0.9) as lease:
        time.sleep(2)
        held = lease.slot.read()
        assert held is not None and held[0]["expires"] > time.time()
        lease.check()


def _hold(root: str, held: Any) -> None:
    """A driver of another machine, as far as its lease says."""
    socket.gethostname = lambda: "another-host"
    with Lease(Artifact(Store(root), "a-1"), seconds=2):
        held.set()
        time.sleep(600)


def test_the_lease_of_a_driver_killed_elsewhere_ends_by_itself(any_store):
    context, said = multiprocessing.get_context("spawn"), []
    held = context.Event()
    driver = context.Process(target=_hold, args=(any_store.root, held))
    driver.start()
    assert held.wait(60)
    driver.kill()
    driver.join()
    killed = time.time()
    with Lease(Artifact(any_store, "a-1"), said.append, seconds=2) as lease:
        assert time.time() - killed > 1
        lease.check()
    assert len(said) == 1 and f"waiting for another-host pid {driver.pid}" in said[0]


def test_a_lease_taken_over_between_two_looks_is_not_overwritten(any_store):
    slot = open_slot(any_store, "a-1/lease.json")
    assert slot.swap({"id": "a"}, None) and not slot.swap({"id": "b"}, None)
    seen = slot.read()
    assert seen is not None and seen[0] == {"id": "a"}
    assert slot.swap({"id": "b"}, seen[1])
    assert not slot.swap({"id": "a"}, seen[1])
    assert any_store.read_json("a-1/lease.json") == {"id": "b"}


@pytest.mark.parametrize("kind", ["503", "cut", "half"])
@pytest.mark.parametrize("where", ["s3", "gs"])
def test_a_lease_outlasts_faults_of_its_store(request, where, kind, monkeypatch):
    """Among them the answer that is lost after the write was done: it must not look like somebody else's lease."""
    root, (_, faults) = (request.getfixturevalue(f"{where}_{name}") for name in ("root", "server"))
    artifact = Artifact(Store(root), "a-1")
    monkeypatch.setattr("plad_ray.lease.RENEW_EVERY", 600)  # no writes between those below
    faults.share, faults.kinds = 0.3, (kind,)
    with Lease(artifact, seconds=3600) as lease:
        for _ in range(5):
            lease.check()
            assert lease.slot.swap(lease._content(), lease.slot.read()[1])
    faults.share = 0.0
    assert not artifact.store.exists(artifact.file("lease.json"))


def _race(root: str, log: str, together: Any) -> None:
    """One of several drivers: run the same stage; the function appends its process to a file."""

    def run(job: Job) -> Outcome:
        with Path(log).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        job.out.write_rows(pa.table({"pid": [os.getpid()]}))
        return Outcome(1, 1)

    store = Store(root)
    together.wait(60)
    execute([Stage("raced", run)], store, Runtime(), say=lambda _: None)


def test_drivers_at_once_run_a_stage_once(any_store, tmp_path):
    context = multiprocessing.get_context("fork" if any_store.local else "spawn")  # an S3 client is lost by a fork
    log, together = tmp_path / "log", context.Barrier(3)
    drivers = [context.Process(target=_race, args=(any_store.root, str(log), together)) for _ in range(3)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(90)
    assert [driver.exitcode for driver in drivers] == [0, 0, 0]
    assert len(log.read_text().split()) == 1
