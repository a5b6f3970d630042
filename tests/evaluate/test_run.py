"""The evaluation stage on made-up scores: every number by hand, verdicts, pooling over seeds."""

import json

import numpy as np
import pytest

from plad_ray.config import Evaluate
from plad_ray.errors import PladError
from plad_ray.evaluate import pool, run, select
from plad_ray.evaluate.rouge import rouge_columns
from plad_ray.evaluate.table import verdict
from plad_ray.evaluate.texts import count_words
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact, score, scores_artifact

ARMS = {"distilled": "distilled", "seqkd": "seqkd"}


def world(root, values, prompts=None, temperatures=(0.7, 0.0), scorer=True, **evaluate):
    """A job from ``{policy: [score of each prompt]}``, the same at each temperature; ``reference``: of references."""
    n = len(next(iter(values.values())))
    prompts = prompts or [prompt(f"p{i}", "test", "the red shoes") for i in range(n)]
    made = {"responses": [], "eval_responses": []}
    scores = {"responses": [], "eval_responses": []}
    for policy, row in values.items():
        if policy == "reference":
            scores["responses"] += [score(p, v) for p, v in zip(prompts, row, strict=True) if p["reference"]]
            continue
        where = "eval_responses" if policy in ARMS else "responses"
        for temperature in temperatures:
            for p, value in zip(prompts, row, strict=True):
                if value is None:
                    continue
                made[where].append(response(policy, p["prompt_id"], "red shoes", temperature, split="test"))
                scores[where].append(score(made[where][-1], value))
    inputs = {
        "prompts": prompts_artifact(root, prompts),
        "responses": responses_artifact(root, made["responses"]),
        "eval_responses": responses_artifact(root, made["eval_responses"], "eval-responses-0"),
    }
    if scorer:
        inputs["scores"] = scores_artifact(root, scores["responses"])
        inputs["eval_scores"] = scores_artifact(root, scores["eval_responses"], "eval-scores-0")
    arms = {name: name for name in values if name in ARMS}
    config = {"evaluate": Evaluate(temperatures=temperatures, **evaluate).model_dump(mode="json")}
    return job(root, "evaluate", {**config, "arms": arms, "scorer": scorer, "seed": 0}, inputs)


def row_of(metrics, policy, temperature=0.7):
    return next(r for r in metrics["table"] if (r["policy"], r["temperature"]) == (policy, temperature))


def test_win_rates_ties_and_lift_by_hand(tmp_path) -> None:
    made = world(
        tmp_path,
        {
            "reference": [0.5, 0.5, 0.5, 0.5],
            "teacher": [0.9, 0.9, 0.5, 0.1],
            "student": [0.9, 0.1, 0.1, 0.1],
            "distilled": [0.9, 0.9, 0.5, 0.5],
        },
    )
    outcome = run.run(made)
    metrics = json.loads(made.out.store.read_bytes(made.out.file("files/metrics.json")))
    assert metrics == outcome.metrics
    assert (outcome.rows_in, outcome.rows_out, outcome.dropped) == (24, 24, {})
    teacher, student, distilled = (row_of(metrics, p) for p in ("teacher", "student", "distilled"))
    assert teacher["win_reference"]["mean"] == pytest.approx((1 + 1 + 0.5) / 4)
    assert teacher["ties_reference"] == 0.25
    assert student["win_reference"]["mean"] == 0.25 and student["lift"] is None and student["win_initial"] is None
    assert distilled["lift"]["mean"] == pytest.approx((0 + 1 + 0.5 + 0.5) / 4)
    assert distilled["score_lift"]["mean"] == pytest.approx(1.6 / 4)
    assert distilled["score"] == pytest.approx(0.7) and metrics["reference_score"] == 0.5
    (sampled, greedy) = metrics["teacher_student"]
    assert (sampled["temperature"], greedy["temperature"]) == (0.7, 0.0)
    assert sampled["mean"] == pytest.approx((0.5 + 1 + 1 + 0.5) / 4) and sampled["ties"] == 0.5
    assert teacher["label"] == "teacher" and student["label"] == "initial student"
    assert [p["name"] for p in metrics["policies"]] == ["teacher", "student", "distilled"]


