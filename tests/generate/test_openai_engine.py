"""The generate stage with a teacher behind an API, through real Ray Data, against a server that fails on demand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from plad_ray.artifacts import Artifact, Store
from plad_ray.errors import PladError
from plad_ray.generate import openai_engine, requests
from plad_ray.generate import run as generate_run
from plad_ray.generate.pools import build_pools
from plad_ray.generate.responses import finish_text
from plad_ray.generate.tasks import REQUEST
from plad_ray.stages import Stage, run_stage
from tests.conftest import API_KEY
from tests.generate.api_server import Fault, Server, serving
from tests.generate.generate_jobs import (
    api_policy,
    draw,
    make_job,
    numbered,
    policy,
    prompt_rows,
    prompts_artifact,
    succeeded,
)

API = {"api_key_env": "PLAD_TEST_API_KEY", "concurrency": 4, "retries": 1, "timeout": 20}


def api_job(
    store: Store, server: Server, count: int = 12, api: dict | None = None, more: dict | None = None, **rest: Any
):
    """A teacher behind ``server`` asked for ``count`` prompts; ``more`` policies beside it."""
    policies = {"teacher": api_policy(server.url, **rest.pop("model", {})), **(more or {})}
    runtime = {"teacher": {"api": {**API, **(api or {})}}, "student": {"batch_size": 8}, "store": store.root}
    return make_job(store, policies, {"prompts": prompts_artifact(store, prompt_rows(count))}, runtime, **rest)


def prompt_of(row: dict[str, Any]) -> str:
    return next(r["prompt"] for r in prompt_rows(100) if r["prompt_id"] == row["prompt_id"])


def assert_no_key(store: Store) -> None:
    """In no file of the store, and in no log of Ray."""
    import ray

    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    files = [p for folder in (Path(store.root), logs) for p in folder.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert [p for p in files if API_KEY.encode() in p.read_bytes()] == []


def test_beside_a_local_student(store, tiny_llama, ray_session):
    seen: list[tuple[Any, Any]] = []
    with serving() as server:
        job = api_job(
            store,
            server,
            api={"input_price": 1.0, "output_price": 10.0},
            more={"student": policy(tiny_llama, "student")},
            progress=lambda *a, **k: seen.append((a, k)),
        )
        run_stage(Stage("responses", generate_run.run, job.config), job)
    rows = list(job.out.rows())
    mine = [r for r in rows if r["policy"] == "teacher"]
    assert len(rows) == 24 and len(mine) == len(server.asked) == 12
    for row in mine:
        assert row["text"] == " ".join(reversed(prompt_of(row).split()))
        counts = (row["token_ids"], row["finish_reason"], row["num_prompt_tokens"], row["num_tokens"])
        assert counts == ([], "stop", 10, len(row["text"].split()))
    generated = sum(r["num_tokens"] for r in mine)
    cost = (12 * 10 * 1.0 + generated * 10.0) / 1e6
    metrics = job.out.manifest["metrics"]
    assert metrics["api"] == {
        "teacher": {"input_tokens": 120, "output_tokens": generated, "unreported": 0, "cost": pytest.approx(cost)}
    }
    assert metrics["tokens"]["teacher"] == generated and metrics["prompt_tokens"]["teacher"] == 120
    assert seen[-1][0] == (24, 24, "rows") and max(k.get("cost", 0) for _, k in seen) == pytest.approx(cost)
    seeds = {a.body["seed"] for a in server.asked}
    assert seeds == {requests.request_seed(0, "teacher", f"distill-{i}", 0.7, 0) for i in range(12)}
    assert server.most_busy <= 4
    assert_no_key(store)


def test_error_rows(store, ray_session):
    """A request that cannot succeed costs itself alone, and what its answer cost is counted."""
    filtered = (
        '{"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}], "usage": {"prompt_tokens": 7}}'
    )

    def fault(number: int, body: dict[str, Any]) -> Fault | None:
        words = body["messages"][0]["content"].split()
        return {"w3": Fault(500, body=f"no {API_KEY}"), "w5": Fault(200, body=filtered)}.get(words[0])

    with serving(fault) as server:
        job = api_job(store, server, max_error_fraction=0.2)
        outcome = generate_run.run(job)
    assert (outcome.rows_in, outcome.rows_out, outcome.dropped) == (12, 10, {"error": 2})
    errors = {e["prompt_id"]: e["error"] for e in job.out.rows(folder="errors")}
    assert "answered 500: " in errors["distill-3"] and errors["distill-3"].endswith("(2 tries)")
    assert "content_filter" in errors["distill-5"]
    assert len(server.asked) == 13, "the 500 was tried twice"
    assert outcome.metrics["api"]["teacher"]["input_tokens"] == 107
    assert "cost" not in outcome.metrics["api"]["teacher"]
    assert_no_key(store)


def test_too_many_errors_fail_and_a_rerun_pays_for_the_rest_only(store, ray_session):
    broken = [True]

    def fault(number: int, body: dict[str, Any]) -> Fault | None:
        return Fault(400) if broken[0] and body["messages"][0]["content"].startswith(("w8", "w9")) else None

    with serving(fault) as server:
        job = api_job(store, server)
        with pytest.raises(PladError, match=r"2 of 12 requests failed.*max_error_fraction 0.01.*answered 400"):
            generate_run.run(job)
        broken[0] = False
        outcome = generate_run.run(job)
    assert outcome.rows_out == 12
    assert len(server.answered) == len(set(server.answered)) == 12, "no request was answered twice"


def test_a_key_that_is_refused_fails_the_stage_at_once_and_loses_nothing(store, ray_session):
    refuse = [True]

    def fault(number: int, body: dict[str, Any]) -> Fault | None:
        return Fault(401, body=f"bad key {API_KEY}") if refuse[0] and number >= 8 else None

    with serving(fault, seconds=0.1) as server:
        job = api_job(store, server, count=40)
        with pytest.raises(PladError) as error:
            generate_run.run(job)
        message = str(error.value)
        assert message.startswith("responses: generation failed: 127.0.0.1:") and "\n" not in message
        assert "answered 401" in message and "PLAD_TEST_API_KEY" in message and API_KEY not in message
        assert len(server.asked) <= 8 + 4, "those in flight at most"
        assert len(succeeded(job.out)) == len(server.answered) == 8
        refuse[0] = False
        assert generate_run.run(job).rows_out == 40
    assert len(server.answered) == len(set(server.answered)) == 40
    assert_no_key(store)


DRIVER = """
import sys
sys.path.insert(0, {repository!r})
from tests.generate.generate_jobs import *
from plad_ray.generate import run as generate_run
from plad_ray.stages import Stage, run_stage
store = Store({root!r})
job = make_job(store, {{"teacher": api_policy({url!r})}}, {{"prompts": Artifact(store, "prompts-0")}},
    {{"teacher": {{"api": {api!r}}}}})
