"""Lists: which texts are a prompt's candidates, which prompts have none, and what the summary says."""

import logging

import pytest

from plad_ray.config import Pairs
from plad_ray.errors import PladError
from plad_ray.pairs import lists, stats
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact, score, scores_artifact


def config(chat=False, **changes):
    return {"pairs": Pairs.model_validate(changes).model_dump(mode="json"), "chat": chat, "seed": 0}


def inputs_of(root, rows, prompts=None, scores=None):
    """Inputs from responses, and scores by rid (those without: 0); no scores artifact for None."""
    ids = list(dict.fromkeys(row["prompt_id"] for row in rows))
    inputs = {"prompts": prompts_artifact(root, prompts or [prompt(i) for i in ids])}
    inputs["responses"] = responses_artifact(root, rows[::-1])  # the order of responses must not matter
    if scores is not None:
        inputs["scores"] = scores_artifact(root, [score(row, scores.get(row["rid"], 0.0)) for row in rows])
    return inputs


def test_every_drawn_text_in_a_fixed_order_with_its_score(tmp_path) -> None:
    rows = [
        response(who, "a", f"{who} {t} {s}", t, sample=s)
        for who in ("student", "teacher")
        for t in (1.0, 0.7)
        for s in (0, 1)
    ]
    rows += [response("student", "dev", text, 0.7, split="dev", sample=s) for s, text in enumerate("xy")]
    scores = {row["rid"]: float(i) for i, row in enumerate(rows)}
    inputs = inputs_of(tmp_path, rows, [prompt("a"), prompt("dev", split="dev")], scores)
    run = job(tmp_path, "lists", config(), inputs)
    outcome = lists.run(run)
    (made,) = run.out.table().to_pylist()
    assert made["candidates"] == [
        f"{who} {t} {s}" for who in ("teacher", "student") for t in (0.7, 1.0) for s in (0, 1)
    ]
    assert made["rids"][0] == "teacher:a:0.7:0" and made["scores"] == [scores[rid] for rid in made["rids"]]
    assert made["prompt"] == "prompt a" and made["prompt_id"] == "a" and set(made["finish_reasons"]) == {"stop"}
    assert (outcome.rows_in, outcome.rows_out, outcome.dropped) == (1, 1, {})
    assert outcome.metrics["by_policy"] == {"teacher": 4, "student": 4} and outcome.metrics["best"] == {"teacher": 1.0}


def test_texts_and_prompts_are_left_out_by_reason(tmp_path) -> None:
    rows = [
        *(response("student", "ok", text, sample=s) for s, text in enumerate(["one", " one ", "two", " "])),
        response("teacher", "ok", "two"),
        *(response("student", "same", "one", sample=s) for s in range(3)),
        *(response("student", "blank", " ", sample=s) for s in range(2)),
        *(response("student", "more", text, sample=s) for s, text in enumerate("xyz")),
        *(response("student", "last", text, sample=s) for s, text in enumerate("xy")),
    ]
    ids = ["ok", "same", "absent", "blank", "more", "last"]
    run = job(tmp_path, "lists", config(limit=2), inputs_of(tmp_path, rows, [prompt(i) for i in ids]))
    outcome = lists.run(run)
    assert outcome.dropped == {"fewer_than_two": 1, "no_text": 1, "none_usable": 1, "over_limit": 1}
    assert outcome.rows_in == 6 == outcome.rows_out + sum(outcome.dropped.values())
    made = run.out.table().to_pylist()
    assert [r["candidates"] for r in made] == [["two", "one"], ["x", "y", "z"]]
    assert made[0]["rids"] == ["teacher:ok:0.7:0", "student:ok:0.7:0"], "the first of equal texts stays"
    assert outcome.metrics["left_out"] == {"duplicate": 2 + 2, "empty": 1 + 2}
    assert made[0]["scores"] == [None, None] and "best" not in outcome.metrics