def test_rouge_words_and_truncation(tmp_path) -> None:
    made = world(tmp_path, {"student": [0], "distilled": [0]}, temperatures=(0.0,))
    rows = made.inputs["eval_responses"].table().to_pylist()
    rows[0] |= {"text": " the  blue shoe", "finish_reason": "length"}
    made.inputs["eval_responses"] = responses_artifact(tmp_path, rows, "eval-responses-1")
    row = row_of(run.run(made).metrics, "distilled", 0.0)
    assert row["words"] == 3 and row["truncated"] == 1
    assert row["rouge1"] == pytest.approx(100 * 2 / 3)  # the, shoe(s): the stemmer matches
    assert row["rouge2"] == 0 and row["rougeL"] == pytest.approx(100 * 2 / 3)


def test_rouge_equals_the_library_without_the_cache() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    pair = ("Running dogs are barking loudly, 3 times.", "The dog barks loudly while it is running")
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(*pair)
    found = rouge_columns([pair[1]], [pair[0]])
    assert {k: v[0] for k, v in found.items()} == pytest.approx({k: 100 * v.fmeasure for k, v in expected.items()})


def test_word_count() -> None:
    import pyarrow as pa

    np.testing.assert_array_equal(count_words(pa.array(["", "  ", "a", " a  b\nc "])), [0, 0, 1, 3])
    assert np.isnan(count_words(pa.array([None], pa.string()))[0])


def test_without_a_scorer_there_are_no_win_rates(tmp_path) -> None:
    metrics = run.run(world(tmp_path, {"student": [0, 0], "distilled": [0, 0]}, scorer=False)).metrics
    row = row_of(metrics, "distilled")
    assert row["win_reference"] is None and row["score"] is None and row["lift"] is None and row["rouge1"] > 0
    assert metrics["verdicts"] == {"distilled": "not judged: no scores"} and metrics["teacher_student"] == []


def test_prompts_without_reference_are_counted_not_scored(tmp_path) -> None:
    prompts = [prompt("a", "test", "the red shoes"), prompt("b", "test", None)]
    values = {"reference": [0.5, 0.5], "student": [0.9, 0.9], "distilled": [0.9, 0.1]}
    metrics = run.run(world(tmp_path, values, prompts)).metrics
    row = row_of(metrics, "distilled")
    assert metrics["without_reference"] == 1
    assert row["win_reference"]["n"] == 1 == row["scored_against_reference"] and row["win_initial"]["n"] == 2
    assert row["n"] == 2


def test_lost_responses_are_dropped_rows(tmp_path) -> None:
    outcome = run.run(
        world(tmp_path, {"reference": [0.5] * 3, "student": [0.1, 0.2, 0.3], "distilled": [0.9, None, 0.9]})
    )
    assert (outcome.rows_in, outcome.rows_out, outcome.dropped) == (12, 10, {"no_response": 2})
    row = row_of(outcome.metrics, "distilled")
    assert (row["n"], row["missing"], row["lift"]["n"]) == (2, 1, 2)


def test_an_arm_without_responses_is_an_error(tmp_path) -> None:
    made = world(tmp_path, {"student": [0.1], "distilled": [0.1]})
    made.config["arms"]["seqkd"] = "seqkd"
    with pytest.raises(PladError, match="no response of seqkd"):
        run.run(made)


def test_without_arms_the_initial_student_is_evaluated(tmp_path) -> None:
    metrics = run.run(world(tmp_path, {"student": [1, 0]})).metrics
    assert [p["name"] for p in metrics["policies"]] == ["student"] and metrics["verdicts"] == {}