run_stage(Stage("responses", generate_run.run, job.config), job)
print("finished", flush=True)
"""


def driver(tmp_path: Path, store: Store, server: Server) -> subprocess.Popen:
    repository = str(Path(__file__).parents[2])
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(repository=repository, root=store.root, url=server.url, api=API))
    environment = {**os.environ, "PYTHONPATH": repository}
    return subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.chaos
def test_a_killed_run_does_not_pay_twice(tmp_path, store):
    """One request of the first block hangs; the driver is killed when half of the others are answered."""
    total, hang = 60, [True]
    hanging = requests.request_seed(0, "teacher", "distill-1", 0.7, 0)
    prompts_artifact(store, prompt_rows(total))
    out = Artifact(store, "responses-0")

    def fault(number: int, body: dict[str, Any]) -> Fault:
        return Fault(seconds=15 if hang[0] and body["seed"] == hanging else 0.3)

    with serving(fault) as server:
        first = driver(tmp_path, store, server)
        deadline = time.time() + 120
        while len(server.answered) < total // 2:
            assert first.poll() is None and time.time() < deadline, "the run ended, or never came to half"
            time.sleep(0.05)
        hang[0] = False
        first.send_signal(signal.SIGKILL)
        first.wait()
        time.sleep(3)  # the dead driver's actor may still write what it has
        kept = len(succeeded(out))
        first_block = {f"distill-{i}:teacher:0.7:0" for i in range(4) if i != 1}
        assert first_block <= succeeded(out), "the slow request has kept nobody"
        before = len(server.asked)
        second = driver(tmp_path, store, server)
        said, _ = second.communicate(timeout=200)
    assert second.returncode == 0 and "finished" in said
    assert len(server.asked) - before == total - kept, "the second run asks for what is missing, once"
    twice = [seed for seed, count in Counter(a.body["seed"] for a in server.asked).items() if count > 1]
    # in flight, and what came in during the last second: four at a time, each 0.3 s
    assert len(twice) <= API["concurrency"] + 4 * openai_engine.PUBLISH_SECONDS / 0.3 + 4
    assert out.manifest["rows"] == {"in": total, "out": total, "dropped": {}}


def engine_and_block(store: Store, server: Server, count: int, **api: Any):
    """The actor's class in this process, and all requests as one block."""
    job = api_job(store, server, count=count, api=api)
    [pool] = build_pools(job)
    rows = numbered(
        requests.encoded(requests.pool_requests(job.inputs["prompts"], pool, {"teacher": [draw()]}, 0), pool)
    )
    return job.out, lambda: openai_engine.OpenAIEngine(pool), pa.Table.from_pylist(rows, schema=REQUEST)