def test_no_truncated_text_is_the_best_of_its_list(tmp_path) -> None:
    rows = [
        response("student", "a", "cut high", sample=0, finish_reason="length"),
        response("student", "a", "cut low", sample=1, finish_reason="length"),
        response("student", "a", "whole", sample=2),
        *(response("student", "b", f"cut {s}", sample=s, finish_reason="length") for s in range(2)),
    ]
    scores = {"student:a:0.7:0": 0.9, "student:a:0.7:1": 0.2, "student:a:0.7:2": 0.5}
    inputs = inputs_of(tmp_path, rows, scores=scores)
    run = job(tmp_path, "lists", config(), inputs)
    outcome = lists.run(run)
    assert [r["candidates"] for r in run.out.table().to_pylist()] == [["cut low", "whole"]]
    assert outcome.metrics["left_out"] == {"truncated_best": 3} and outcome.dropped == {"none_usable": 1}
    assert lists.run(job(tmp_path, "lists", config(drop_truncated_chosen=False), inputs)).rows_out == 2


def test_picks_restrict_the_candidates_and_imported_text_has_no_temperature(tmp_path) -> None:
    rows = [response("student", "a", f"s{t}{s}", t, sample=s) for t in (0.0, 0.7) for s in (0, 1)]
    inputs = inputs_of(tmp_path, rows)
    theirs = [response("teacher", "a", f"t{s}", 0.3, sample=s) for s in (0, 1)]
    inputs["imported"] = responses_artifact(tmp_path, theirs, "imported-0")
    picks = [{"policy": "student", "temperature": 0.7, "sample": 1}, {"policy": "teacher", "temperature": 0.7}]
    run = job(tmp_path, "lists", config(lists=picks), inputs)
    lists.run(run)
    assert run.out.table().to_pylist()[0]["candidates"] == ["t0", "s0.71"]
    every = job(tmp_path, "all", config(), inputs)
    lists.run(every)
    assert every.out.table().to_pylist()[0]["candidates"] == ["t0", "t1", "s0.00", "s0.01", "s0.70", "s0.71"]


def test_chat_lists_hold_messages(tmp_path) -> None:
    turns = [{"role": "user", "content": "hi"}]
    rows = [response("student", p, text, sample=s) for p in "ab" for s, text in enumerate("xy")]
    run = job(
        tmp_path, "lists", config(chat=True), inputs_of(tmp_path, rows, [prompt("a", messages=turns), prompt("b")])
    )
    lists.run(run)
    made = run.out.table().to_pylist()
    assert made[0]["prompt"] == turns and made[1]["prompt"][0]["content"] == "prompt b"
    assert made[0]["candidates"] == [[{"role": "assistant", "content": text}] for text in "xy"]


def test_the_summary_is_told_with_warnings(tmp_path, caplog) -> None:
    rows = [response("student", p, text, sample=s) for p in "abc" for s, text in enumerate("xy")]
    scores = {"student:c:0.7:1": 2.0}
    with caplog.at_level(logging.INFO, logger="plad_ray"):
        metrics = lists.run(job(tmp_path, "lists", config(), inputs_of(tmp_path, rows, scores=scores))).metrics
    assert metrics["equal_scores"] == pytest.approx(2 / 3) and metrics["score_spread"]["mean"] == pytest.approx(2 / 3)
    said = stats.render(metrics)
    assert "3 lists from 3 prompts: 6 texts (student 6)" in said
    assert "WARNING: in 66.7% of the lists every text has the same score" in said
    assert said in caplog.text and caplog.records[-1].levelname == "WARNING"


def test_no_list_left_says_why(tmp_path) -> None:
    rows = [response("student", "a", "same", sample=s) for s in range(3)]
    with pytest.raises(PladError, match=r"none of the 1 prompts.*fewer_than_two.*duplicate': 2.*draw\.samples"):
        lists.run(job(tmp_path, "lists", config(), inputs_of(tmp_path, rows)))
