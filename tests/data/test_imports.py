"""Existing teacher responses and finished pairs as artifacts."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plad_ray.data import imports
from plad_ray.errors import PladError
from plad_ray.records import RESPONSE, pair_schema


@pytest.fixture
def prompts(prepared, jsonl):
    rows = [{"prompt": f"question {i}", "reference": "r", "id": f"q{i}"} for i in range(20)]
    paths = {
        "distill": jsonl(rows[:4], "distill.jsonl"),
        "dev": jsonl(rows[4:6], "dev.jsonl"),
        "test": jsonl(rows[6:8], "test.jsonl"),
    }
    return prepared(source="files", splits_paths=paths, columns={"prompt_id": "id"})


def test_responses_by_id_and_by_text(imported, prompts, jsonl) -> None:
    rows = [
        {"prompt_id": "q0", "response": "a"},
        {"prompt_id": "q0", "response": "b", "temperature": 0.7, "finish_reason": "length"},
        {"prompt": " question 1\n", "response": [{"role": "assistant", "content": "c"}]},
        {"prompt_id": "q6", "response": "d"},
        {"prompt_id": "nobody", "response": "e"},
    ]
    done = imported("run_responses", jsonl(rows, "r.jsonl"), prompts)
    assert done.dataset().schema.equals(RESPONSE)
    keys = ("prompt_id", "split", "text", "temperature", "sample", "finish_reason")
    assert [tuple(row[key] for key in keys) for row in done.rows()] == [
        ("q0", "distill", "a", 0.0, 0, "stop"),
        ("q0", "distill", "b", 0.7, 1, "length"),
        ("q1", "distill", "c", 0.0, 0, "stop"),
        ("q6", "test", "d", 0.0, 0, "stop"),
    ]
    assert {row["policy"] for row in done.rows()} == {"teacher"}
    assert len({row["rid"] for row in done.rows()}) == 4
    # five rows of the file, and q2 and q3 of distill that nothing answers
    assert done.manifest["rows"] == {"in": 7, "out": 4, "dropped": {"no_such_prompt": 1, "no_response": 2}}


def test_responses_from_parquet(imported, prompts, tmp_path) -> None:
    pq.write_table(pa.table({"prompt_id": ["q0", "q1"], "response": ["a", "b"]}), tmp_path / "r.parquet")
    done = imported("run_responses", str(tmp_path / "r.parquet"), prompts)
    assert [row["text"] for row in done.rows()] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"response": "a"},
            "r.jsonl line 1: no column prompt_id or prompt to match it by; columns there are: response",
        ),
        ({"prompt_id": "q0", "text": "a"}, r"line 1: no column 'response' \(data.responses\).*are: prompt_id, text"),
        ({"prompt_id": "q0", "response": 3}, "column 'response': expected text or one assistant message, found 3"),
        ({"prompt_id": "q0", "response": "a", "temperature": "hot"}, "column 'temperature': expected a number"),
        ({"prompt_id": "q0", "response": "a", "sample": 0.5}, "column 'sample': expected 0, 1, 2, …, found 0.5"),
        ({"prompt_id": "q0", "response": "a", "finish_reason": "eos"}, "'finish_reason': expected stop or length"),
        ({"prompt_id": "nobody", "response": "a"}, "no row of .*r.jsonl belongs to a prompt of this experiment"),
    ],
)
def test_bad_responses(imported, prompts, jsonl, row, message) -> None:
    with pytest.raises(PladError, match=message):
        imported("run_responses", jsonl([row], "r.jsonl"), prompts)


def test_the_same_sample_twice(imported, prompts, jsonl) -> None:
    rows = [{"prompt_id": "q0", "response": "a", "sample": 1}] * 2
    with pytest.raises(PladError, match=r"line 2: the same prompt, temperature and sample as .*line 1"):
        imported("run_responses", jsonl(rows, "r.jsonl"), prompts)


def test_pairs_of_text(imported, prompts, jsonl) -> None:
    rows = [
        {"prompt": "question 0", "chosen": "good", "rejected": "bad", "chosen_score": 2, "rejected_score": 0.5},
        {"prompt": "elsewhere", "chosen": "x", "rejected": "y", "order": "reward", "rejected_finish_reason": "length"},
        {"prompt": "question 1", "chosen": "same ", "rejected": "same"},
        {"prompt": "question 2", "chosen": "", "rejected": "bad"},
        {"prompt": "question 3", "chosen": "cut", "rejected": "bad", "chosen_finish_reason": "length"},
        {"prompt": "question 4", "chosen": "x", "rejected": "y"},
        {"prompt": "reworded", "prompt_id": "q6", "chosen": "x", "rejected": "y"},
        {"prompt": "question 7", "prompt_id": "mine", "chosen": "x", "rejected": "y"},
    ]
    done = imported("run_pairs", jsonl(rows, "p.jsonl"), prompts)
    assert done.dataset().schema.equals(pair_schema(chat=False))
    first, second = done.rows()
    assert (first["prompt_id"], first["chosen"], first["rejected"]) == ("q0", "good", "bad")
    assert (first["chosen_score"], first["score_gap"], first["order"]) == (2.0, 1.5, "pseudo")
    assert (second["prompt"], second["order"], second["chosen_score"]) == ("elsewhere", "reward", None)
    assert (second["chosen_finish_reason"], second["rejected_finish_reason"]) == ("stop", "length")
    assert done.manifest["rows"] == {
        "in": 8,
        "out": 2,
        "dropped": {"identical": 1, "empty_chosen": 1, "truncated_chosen": 1, "in_dev": 1, "in_test": 2},
    }
    assert done.manifest["metrics"]["chosen"] == "imported chosen"


def test_what_is_imported_table_by_table_is_what_is_imported_whole(imported, prompts, jsonl, monkeypatch) -> None:
    made = {
        "run_responses": jsonl([{"prompt_id": f"q{i % 4}", "response": f"text {i}"} for i in range(10)], "r.jsonl"),
        "run_pairs": jsonl([{"prompt": f"{i}", "chosen": "a", "rejected": "ab"[i % 3 :][:1]} for i in range(10)]),
    }
    whole = [imported(kind, path, prompts) for kind, path in made.items()]
    monkeypatch.setattr(imports, "ROWS", 5)
    for one, (kind, path) in zip(whole, made.items(), strict=True):
        other = imported(kind, path, prompts)
        assert other.table().equals(one.table()) and len(other.store.files(other.file("rows"))) == 2
        assert [other.manifest[key] for key in ("rows", "metrics")] == [
            one.manifest[key] for key in ("rows", "metrics")
        ]


def chat(text: str, role: str = "assistant") -> list[dict]:
    return [{"role": role, "content": text}]


def test_pairs_of_messages(imported, prompts, jsonl) -> None:
    rows = [{"prompt": chat("hi", "user"), "chosen": chat("good"), "rejected": chat("bad")}]
    done = imported("run_pairs", jsonl(rows, "p.jsonl"), prompts)
    assert done.dataset().schema.equals(pair_schema(chat=True))
    (row,) = done.rows()
    assert (row["prompt"], row["chosen"], row["rejected"]) == (chat("hi", "user"), chat("good"), chat("bad"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "a", "rejected": "b"}], "p.jsonl line 1: no column 'prompt'.*needs prompt, chosen, rejected"),
        ([{"prompt": "a", "chosen": "b"}], "line 1: no column 'rejected'"),
        (
            [{"prompt": "a", "chosen": chat("b"), "rejected": "c"}],
            "prompt and chosen must be both text or both messages",
        ),
        (
            [
                {"prompt": "a", "chosen": "b", "rejected": "c"},
                {"prompt": chat("a", "user"), "chosen": chat("b"), "rejected": chat("c")},
            ],
            "line 2: text and messages are mixed",
        ),
        (
            [{"prompt": "a", "chosen": "b", "rejected": "b"}],
            "no pair of .*p.jsonl can be used; dropped: {'identical': 1}",
        ),
        ([{"prompt": "question 7", "chosen": "b", "rejected": "c"}], "can be used; dropped: {'in_test': 1}"),
    ],
)
def test_bad_pairs(imported, prompts, jsonl, rows, message) -> None:
    with pytest.raises(PladError, match=message):
        imported("run_pairs", jsonl(rows, "p.jsonl"), prompts)
