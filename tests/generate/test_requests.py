from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from plad_ray.artifacts import Artifact
from plad_ray.config import Generate
from plad_ray.errors import PladError
from plad_ray.generate import requests, tasks
from plad_ray.generate.pools import build_pools
from plad_ray.models.tokens import encode_prompt
from tests.generate.generate_jobs import draw, make_job, policy, prompt_rows, prompts_artifact


def built(store, tiny, policies, rows, **generate):
    job = make_job(store, policies, {"prompts": prompts_artifact(store, rows)}, **generate)
    found = []
    for pool in build_pools(job):
        draws = {name: policies[name]["draws"] for name in pool.policies}
        found += requests.encoded(requests.pool_requests(job.inputs["prompts"], pool, draws, job.config["seed"]), pool)
    return found


def test_one_request_per_policy_prompt_temperature_sample(store, tiny_llama):
    policies = {
        "teacher": policy(tiny_llama, "teacher", draws=[draw(temperatures=(0.7, 0.0), samples=2)]),
        "student": policy(tiny_llama, "student", draws=[draw(limit=3), draw("test", (0.7,))]),
    }
    rows = built(store, tiny_llama, policies, prompt_rows(5) + prompt_rows(2, "test"))
    assert len(rows) == 5 * 2 * 2 + 3 + 2
    assert len({r["rid"] for r in rows}) == len(rows)
    assert rows[0]["rid"] == "distill-0:teacher:0.7:0"
    assert rows[0]["seed"] == requests.request_seed(0, "teacher", "distill-0", 0.7, 0)
    assert all(0 <= r["seed"] < 2**31 for r in rows)
    by_role = {r["seed"] for r in rows if r["prompt_id"] == "distill-0" and r["temperature"] == 0.7 and not r["sample"]}
    assert len(by_role) == 2, "the roles draw different random numbers"


def test_seed_is_a_fixed_function():
    # sha256("plad-request/1|3|student|p1|0.7|2"), first 4 bytes, without the last bit
    import hashlib

    expected = int(hashlib.sha256(b"plad-request/1|3|student|p1|0.7|2").hexdigest()[:8], 16) // 2
    assert requests.request_seed(3, "student", "p1", 0.7, 2) == expected
    assert requests.request_seed(3, "student", "p1", 1.0, 2) != expected


def test_overlapping_draws_are_made_once(store, tiny_llama):
    policies = {"teacher": policy(tiny_llama, draws=[draw(limit=2), draw(temperatures=(0.7, 1.0))])}
    rows = built(store, tiny_llama, policies, prompt_rows(4))
    assert sorted(r["rid"] for r in rows) == sorted(
        f"distill-{i}:teacher:{t}:0" for i in range(4) for t in ("0.7", "1")
    )


def test_prompt_ids_are_those_of_the_trainer(store, tiny_llama):
    rows = prompt_rows(1)
    job = make_job(store, {"teacher": policy(tiny_llama)}, {"prompts": prompts_artifact(store, rows)})
    pool = build_pools(job)[0]
    (request,) = requests.encoded(requests.pool_requests(job.inputs["prompts"], pool, {"teacher": [draw()]}, 0), pool)
    assert request["prompt_token_ids"] == encode_prompt(pool.tokenizer("teacher"), rows[0], pool.model)


def test_too_long_prompt_fails_and_says_what_would_fit(store, tiny_llama):
    rows = prompt_rows(2)
    rows[1]["prompt"] = " ".join(["w1"] * 45)
    with pytest.raises(
        PladError, match=r"distill-1.*45 tokens.*max_tokens 8.*max_length 48.*max_prompt_tokens to at most 40"
    ):
        built(store, tiny_llama, {"teacher": policy(tiny_llama)}, rows)
    cut = built(store, tiny_llama, {"teacher": policy(tiny_llama, max_prompt_tokens=40)}, rows)
    assert len(cut[1]["prompt_token_ids"]) == 40


def test_only_prompts_that_somebody_is_asked_are_encoded(store, tiny_llama, monkeypatch):
    """The fourth is too long, and nobody is asked it; each of the others is encoded once for both policies."""
    rows = prompt_rows(4)
    rows[3]["prompt"] = " ".join(["w1"] * 45)
    encoded, encode = [], requests.encode_prompts
    monkeypatch.setattr(
        requests, "encode_prompts", lambda *given: encoded.extend(r["prompt_id"] for r in given[1]) or encode(*given)
    )
    draws = {"few": [draw(limit=1)], "many": [draw(limit=2), draw(temperatures=(0.0,), limit=3)]}
    made = built(store, tiny_llama, {name: policy(tiny_llama, draws=own) for name, own in draws.items()}, rows)
    assert [(r["policy"], r["prompt_id"], r["temperature"]) for r in made] == [
        ("few", "distill-0", 0.7),
        ("many", "distill-0", 0.7),
        ("many", "distill-0", 0.0),
        ("many", "distill-1", 0.7),
        ("many", "distill-1", 0.0),
        ("many", "distill-2", 0.0),
    ]
    assert encoded == ["distill-0", "distill-1", "distill-2"]