def test_limit_takes_the_first_prompts(tmp_path) -> None:
    metrics = run.run(world(tmp_path, {"student": [1, 0, 0], "distilled": [1, 1, 1]}, limit=2)).metrics
    assert row_of(metrics, "student")["score"] == 0.5 and metrics["prompts"] == 2


@pytest.mark.parametrize(
    ("sampled", "greedy", "expected"),
    [
        ((0.1, 0.2), (0.1, 0.2), "rises sampled and greedy"),
        ((0.1, 0.2), (-0.1, 0.2), "sharpening only"),
        ((-0.1, 0.2), (0.1, 0.2), "rises greedy only"),
        ((-0.1, 0.2), (-0.1, 0.2), "no significant lift"),
        ((0.1, 0.2), (-0.2, -0.1), "falls greedy"),
        ((-0.2, -0.1), (-0.2, -0.1), "falls sampled and greedy"),
        ((0.1, 0.2), None, "rises sampled"),
        (None, (0.1, 0.2), "rises greedy"),
        (None, None, "not judged: no scores"),
    ],
)
def test_verdicts(sampled, greedy, expected) -> None:
    rows = [
        {"temperature": t, "score_lift": None, "lift": lift and {"low": lift[0], "high": lift[1]}}
        for t, lift in ((0.7, sampled), (0.0, greedy))
    ]
    assert verdict(rows) == expected


def test_seeds_are_pooled_over_all_their_prompts(tmp_path) -> None:
    paths = []
    for seed, ours in enumerate(([0.9] * 20, [0.9] * 5 + [0.1] * 15)):
        made = world(tmp_path / str(seed), {"reference": [0.5] * 20, "student": [0.1] * 20, "distilled": ours})
        run.run(made)
        paths.append(f"{made.out.path}/files/metrics.json")
    pooled = pool.pool(paths)
    row = row_of(pooled, "distilled")
    assert row["lift"]["mean"] == pytest.approx(25 / 40) and row["lift"]["n"] == 40
    assert 0.5 < row["lift"]["low"] < 25 / 40 < row["lift"]["high"] < 0.75
    assert pooled["verdicts"]["distilled"] == "rises sampled and greedy" and len(pooled["seeds"]) == 2
    text = pool.render(pooled)
    assert "| distilled beats reference | 0.7 | 100.0 % | 25.0 % | 62.5 % |" in text
    assert "rises sampled and greedy" in text


def test_runs_of_different_policies_are_not_pooled(tmp_path) -> None:
    paths = []
    for arm in ARMS:
        made = world(tmp_path / arm, {"student": [0.1], arm: [0.1]})
        run.run(made)
        paths.append(f"{made.out.path}/files/metrics.json")
    with pytest.raises(PladError, match="are not those of"):
        pool.pool(paths)


def test_select_keeps_the_files_of_the_best_candidate(tmp_path) -> None:
    made = world(tmp_path, {"reference": [0.5] * 4, "distilled": [0.9, 0.9, 0.9, 0.1], "seqkd": [0.9, 0.1, 0.1, 0.5]})
    scores = [a.table().to_pylist() for a in (made.inputs["scores"], made.inputs["eval_scores"])]
    inputs = {"scores": scores_artifact(tmp_path, scores[0] + scores[1], "dev-scores-0")}
    for name in ARMS:
        inputs[f"adapter/{name}"] = adapter = prompts_artifact(tmp_path / name, [])
        adapter.store.write_bytes(adapter.file("files/weights"), name.encode())
    choice = job(tmp_path, "select", {"candidates": sorted(ARMS)}, inputs)
    outcome = select.run(choice)
    assert outcome.metrics["selected"] == "distilled"
    assert outcome.metrics["candidates"]["distilled"]["win_rate"] == 0.75
    assert outcome.metrics["candidates"]["seqkd"]["by_temperature"] == {"0": 0.375, "0.7": 0.375}
    assert choice.out.store.read_bytes(choice.out.file("files/weights")) == b"distilled"
