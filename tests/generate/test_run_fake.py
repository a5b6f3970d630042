"""Plumbing through real Ray Data with the fake engine: once, resumed, conserved."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from plad_ray.artifacts import Artifact, Store
from plad_ray.errors import PladError
from plad_ray.generate import parts, requests, watch
from plad_ray.generate import run as generate_run
from plad_ray.generate.pools import build_pools
from plad_ray.generate.quarantine import Quarantine
from plad_ray.generate.responses import PART
from plad_ray.generate.tasks import stored_requests
from plad_ray.generate.watch import EngineLost, _Execution
from plad_ray.generate.writing import requests_of
from plad_ray.stages import Stage, run_stage
from tests.conftest import save_tiny_model, worker_lines
from tests.generate.generate_jobs import draw, make_job, policy, prompt_rows, prompts_artifact, succeeded

RUNTIME = {"teacher": {"batch_size": 8}, "student": {"batch_size": 8}}


def two_roles(store, model, count=30, runtime=None, **generate):
    draws = [draw(temperatures=(0.0, 0.7))]
    policies = {"teacher": policy(model, "teacher", draws=draws), "student": policy(model, "student", draws=draws)}
    inputs = {"prompts": prompts_artifact(store, prompt_rows(count))}
    return make_job(store, policies, inputs, runtime or RUNTIME, **generate)


def part(number: int, rid: str, policy: str = "teacher", error: str | None = None, text: str = "w1", **more) -> dict:
    row = {"number": number, "rid": rid, "policy": policy, "prompt_id": rid.split(":")[0], "split": "distill"}
    row |= {"temperature": 0.7, "sample": 0, "text": text, "token_ids": [3], "finish_reason": "stop"}
    row |= {"num_prompt_tokens": 4, "num_tokens": 1, "num_reasoning_tokens": 0, "error": error, "sampled": None}
    return row | more


def write_part(out: Artifact, name: str, rows: list[dict]) -> None:
    out.write_rows(pa.Table.from_pylist(rows, schema=PART), name, parts.FOLDER)


def test_all_roles_and_temperatures_in_one_run(store, tiny_llama, ray_session):
    seen = []
    job = two_roles(store, tiny_llama)
    job = make_job(store, job.config["policies"], job.inputs, RUNTIME, progress=lambda *a, **k: seen.append((a, k)))
    outcome = generate_run.run(job)
    rows = list(job.out.rows())
    assert outcome.rows_in == outcome.rows_out == len(rows) == len({r["rid"] for r in rows}) == 30 * 2 * 2
    assert outcome.dropped == {} and job.out.table(folder="errors").num_rows == 0
    for name in ("teacher", "student"):
        mine = [r for r in rows if r["policy"] == name]
        assert outcome.metrics["tokens"][name] == sum(r["num_tokens"] for r in mine)
        assert outcome.metrics["truncated"][name] == sum(r["finish_reason"] == "length" for r in mine) / 60
    assert [a[0] for a, _ in seen][:2] == [0, 8] and seen[-1][0] == (120, 120, "rows")
    assert "tokens_per_s" in seen[-1][1]


def test_a_roles_bases_are_served_one_after_another(store, tiny_llama, tmp_path, ray_session):
    """Students all of whose weights were trained: each is a base, and the role has the devices of one engine pool."""
    specs = {"teacher": policy(tiny_llama, "teacher"), "first": policy(tiny_llama, "student")}
    specs["second"] = policy(save_tiny_model(tmp_path / "second", seed=3), "student")
    job = make_job(store, specs, {"prompts": prompts_artifact(store, prompt_rows(9))}, RUNTIME)
    pools = build_pools(job)
    named = [[list(pool.policies) for pool in turn] for turn in generate_run.in_turn(job, pools)]
    assert named == [[["first"], ["teacher"]], [["second"]]]
    alone = make_job(store, specs, job.inputs, {**RUNTIME, "colocate": ["teacher", "student"]})
    named = [[list(pool.policies) for pool in turn] for turn in generate_run.in_turn(alone, pools)]
    assert named == [[["first"]], [["second"]], [["teacher"]]]
    assert generate_run.run(job).rows_out == 27
    assert Counter(row["policy"] for row in job.out.rows()) == dict.fromkeys(specs, 9)


def test_resume_runs_only_what_is_missing(store, tiny_llama, ray_session):
    job = two_roles(store, tiny_llama)
    # of each prompt, the teacher is asked at 0 and at 0.7
    write_part(job.out, "a", [part(2 * i + 1, f"distill-{i}:teacher:0.7:0", text="kept") for i in range(10)])
    again = [part(2 * i + 1, f"distill-{i}:teacher:0.7:0", text="again") for i in range(9, 12)]  # one is there twice
    write_part(job.out, "b", again)
    write_part(job.out, "c", [part(41, "distill-20:teacher:0.7:0", error="RuntimeError: lost")])
    whole = Path(store.path(job.out.file(f"{parts.FOLDER}/a.parquet"))).read_bytes()
    torn = Path(store.path(job.out.file(f"{parts.FOLDER}/torn.parquet")))
    torn.write_bytes(whole[: len(whole) // 2])
    unfinished = torn.with_name(".writing-x")
    unfinished.write_bytes(whole)
    outcome = generate_run.run(job)
    assert outcome.metrics["generated_rows"] == 120 - 12, "the error is tried again, the rest of the parts is kept"
    rows = {r["rid"]: r for r in job.out.rows()}
    assert len(rows) == job.out.table().num_rows == outcome.rows_out == 120
    assert [rows[f"distill-{i}:teacher:0.7:0"]["text"] for i in (0, 9, 11)] == ["kept", "kept", "again"]
    assert rows["distill-20:teacher:0.7:0"]["text"] != "w1" and not torn.exists()


def test_nothing_left_starts_no_engine(store, tiny_llama, monkeypatch, ray_session):
    job = two_roles(store, tiny_llama, count=3)
    first = generate_run.run(job)
    before = job.out.table()
    monkeypatch.setattr(generate_run, "execute", lambda *a: pytest.fail("Ray Data ran"))
    again = generate_run.run(job)
    assert job.out.table().equals(before)
    assert (again.rows_out, again.metrics["tokens"]) == (first.rows_out, first.metrics["tokens"])
    assert again.metrics["generated_rows"] == 0


def test_errors_go_to_the_side_table_and_are_counted(store, tiny_llama, ray_session):
    runtime = {**RUNTIME, "teacher": {"batch_size": 8, "engine_kwargs": {"fail": ["distill-3"]}}}
    job = two_roles(store, tiny_llama, runtime=runtime, max_error_fraction=0.02)
    outcome = generate_run.run(job)
    assert (outcome.rows_in, outcome.rows_out, outcome.dropped) == (120, 118, {"error": 2})
    errors = list(job.out.rows(folder="errors"))
    assert {e["rid"] for e in errors} == {"distill-3:teacher:0:0", "distill-3:teacher:0.7:0"}
    assert not {e["rid"] for e in errors} & {r["rid"] for r in job.out.rows(["rid"])}


def test_lines_of_an_engine_say_run_stage_and_request_where_structured_logs_are_asked(store, tiny_llama, ray_session):
    for name, logs in (("structured-run", "json"), ("plain-run", "text")):
        runtime = {"teacher": {"batch_size": 8, "engine_kwargs": {"fail": ["distill-3"]}}, "logs": logs}
        job = two_roles(store, tiny_llama, count=12, runtime=runtime, max_error_fraction=0.1)
        generate_run.run(replace(job, out=Artifact(store, name), run=name, title="responses · seed 3"))
    lines = worker_lines("structured-run")
    assert sorted(line["rid"] for line in lines) == ["distill-3:teacher:0.7:0", "distill-3:teacher:0:0"]
    for line in lines:
        assert (line["run"], line["stage"], line["level"]) == ("structured-run", "responses · seed 3", "info")
        assert line["message"] == f"{line['rid']}: RuntimeError: fake failure of distill-3"
    assert worker_lines("plain-run") == []


def test_too_many_errors_fail_and_say_which(store, tiny_llama, ray_session):
    fails = [f"distill-{i}" for i in range(25, 30)]  # the last: blocks without them are finished before
    job = two_roles(
        store, tiny_llama, runtime={**RUNTIME, "teacher": {"batch_size": 8, "engine_kwargs": {"fail": fails}}}
    )
    with pytest.raises(PladError, match=r"of 120 requests failed.*max_error_fraction 0.01.*fake failure of distill-"):
        generate_run.run(job)
    kept = succeeded(job.out)
    assert kept and not job.out.store.exists(job.out.file("rows"))
    healed = make_job(store, job.config["policies"], job.inputs, RUNTIME)
    outcome = generate_run.run(healed)
    assert outcome.rows_out == 120 and outcome.metrics["generated_rows"] <= 120 - len(kept)


def test_an_engine_that_breaks_is_reported_with_its_cause(store, tiny_llama, ray_session):
    job = two_roles(store, tiny_llama, count=3, runtime={"teacher": {"engine_kwargs": {"seconds": "soon"}}})
    with pytest.raises(PladError, match=r"responses: generation failed: TypeError: .*str.* cannot be interpreted"):
        generate_run.run(job)


def one_role(store, model, count, runtime, progress):
    draws = {"teacher": policy(model)}
    return make_job(store, draws, {"prompts": prompts_artifact(store, prompt_rows(count))}, runtime, progress=progress)


def writing_waits_for(monkeypatch, answered: threading.Event) -> None:
    """The second request file, and what follows it."""
    write = requests.write_requests

    def later(out, folder, number, rows, rows_per_block):
        assert number == 0 or answered.wait(300), "no answer before all requests were written"
        write(out, folder, number, rows, rows_per_block)

    monkeypatch.setattr(requests, "write_requests", later)


def test_engines_answer_while_requests_are_still_being_written(store, tiny_llama, monkeypatch, ray_session):
    answered = threading.Event()
    writing_waits_for(monkeypatch, answered)
    progress = lambda done, *_, **__: answered.set() if done else None  # noqa: E731
    job = one_role(store, tiny_llama, 200, {"teacher": {"batch_size": 2}}, progress)
    assert generate_run.run(job).rows_out == 200
    assert [row["prompt_id"] for row in job.out.rows()] == [f"distill-{i}" for i in range(200)]


@pytest.mark.parametrize("broken", ["prompt", "disk"])
def test_what_ends_the_writing_ends_the_engines_at_once(store, tiny_llama, broken, monkeypatch, ray_session):
    """The engine hangs, so no block comes that would show it."""
    answered = threading.Event()
    writing_waits_for(monkeypatch, answered)
    monkeypatch.setattr(requests, "BATCH_ROWS", 64)
    runtime = {"teacher": {"batch_size": 1, "engine_kwargs": {"hang": ["distill-3"]}}}
    progress = lambda done, *_, **__: answered.set() if done else None  # noqa: E731
    job = one_role(store, tiny_llama, 200, runtime, progress)
    rows = prompt_rows(200)
    error, message = PladError, r"prompt 'distill-150' has 45 tokens; with generate.max_tokens 8"
    if broken == "prompt":
        rows[150]["prompt"] = " ".join(["w1"] * 45)
        prompts_artifact(store, rows)
    else:
        error, message, write = OSError, "No space left on device", requests.write_requests

        def full(*given):
            write(*given)
            if given[2] == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(requests, "write_requests", full)
    started = time.time()
    with pytest.raises(error, match=message):
        generate_run.run(job)
    assert succeeded(job.out) and time.time() - started < 120
    assert engines_left() == []
    assert not [name for name in store.files(job.out.file("work")) if name.endswith(".writing")]


def test_silence_counts_from_when_all_requests_are_written(monkeypatch):
    monkeypatch.setattr(watch, "CHECK_SECONDS", 0.01)
    execution = _Execution.__new__(_Execution)
    execution.stall_seconds, execution.stalled, execution.written = 0.1, False, Future()
    execution.finished = execution.alive = 0
    execution.executor, execution.actors, execution.waiting, execution.over = None, set(), True, threading.Event()
    listening = threading.Thread(target=execution._listen, daemon=True)
    listening.start()
    listening.join(0.5)
    assert listening.is_alive() and not execution.stalled
    execution.written.set_result(None)
    listening.join(10)
    assert execution.stalled


POISON = {"distill-5", "distill-13"}


def engines_left() -> list[psutil.Process]:
    mine = {process.pid for process in psutil.Process().children(recursive=True)}
    alive = [process for process in psutil.process_iter(["cmdline"]) if process.pid in mine]
    engines = [process for process in alive if "FakeEngine" in " ".join(process.info["cmdline"] or [])]
    return psutil.wait_procs(engines, timeout=20)[1]


@pytest.mark.chaos
def test_prompts_that_kill_their_engine_are_quarantined(store, tiny_llama, ray_session):
    pool = {"batch_size": 4, "replicas": 2, "engine_kwargs": {"kill": sorted(POISON)}}
    runtime = {"teacher": pool, "student": {"batch_size": 4}, "engine_tries": 2}
    job = two_roles(store, tiny_llama, count=20, runtime=runtime, max_error_fraction=0.1)
    run_stage(Stage("responses", generate_run.run, job.config), job)
    lost = {f"{prompt}:teacher:{temperature}:0" for prompt in POISON for temperature in ("0", "0.7")}
    errors = list(job.out.rows(folder="errors"))
    assert {e["rid"] for e in errors} == lost and len(errors) == 4
    assert {e["error"] for e in errors} == {"quarantined: alone in its engine, killed 2 engines"}
    assert job.out.manifest["rows"] == {"in": 80, "out": 76, "dropped": {"quarantined": 4}}
    rids = [r["rid"] for r in job.out.rows()]
    assert len(rids) == len(set(rids)) == 76 and not lost & set(rids)
    assert engines_left() == []


@pytest.mark.chaos
def test_an_engine_that_hangs_is_ended_and_its_prompt_quarantined(store, tiny_llama, ray_session):
    pool = {"batch_size": 4, "engine_kwargs": {"hang": ["distill-5"]}}
    draws = {"teacher": policy(tiny_llama, draws=[draw(temperatures=(0.7,))])}
    inputs = {"prompts": prompts_artifact(store, prompt_rows(12))}
    job = make_job(store, draws, inputs, {"teacher": pool, "stall_seconds": 20}, max_error_fraction=0.1)
    outcome = generate_run.run(job)
    assert (outcome.rows_out, outcome.dropped) == (11, {"quarantined": 1})
    [error] = job.out.rows(folder="errors")
    assert (error["rid"], error["error"]) == (
        "distill-5:teacher:0.7:0",
        "quarantined: alone in its engine, no answer within 20 s",
    )
    assert engines_left() == [], "an engine that hangs must not keep its GPU"


class Engines:
    """``Quarantine.attempt`` without Ray: a block that holds a request of ``poison`` ends the attempt."""

    def __init__(self, job, poison: set[int], stalled: bool = False):
        self.job, self.poison, self.stalled = job, poison, stalled
        self.done, self.lost, self.starts = parts.Numbers(), [], 0
        self.written: Future[None] = Future()
        self.quarantine = Quarantine(job, self.done, self, self.leave, self.written)

    def __call__(self, pools, work):
        self.starts += 1
        for pool in pools:
            rows = list(stored_requests(self.job.out, work.files(pool)))
            assert [r["number"] for r in rows if r["number"] in self.done] == []
            for finished, at in enumerate(range(0, len(rows), pool.rows_per_block)):
                block = [row["number"] for row in rows[at : at + pool.rows_per_block]]
                if self.poison & set(block):
                    raise EngineLost("died", self.stalled, finished)
                self.done.add(np.array(block))

    def leave(self, row):
        self.lost.append(row)
        self.done.add(np.array([row["number"]]))

    def run(self):
        pools = build_pools(self.job)
        work = generate_run.plan(self.job, pools, self.done)
        with requests_of(self.job, [pools], work, self.done) as written:
            written.result()
        self.written.set_result(None)
        self.quarantine.complete(pools, work, lambda pool: 2)


def lonely(store, model, **runtime):
    inputs = {"prompts": prompts_artifact(store, prompt_rows(40))}
    return make_job(store, {"teacher": policy(model)}, inputs, {"teacher": {"batch_size": 8}, **runtime})


@pytest.mark.parametrize("stalled", [False, True])
def test_the_request_at_fault_is_found_and_the_others_are_answered(store, tiny_llama, stalled):
    engines = Engines(lonely(store, tiny_llama), {9, 10, 30}, stalled)
    engines.run()
    assert sorted(row["number"] for row in engines.lost) == [9, 10, 30]
    assert all(n in engines.done for n in range(40))
    why = "no answer within 1800 s" if stalled else "killed 3 engines"
    assert {row["error"] for row in engines.lost} == {f"quarantined: alone in its engine, {why}"}
    # each: all together, its window, its block as often as it may die alone; and the last time nothing dies
    assert engines.starts == 3 * (2 + (1 if stalled else 3)) + 1


def test_too_many_in_quarantine_and_silence_from_the_start_are_errors(store, tiny_llama):
    with pytest.raises(PladError, match=r"3 requests are in quarantine, and runtime.max_quarantined is 2 .*distill-39"):
        Engines(lonely(store, tiny_llama, max_quarantined=2), {20, 30, 39}).run()
    with pytest.raises(PladError, match=r"2 requests are in quarantine, and no other was answered .*distill-1:"):
        Engines(lonely(store, tiny_llama), set(range(40)), stalled=True).run()
    first = Engines(lonely(store, tiny_llama), {0}, stalled=True)
    first.run()
    assert [row["number"] for row in first.lost] == [0], "of the very first block"


def test_publish_keeps_every_request_once(store):
    out = Artifact(store, "out")
    write_part(out, "a", [part(0, "p1:teacher:0.7:0"), part(1, "p2:teacher:0.7:0", error="E: x")])
    write_part(out, "b", [part(1, "p2:teacher:0.7:0"), part(2, "p3:student:0.7:0", "student", error="E: y")])
    count, errors, statistics = parts.publish(out, 3)
    assert (count, dict(errors)) == (2, {"E: y": 1})
    assert [r["rid"] for r in out.rows()] == ["p1:teacher:0.7:0", "p2:teacher:0.7:0"]
    assert [r["rid"] for r in out.rows(folder="errors")] == ["p3:student:0.7:0"]
    assert statistics["teacher"] == {"rows": 2, "tokens": 2, "prompt_tokens": 8, "truncated": 0}
    for total in (2, 4):
        with pytest.raises(PladError, match=f"{total} requests, but 2 responses and 1 errors"):
            parts.publish(out, total)


def test_rows_stand_in_the_order_of_the_requests_in_files_of_moderate_size(store, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_PER_FILE", 4)
    out = Artifact(store, "out")
    write_part(out, "z", [part(i, f"p{i}:teacher:0.7:0") for i in (2, 7, 3)])  # of two files
    for i in (8, 1, 0, 4, 6, 5):
        write_part(out, f"{9 - i}", [part(i, f"p{i}:teacher:0.7:0", error="E" if i == 6 else None)])
    assert parts.publish(out, 9)[0] == 8
    assert sorted(store.files("out/rows")) == [f"part-0000{i}.parquet" for i in range(3)]
    assert [r["prompt_id"] for r in out.rows()] == [f"p{i}" for i in range(9) if i != 6]
    assert [r["rid"] for r in out.rows(folder="errors")] == ["p6:teacher:0.7:0"]


def test_requests_are_numbered_over_all_pools_and_answered_ones_left_out(store):
    out, tally = Artifact(store, "out"), Counter()
    write_part(out, "a", [part(1, "b"), part(4, "e", error="E: lost"), part(5, "f")])
    done = parts.answered(out)
    assert [n for n in range(9) if n in done] == [1, 5]
    left = [r for pool in ("abc", "defg") for r in parts.remaining([{"rid": rid} for rid in pool], done, tally)]
    assert [(r["number"], r["rid"]) for r in left] == [(0, "a"), (2, "c"), (3, "d"), (4, "e"), (6, "g")]
    assert tally["total"] == 7


DRIVER = """
import sys
sys.path.insert(0, {repository!r})
from tests.generate.generate_jobs import *
from plad_ray.generate import run as generate_run
from plad_ray.stages import Stage, run_stage
store = Store({root!r})
draws = [draw(temperatures=(0.0, 0.7))]
specs = {{r: policy(Path({model!r}), r, {engine!r}, draws) for r in ("teacher", "student")}}
runtime = {runtime!r}
job = make_job(store, specs, {{"prompts": Artifact(store, "prompts-0")}}, runtime)
run_stage(Stage("responses", generate_run.run, job.config), job)
print("finished", flush=True)
"""


def driver(tmp_path: Path, root: str, model: Path, engine: str, runtime: dict) -> subprocess.Popen:
    repository = str(Path(__file__).parents[2])
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(repository=repository, root=root, model=str(model), engine=engine, runtime=runtime))
    environment = {**os.environ, "PYTHONPATH": repository}
    return subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)


def kill_at_half_and_rerun(tmp_path: Path, store: Store, model: Path, engine: str, pool: dict, count: int) -> None:
    """SIGKILL the driver when half of the rows are there, run again: every request once, few generated twice."""
    prompts_artifact(store, prompt_rows(count))
    total, out = count * 4, Artifact(store, "responses-0")
    runtime = {"teacher": pool, "student": pool}
    first = driver(tmp_path, store.root, model, engine, runtime)
    deadline = time.time() + 300
    while len(succeeded(out)) < total // 2:
        assert first.poll() is None and time.time() < deadline, "the run ended, or never came to half"
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(3)  # actors of the dead driver may still write what they have
    kept = len(succeeded(out))
    assert total // 2 <= kept < total and not out.finished
    second = driver(tmp_path, store.root, model, engine, runtime)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0 and "finished" in said
    rows = list(out.rows())
    assert len(rows) == len({r["rid"] for r in rows}) == total
    assert out.finished and out.manifest["rows"] == {"in": total, "out": total, "dropped": {}}
    assert out.manifest["metrics"]["generated_rows"] == total - kept


@pytest.mark.chaos
def test_killed_driver_resumes(tmp_path, store, tiny_llama):
    pool = {"batch_size": 8, "engine_kwargs": {"seconds": 0.5}}
    kill_at_half_and_rerun(tmp_path, store, tiny_llama, "fake", pool, 60)


@pytest.mark.chaos
@pytest.mark.engine
@pytest.mark.slow
def test_killed_driver_resumes_with_vllm(tmp_path, store, tiny_llama):
    pool = {"batch_size": 4, "engine_kwargs": {"max_num_seqs": 2}}
    kill_at_half_and_rerun(tmp_path, store, tiny_llama, "vllm", pool, 150)


def test_stage_publishes(store, tiny_llama, ray_session):
    """Through run_stage: manifest, conservation, and no work folder left."""
    job = two_roles(store, tiny_llama, count=2)
    run_stage(Stage("responses", generate_run.run, job.config), job)
    assert job.out.finished and not store.exists(job.out.file("work"))
    assert job.out.manifest["rows"] == {"in": 8, "out": 8, "dropped": {}}
