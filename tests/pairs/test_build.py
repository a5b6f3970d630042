"""Pairs: who is joined with whom, what is dropped and why, what datasets and TRL read."""

import logging

import numpy as np
import pytest

from plad_ray.config import Pairs
from plad_ray.errors import PladError
from plad_ray.pairs import build, stats
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact, score, scores_artifact

PLAIN = {"pairs": Pairs().model_dump(mode="json"), "chat": False, "seed": 0}


def config(**changes):
    return {**PLAIN, "pairs": Pairs.model_validate({**Pairs().model_dump(), **changes}).model_dump(mode="json")}


def texts(root, sides, prompts=None, scores=None):
    """Inputs from ``{prompt_id: (teacher text, student text)}``; None leaves a side out."""
    rows = [
        response(policy, prompt_id, text)
        for prompt_id, pair in sides.items()
        for policy, text in zip(("teacher", "student"), pair, strict=True)
        if text is not None
    ]
    inputs = {
        "prompts": prompts_artifact(root, prompts or [prompt(p) for p in sides]),
        "responses": responses_artifact(root, rows[::-1]),  # the order of responses must not matter
    }
    if scores:
        inputs["scores"] = scores_artifact(root, [score(r, scores[r["rid"]]) for r in rows if r["rid"] in scores])
    return inputs


def test_rows_follow_the_prompt_table_and_take_the_picked_side_only(tmp_path) -> None:
    ids = [f"p{i}" for i in (3, 1, 2, 0)]
    rows = [prompt(i) for i in ids] + [prompt("dev", split="dev")]
    inputs = texts(tmp_path, {i: (f"good {i}", f"bad {i}") for i in ids}, rows)
    extra = [response("teacher", i, "other", temperature=0.0) for i in ids]
    extra += [response("student", i, "other", sample=1) for i in ids]
    extra += [response("teacher", "dev", "x", split="dev")]
    every = inputs["responses"].table().to_pylist() + extra
    inputs["responses"] = responses_artifact(tmp_path, every, "responses-1")
    run = job(tmp_path, "pairs", PLAIN, inputs)
    outcome = build.run(run)
    made = run.out.table().to_pylist()
    assert (outcome.rows_in, outcome.rows_out, outcome.dropped) == (4, 4, {})
    assert [(r["prompt_id"], r["prompt"], r["chosen"], r["rejected"]) for r in made] == [
        (i, f"prompt {i}", f"good {i}", f"bad {i}") for i in ids
    ]
    assert made[0]["chosen_rid"] == "teacher:p3:0.7:0" and made[0]["order"] == "pseudo" and made[0]["score_gap"] is None


def test_every_drop_has_its_reason(tmp_path) -> None:
    sides = {
        "ok": ("good", "bad"),
        "same": ("a b", " a b "),
        "empty+": ("  ", "bad"),
        "empty-": ("good", ""),
        "lost+": (None, "bad"),
        "lost-": ("good", None),
        "lost": (None, None),
        "ok2": ("better", "worse"),
        "ok3": ("better", "worse"),
    }
    inputs = texts(tmp_path, sides, [prompt(p) for p in [*sides, "long"]])
    rows = inputs["responses"].table().to_pylist()
    rows += [response("teacher", "long", "cut off", finish_reason="length"), response("student", "long", "bad")]
    inputs["responses"] = responses_artifact(tmp_path, rows, "responses-1")
    outcome = build.run(job(tmp_path, "pairs", config(limit=2), inputs))
    assert outcome.dropped == {
        "identical": 1,
        "empty_chosen": 1,
        "empty_rejected": 1,
        "missing_chosen": 2,
        "missing_rejected": 1,
        "truncated_chosen": 1,
        "over_limit": 1,
    }
    assert outcome.rows_in == 10 == outcome.rows_out + sum(outcome.dropped.values())
    kept = build.run(job(tmp_path, "pairs", config(drop_truncated_chosen=False), inputs))
    assert kept.rows_out == 4 and "truncated_chosen" not in kept.dropped


def test_limit_is_a_nested_prefix(tmp_path) -> None:
    inputs = texts(tmp_path, {f"p{i}": ("same" if i % 3 == 0 else f"good {i}", "same") for i in range(12)})
    made = []
    for limit in (2, 5, None):
        run = job(tmp_path, "pairs", config(limit=limit), inputs)
        build.run(run)
        made.append(run.out.table(["prompt_id"])["prompt_id"].to_pylist())
    assert made[0] == ["p1", "p2"] and made[1] == made[2][:5] and len(made[2]) == 8