def test_policies_take_turns_of_prompts_and_each_prompt_is_encoded_once(store, tiny_llama, monkeypatch):
    monkeypatch.setattr(requests, "TURN_PROMPTS", 3)
    monkeypatch.setattr(requests, "BATCH_ROWS", 2)
    encoded, encode = [], requests.encode_prompts
    monkeypatch.setattr(
        requests, "encode_prompts", lambda *given: encoded.extend(r["prompt_id"] for r in given[1]) or encode(*given)
    )
    policies = {name: policy(tiny_llama, draws=[draw(samples=2)]) for name in ("a", "b")}
    made = built(store, tiny_llama, policies, prompt_rows(7))
    turns = [(name, range(first, min(first + 3, 7))) for first in (0, 3, 6) for name in ("a", "b")]
    assert [(r["policy"], r["prompt_id"], r["sample"]) for r in made] == [
        (name, f"distill-{i}", sample) for name, turn in turns for i in turn for sample in (0, 1)
    ]
    assert encoded == [f"distill-{i}" for i in range(7)]
    alone = built(store, tiny_llama, {"a": policies["a"]}, prompt_rows(7))
    columns = {r["prompt_id"]: r["prompt_token_ids"] for r in alone}
    assert all(r["prompt_token_ids"] == columns[r["prompt_id"]] for r in made)


def test_empty_split_and_repeated_prompt(store, tiny_llama):
    with pytest.raises(PladError, match=r"split dev .* no prompts"):
        requests.split_sizes(prompts_artifact(store, prompt_rows(2)), [draw("dev")])
    with pytest.raises(PladError, match="'distill-0' is there twice"):
        requests.split_sizes(prompts_artifact(store, prompt_rows(2) + prompt_rows(1), "twice"), [draw()])


def test_requests_are_counted_before_they_are_made(store, tiny_llama):
    rows = prompt_rows(5) + prompt_rows(3, "test")
    draws = {
        "a": [draw(limit=2), draw(temperatures=(0.7, 1), samples=2, limit=3), draw("test", limit=9)],  # 3 · 4 + 3
        "b": [draw(temperatures=(0.0, 0.0)), draw(limit=0)],  # 5
    }
    sizes = requests.split_sizes(prompts_artifact(store, rows), [one for own in draws.values() for one in own])
    assert sizes == {"distill": 5, "test": 3}
    assert requests.count_requests(draws, sizes) == 3 * 4 + 3 + 5
    policies = {name: policy(tiny_llama, draws=own) for name, own in draws.items()}
    assert len(built(store, tiny_llama, policies, rows)) == 20


def test_files_are_streamed_in_blocks(store, monkeypatch):
    monkeypatch.setattr(requests, "BLOCKS_PER_FILE", 2)
    monkeypatch.setattr(tasks, "BLOCKS_PER_FILE", 2)
    out, files_then = Artifact(store, "out"), {}

    def rows():
        for i in range(11):
            files_then[i] = len(store.files("out/work"))
            yield {"rid": str(i), "policy": "p", "prompt_id": "x", "split": "s", "verify": i == 4}

    assert list(requests.write(rows(), out, "work", rows_per_block=3)) == [6, 5]
    assert files_then[10] == 1, "a file was there before the last row was made"
    blocks = [tasks.read_requests(pa.table({"id": [i]}), out, "work") for i in range(4)]
    assert [b.column("rid").to_pylist() for b in blocks] == [list("012"), list("345"), list("678"), ["9", "10"]]
    assert [i for i, verify in enumerate(pa.concat_tables(blocks).column("verify").to_pylist()) if verify] == [4]


def test_a_block_waits_for_its_file_as_long_as_somebody_writes(store):
    out, block = Artifact(store, "out"), pa.table({"id": [0]})
    with pytest.raises(FileNotFoundError):
        tasks.read_requests(block, out, "work/teacher-0")
    store.write_bytes(out.file(tasks.being_written("work/teacher-0")), b"")
    with ThreadPoolExecutor() as threads:
        read = threads.submit(tasks.read_requests, block, out, "work/teacher-0")
        with pytest.raises(TimeoutError):
            read.result(timeout=0.5)
        assert list(requests.write([{"rid": "r"}], out, "work/teacher-0", 8)) == [1]
        assert read.result(timeout=10).column("rid").to_pylist() == ["r"]
        lost = threads.submit(tasks.read_requests, pa.table({"id": [64]}), out, "work/teacher-0")
        store.delete(out.file("work"))  # as somebody does who takes the stage over
        with pytest.raises(FileNotFoundError):
            lost.result(timeout=10)


def test_verification_marks_the_first_of_each_policy():
    rows = [{"policy": p, "verify": False} for p in "abab" * 3]
    marked = list(requests.mark_verified(rows, ["b"], 2))
    assert [i for i, r in enumerate(marked) if r["verify"]] == [1, 3]


def test_policies_on_one_base_share_a_pool(store, tiny_llama):
    policies = {n: policy(tiny_llama, role) for n, role in (("a", "student"), ("b", "student"), ("teacher", "teacher"))}
    pools = build_pools(make_job(store, policies, {}))
    assert [sorted(p.policies) for p in pools] == [["a", "b"], ["teacher"]]
    assert pools[0].generate == Generate(max_tokens=8)