def test_an_actor_that_is_started_anew_asks_for_nothing_twice(store):
    with serving() as server:
        out, engine, block = engine_and_block(store, server, 4)
        first, again = engine()(block.slice(0, 3)), engine()(block)
    assert first.num_rows == 3 and again.column("rid").to_pylist() == block.column("rid").to_pylist()[3:]
    assert len(server.asked) == 4 and len(succeeded(out)) == 4


def test_a_slow_request_keeps_nobody(store):
    with serving(lambda number, body: Fault(seconds=30) if number == 0 else None) as server:
        out, engine, block = engine_and_block(store, server, 8, concurrency=2)
        threading.Thread(target=engine(), args=(block,), daemon=True).start()
        deadline = time.time() + 25
        while len(succeeded(out)) < 7 and time.time() < deadline:
            time.sleep(0.1)
        assert len(succeeded(out)) == 7


def test_what_is_in_flight_elsewhere_is_kept_when_the_endpoint_refuses(store):
    """Two blocks at once: the one that is refused raises only after the other's answer is in a part file."""

    def fault(number: int, body: dict[str, Any]) -> Fault:
        return Fault(401, seconds=0.5) if body["messages"][0]["content"].startswith("w0") else Fault(seconds=2)

    with serving(fault) as server:
        out, engine, block = engine_and_block(store, server, 2)
        made, raised = engine(), []

        def other() -> None:
            with pytest.raises(PladError) as error:
                made(block.slice(1))
            raised.append(str(error.value))

        thread = threading.Thread(target=other)
        thread.start()
        while not server.asked:
            time.sleep(0.01)
        with pytest.raises(PladError, match="answered 401"):
            made(block.slice(0, 1))
        assert succeeded(out) == {"distill-1:teacher:0.7:0"}
        thread.join()
    assert "answered 401" in raised[0]


def test_requests_hold_text_or_messages(store):
    with serving() as server:
        asked = {}
        for kind in ("chat", "completions"):
            job = api_job(store, server, count=1, model={"endpoint": kind})
            [pool] = build_pools(job)
            conversation = [{"role": "user", "content": "hello"}]
            talk = {**prompt_rows(1)[0], "prompt_id": "talk", "messages": conversation}
            prompts = prompts_artifact(store, [*prompt_rows(1), talk], f"prompts-{kind}")
            asked[kind] = list(requests.encoded(requests.pool_requests(prompts, pool, {"teacher": [draw()]}, 0), pool))
    plain = "w0 w1 w2 w3"
    assert [r["prompt_messages"] for r in asked["chat"]] == [[{"role": "user", "content": plain}], conversation]
    assert [r["prompt_text"] for r in asked["completions"]] == [plain, plain]
    for row in asked["chat"] + asked["completions"]:
        assert row["prompt_token_ids"] is None and (row["prompt_text"] is None) != (row["prompt_messages"] is None)


def test_text_is_cut_as_ids_are():
    marks = ("<t>", "</t>")
    assert finish_text("a b\nc", "length", ("\n",)) == ("a b", "stop", 0)
    assert finish_text("<t>x\n</t> a\nb", "stop", ("\n",), marks) == ("a", "stop", 9)
    assert finish_text("x</t> a", "length", (), marks) == ("a", "length", 5)
    assert finish_text("<t>x y", "stop", (), marks) == ("", "length", 6)
    assert finish_text("a b", "length", (), marks) == ("a b", "length", 0)


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({"engine_kwargs": {"x": 1}}, "engine_kwargs"),
        ({"gpus": 1}, "gpus"),
        ({"replicas": 2}, "concurrency"),
        ({"api": {"api_key_env": "PLAD_NO_KEY"}}, "PLAD_NO_KEY"),
    ],
)
def test_what_the_engine_refuses(store, monkeypatch, runtime, expected):
    monkeypatch.delenv("PLAD_NO_KEY", raising=False)
    job = make_job(store, {"teacher": api_policy("http://127.0.0.1:9/v1")}, {}, {"teacher": {"api": API, **runtime}})
    with pytest.raises(PladError, match=expected):
        openai_engine.check(build_pools(job)[0])