def test_scores_gap_and_the_teachers_win_rate_by_hand(tmp_path) -> None:
    sides = {"a": ("x", "y"), "b": ("x", "y"), "c": ("same", "same"), "d": ("x", "y")}
    values = {"a": (0.9, 0.5), "b": (0.2, 0.6), "c": (0.4, 0.4), "d": (0.5, 0.25)}
    scores = {f"{w}:{p}:0.7:0": v[k] for p, v in values.items() for k, w in enumerate(("teacher", "student"))}
    run = job(tmp_path, "pairs", PLAIN, texts(tmp_path, sides, scores=scores))
    metrics = build.run(run).metrics
    gaps = run.out.table(["score_gap"])["score_gap"].to_pylist()
    assert gaps == pytest.approx([0.4, -0.4, 0.25])
    assert metrics["chosen_wins"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)  # the identical pair is a tie
    assert metrics["ties"] == 0.25 and metrics["wrong_order"] == pytest.approx(1 / 3)
    assert metrics["identical_share"] == 0.25 and metrics["warnings"] == []
    assert metrics["score_gap"]["mean"] == pytest.approx(0.25 / 3)
    assert sum(metrics["score_gap"]["histogram"]["counts"]) == 3


def test_a_losing_teacher_is_a_warning(tmp_path, caplog) -> None:
    scores = {"teacher:a:0.7:0": 0.1, "student:a:0.7:0": 0.9}
    with caplog.at_level(logging.INFO, logger="plad_ray"):
        build.run(job(tmp_path, "pairs", PLAIN, texts(tmp_path, {"a": ("x", "y")}, scores=scores)))
    assert caplog.records[-1].levelname == "WARNING" and "the teacher wins only 0.0%" in caplog.text


def test_no_pair_left_says_why(tmp_path) -> None:
    same = {"policy": "student", "temperature": 0.7}
    inputs = texts(tmp_path, {"a": ("x", "x"), "b": ("y", "y")})
    with pytest.raises(PladError, match=r"none of the 2 prompts .* identical: 2.*raise pairs.rejected.temperature"):
        build.run(job(tmp_path, "pairs", config(rejected=same), inputs))


def test_two_responses_a_prompt_are_refused(tmp_path) -> None:
    inputs = texts(tmp_path, {"a": ("x", "y")})
    inputs["responses"] = responses_artifact(tmp_path, inputs["responses"].table().to_pylist() * 2, "responses-1")
    with pytest.raises(PladError, match=r"2 responses of teacher at temperature 0\.7 for 1 prompts"):
        build.run(job(tmp_path, "pairs", PLAIN, inputs))


def test_the_students_own_greedy_text_can_be_chosen(tmp_path) -> None:
    rows = [response("student", "a", "greedy", temperature=0.0), response("student", "a", "sampled", temperature=1.0)]
    inputs = {"prompts": prompts_artifact(tmp_path, [prompt("a")]), "responses": responses_artifact(tmp_path, rows)}
    picks = {"chosen": {"policy": "student", "temperature": 0}, "rejected": {"policy": "student", "temperature": 1}}
    run = job(tmp_path, "pairs", config(**picks), inputs)
    assert "student greedy preferred over student at temperature 1" in stats.render(build.run(run).metrics)
    assert run.out.table(["chosen", "rejected"]).to_pylist() == [{"chosen": "greedy", "rejected": "sampled"}]


def test_imported_teacher_text_is_taken_whatever_its_temperature(tmp_path) -> None:
    inputs = texts(tmp_path, {"a": (None, "bad")})
    inputs["imported"] = responses_artifact(
        tmp_path, [response("teacher", "a", "theirs", temperature=0.0)], "imported-0"
    )
    run = job(tmp_path, "pairs", PLAIN, inputs)
    build.run(run)
    assert run.out.table(["chosen"])["chosen"].to_pylist() == ["theirs"]


def test_datasets_reads_plain_and_conversational_pairs(tmp_path) -> None:
    import datasets

    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "so?"},
    ]
    prompts = [prompt("a", messages=turns), prompt("b")]
    inputs = texts(tmp_path, {"a": ("x", "y"), "b": ("x", "y")}, prompts)
    plain, chat = (job(tmp_path / str(c), "pairs", {**PLAIN, "chat": c}, inputs) for c in (False, True))
    for run in (plain, chat):
        build.run(run)
    read = [
        datasets.load_dataset("parquet", data_files=f"{run.out.path}/rows/*.parquet", split="train", cache_dir=tmp_path)
        for run in (plain, chat)
    ]
    assert read[0][0]["prompt"] == "prompt a" and read[0][0]["chosen"] == "x"
    assert read[1][0]["prompt"] == turns
    assert read[1][1]["prompt"] == [{"role": "user", "content": "prompt b"}]
    assert read[1][0]["chosen"] == [{"role": "assistant", "content": "x"}]
    assert "margin" not in read[0].column_names and "model" not in read[0].column_names


