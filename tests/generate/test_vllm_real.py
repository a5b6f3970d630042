"""One real execution: two vLLM pools, a LoRA adapter beside its base, mixed temperatures, one request that fails."""

from __future__ import annotations

import threading
import time

import psutil
import pytest

from plad_ray.artifacts import Store
from plad_ray.generate import parts, vllm_engine
from plad_ray.generate import run as generate_run
from plad_ray.generate.pools import build_pools
from plad_ray.models.load import load_model
from plad_ray.models.sampling import sample
from plad_ray.models.tokens import decode, encode_prompt
from tests.conftest import save_tiny_model
from tests.generate.generate_jobs import adapter_artifact, draw, make_job, policy, prompt_rows, prompts_artifact
from tests.machines import title_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

TEMPERATURES = (0.0, 0.8)


@pytest.fixture(scope="module")
def real(tmp_path_factory, ray_session):
    """(job, outcome, response rows by rid)"""
    folder = tmp_path_factory.mktemp("real")
    store = Store(str(folder / "runs"))
    teacher = save_tiny_model(folder / "teacher", seed=1)
    student = save_tiny_model(folder / "student", seed=2)
    adapter = adapter_artifact(store, student, "sft-student-0")
    other = adapter_artifact(store, student, "distill-0", seed=5)
    rows = prompt_rows(150)
    draws = [draw(temperatures=TEMPERATURES)]
    policies = {
        "teacher": policy(teacher, "teacher", "vllm", draws),
        "student": policy(student, "student", "vllm", draws),
        "tuned": policy(student, "student", "vllm", draws),
        "other": policy(student, "student", "vllm", [draw(temperatures=(0.8,), limit=20)]),
    }
    inputs = {"prompts": prompts_artifact(store, rows), "tuned/0": adapter, "other/0": adapter, "other/1": other}
    runtime = {"teacher": {"batch_size": 16}, "student": {"batch_size": 16}}
    seen = []
    job = make_job(store, policies, inputs, runtime, progress=lambda *a, **k: seen.append((a, k)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_run.requests, "prompt_ids", _one_bad(generate_run.requests.prompt_ids))
        outcome = generate_run.run(job)
    return job, outcome, {row["rid"]: row for row in job.out.rows()}, seen


def _one_bad(prompt_ids):
    """prompt_ids, but prompt distill-7 is longer than the engine allows."""

    def ids(rows, tokenizer, pool):
        found = prompt_ids(rows, tokenizer, pool)
        bad = "distill-7" if pool.role == "teacher" else None
        return [ids * 60 if row["prompt_id"] == bad else ids for row, ids in zip(rows, found, strict=True)]

    return ids


def test_every_request_is_answered_once(real):
    job, outcome, rows, seen = real
    total = 150 * 2 * 3 + 20
    assert outcome.rows_in == total
    assert outcome.dropped == {"error": 2}
    assert len(rows) == outcome.rows_out == total - 2 == job.out.table().num_rows
    errors = list(job.out.rows(folder="errors"))
    assert {e["rid"] for e in errors} == {"distill-7:teacher:0:0", "distill-7:teacher:0.8:0"}
    assert all("length" in e["error"] for e in errors)
    assert seen[-1][0] == (total, total, "rows")


def test_rows_are_consistent(real):
    job, outcome, rows, _ = real
    pool = next(p for p in build_pools(job) if p.role == "student")
    tokenizer, eos = pool.tokenizer("tuned"), pool.eos("tuned")[0]
    reasons = set()
    for row in rows.values():
        assert row["text"] == decode(tokenizer, row["token_ids"])
        assert len(row["token_ids"]) == row["num_tokens"] and eos not in row["token_ids"]
        assert row["num_tokens"] == 8 if row["finish_reason"] == "length" else row["num_tokens"] < 8
        reasons.add(row["finish_reason"])
    assert reasons == {"stop", "length"}
    assert outcome.metrics["tokens"]["tuned"] == sum(r["num_tokens"] for r in rows.values() if r["policy"] == "tuned")


def test_adapter_is_verified_and_acts(real):
    _, outcome, rows, _ = real
    assert set(outcome.metrics["verified"]) == {"student", "tuned", "other"}
    for name in ("tuned", "other"):
        found = outcome.metrics["verified"][name]
        assert found["max"] < 1e-3 < found["effect"]
        assert found["base"] > 10 * found["max"]
    assert outcome.metrics["verified"]["student"]["max"] < 1e-3
    for one, another in (("tuned", "student"), ("tuned", "other")):
        differ = [
            rows[f"distill-{i}:{one}:0.8:0"]["token_ids"] != rows[f"distill-{i}:{another}:0.8:0"]["token_ids"]
            for i in range(20)
        ]
        assert any(differ), "the random numbers are the same: only the weights make the difference"


@pytest.mark.parametrize("name", ["student", "tuned", "teacher"])
def test_greedy_tokens_equal_transformers(real, name):
    """``student`` is the bare base, served by the engine that serves the adapters too."""
    job, _, rows, _ = real
    pool = next(p for p in build_pools(job) if name in p.policies)
    wanted = {f"distill-{i}" for i in range(8, 20)}
    prompts = [row for row in job.inputs["prompts"].rows() if row["prompt_id"] in wanted]
    ids = [encode_prompt(pool.tokenizer(name), row, pool.model) for row in prompts]
    drawn = sample(load_model(pool.policies[name]), ids, [0.0] * 12, [0] * 12, 8, pool.eos(name))
    for row, (tokens, _) in zip(prompts, drawn, strict=True):
        assert rows[f"{row['prompt_id']}:{name}:0:0"]["token_ids"] == [t for t in tokens if t not in pool.eos(name)]


def test_seeded_rows_do_not_depend_on_their_batch(real):
    """Some of the same requests in another execution, another order, another batch size: the same text."""
    job, _, rows, _ = real
    prompts = [
        row for row in job.inputs["prompts"].rows() if row["prompt_id"] in ("distill-30", "distill-3", "distill-90")
    ]
    spec = {**job.config["policies"]["tuned"], "draws": [draw(temperatures=TEMPERATURES)]}
    inputs = {
        "prompts": prompts_artifact(job.out.store, prompts[::-1], "prompts-few"),
        "tuned/0": job.inputs["tuned/0"],
    }
    few = make_job(
        job.out.store, {"tuned": spec}, inputs, {"student": {"batch_size": 4}, "verify_engine": False}, "few-0"
    )
    generate_run.run(few)
    again = {row["rid"]: row for row in few.out.rows()}
    assert len(again) == 6
    assert {rid: row["token_ids"] for rid, row in again.items()} == {rid: rows[rid]["token_ids"] for rid in again}


def cores() -> list[psutil.Process]:
    """vLLM's core processes that this one is an ancestor of."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if "EngineCore" in title_of(process)]


@pytest.mark.slow
@pytest.mark.chaos
def test_a_core_that_dies_without_its_actor_costs_no_row(store, tiny_llama, ray_session, monkeypatch):
    """On GPUs the core is a process of its own, which its actor outlives."""
    environment = vllm_engine.environment
    apart = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    monkeypatch.setattr(vllm_engine, "environment", lambda pool: environment(pool) | apart)
    inputs = {"prompts": prompts_artifact(store, prompt_rows(400))}
    pool = {"batch_size": 8, "engine_kwargs": {"max_num_seqs": 2}}
    job = make_job(store, {"teacher": policy(tiny_llama, "teacher", "vllm")}, inputs, {"teacher": pool}, max_tokens=24)
    killed = []

    def kill_once_it_answers() -> None:
        while not job.out.store.files(job.out.file(parts.FOLDER)):
            time.sleep(0.05)
        for core in cores():
            core.kill()
            killed.append(len(job.out.store.files(job.out.file(parts.FOLDER))))

    killer = threading.Thread(target=kill_once_it_answers)
    killer.start()
    outcome = generate_run.run(job)
    killer.join()
    assert killed and killed[0] < 50, "killed in the middle"
    rids = [row["rid"] for row in job.out.rows(["rid"])]
    assert outcome.rows_out == len(rids) == len(set(rids)) == 400 and outcome.dropped == {}
    assert psutil.wait_procs(cores(), timeout=20)[1] == []