def test_histogram_counts_everything_once() -> None:
    whole = stats.histogram(np.array([-2.0, -2, 0, 3]))
    assert sum(whole["counts"]) == 4 and whole["counts"][0] == 2 and whole["edges"][0] == -2.5
    wide = stats.histogram(np.arange(-21.0, 32))  # 53 whole numbers: bins of 3, one of them around 0
    assert set(wide["counts"][1:-1]) == {3} and -1.5 in wide["edges"] and sum(wide["counts"]) == 53
    assert sum(stats.histogram(np.array([0.5]))["counts"]) == 1
    assert stats.histogram(np.array([])) is None


def test_the_reward_orders_a_nested_share_of_the_pairs(tmp_path) -> None:
    """Which prompts are ordered grows with the share and never changes back; the worse text of such a pair is rejected."""
    ids = [f"p{i}" for i in range(200)]
    scores = {
        f"{who}:{p}:0.7:0": float(i % 3 == k) for i, p in enumerate(ids) for k, who in enumerate(("student", "teacher"))
    }
    inputs = texts(tmp_path, {p: (f"good {p}", f"bad {p}") for p in ids}, scores=scores)
    ordered = {}
    for share in (0.0, 0.25, 0.5, 1.0):
        run = job(tmp_path, f"pairs-{share}", config(reward_share=share), inputs)
        metrics = build.run(run).metrics
        rows = run.out.table().to_pylist()
        ordered[share] = {r["prompt_id"] for r in rows if r["order"] == "reward"}
        assert metrics["by_reward"] == len(ordered[share]) and {r["order"] for r in rows} <= {"pseudo", "reward"}
        assert metrics["chosen_wins"] == pytest.approx((67 + 0.5 * 66) / 200), "said of the teacher, before any swap"
        swapped = 0
        for i, row in enumerate(rows):
            wrong = i % 3 == 0  # the student's text has the higher score
            swap = wrong and row["prompt_id"] in ordered[share]
            swapped += swap
            assert row["chosen"] == f"{'bad' if swap else 'good'} {row['prompt_id']}"
            assert row["chosen_rid"] == f"{'student' if swap else 'teacher'}:{row['prompt_id']}:0.7:0"
            assert row["score_gap"] == (1.0 if swap else -1.0 if wrong else float(i % 3 == 1))
        assert metrics["swapped"] == swapped
    assert ordered[0.0] == set() and ordered[1.0] == set(ids)
    assert ordered[0.25] < ordered[0.5] and 30 < len(ordered[0.25]) < 70 < len(ordered[0.5]) < 130
    other = build.reorder(build.join(inputs, Pairs()), 0.5, seed=1)
    drawn = {r["prompt_id"] for r in other.to_pylist() if r["order"] == "reward"}
    assert drawn != ordered[0.5], "another seed draws other prompts"


def test_a_text_that_becomes_chosen_must_be_whole(tmp_path) -> None:
    cut = response("student", "a", "better but cut", finish_reason="length")
    rows = [response("teacher", "a", "fine"), cut, response("teacher", "b", "x"), response("student", "b", "y")]
    inputs = {"prompts": prompts_artifact(tmp_path, [prompt("a"), prompt("b")])}
    inputs["responses"] = responses_artifact(tmp_path, rows)
    values = zip(rows, (0.1, 0.9, 0.2, 0.2), strict=True)
    inputs["scores"] = scores_artifact(tmp_path, [score(row, value) for row, value in values])
    outcome = build.run(job(tmp_path, "pairs", config(reward_share=1.0), inputs))
    assert outcome.dropped == {"truncated_chosen": 1} and outcome.rows_out == 1
    assert build.run(job(tmp_path, "pairs", PLAIN, inputs)).dropped == {}


def test_reward_order_without_scores_is_refused(tmp_path) -> None:
    inputs = texts(tmp_path, {"a": ("x", "y")})
    with pytest.raises(PladError, match=r"reward_share 1: the pair of prompt a has no scores.*scorer\.name"):
        build.run(job(tmp_path, "pairs", config(reward_share=1.0), inputs))


def test_a_later_round_takes_the_students_newer_texts_and_their_scores(tmp_path) -> None:
    old = [response("teacher", "a", "good"), response("student", "a", "old")]
    new = [response("student", "a", "new")]
    inputs = {
        "prompts": prompts_artifact(tmp_path, [prompt("a")]),
        "responses": responses_artifact(tmp_path, old),
        "scores": scores_artifact(tmp_path, [score(old[0], 0.9), score(old[1], 0.1)]),
        "responses/student": responses_artifact(tmp_path, new, "responses-1"),
        "scores/student": scores_artifact(tmp_path, [score(new[0], 0.5)], "scores-1"),
    }
    run = job(tmp_path, "pairs", PLAIN, inputs)
    build.run(run)
    (row,) = run.out.table().to_pylist()
    assert (row["chosen"], row["rejected"], row["chosen_score"], row["rejected_score"]) == ("good", "new", 0.9, 0.5)
