"""Filters against noise: what is measured over which samples, by hand, and what is dropped for it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from plad_ray.config import Pairs
from plad_ray.errors import PladError
from plad_ray.evaluate.rouge import rouge_scorer
from plad_ray.pairs import build, filters, stats
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact, score, scores_artifact


def config(**changes):
    return {"pairs": Pairs(**changes).model_dump(mode="json"), "chat": False, "seed": 0}


def samples(policy: str, prompt_id: str, texts: Iterable[str], temperature: float = 0.7):
    return [response(policy, prompt_id, text, temperature, sample=i) for i, text in enumerate(texts)]


def inputs_of(root, rows, scores=None, prompts=None):
    """``scores``: of the rows, in order."""
    ids = prompts or list(dict.fromkeys(row["prompt_id"] for row in rows))
    inputs = {"prompts": prompts_artifact(root, [prompt(i) for i in ids])}
    inputs["responses"] = responses_artifact(root, rows[::-1])  # the order of responses must not matter
    if scores is not None:
        inputs["scores"] = scores_artifact(root, [score(*of) for of in zip(rows, scores, strict=True)])
    return inputs


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b c d"], None),
        (["a b c d", "a b c d"], 1),
        (["a b c d", "a b x y"], 0.5),  # a longest common subsequence of 2 in 4 and 4 words
        (["a b", "a b c d e f"], 0.5),  # precision 1 and recall 1/3, or the other way round
        (["a b c d", "a b c d", "a b x y"], 2 / 3),  # 1, 0.5 and 0.5
        (["a b", "c d", ""], 0),
    ],
)
def test_self_consistency_by_hand(texts, expected) -> None:
    found = filters.self_consistency(texts, rouge_scorer(("rougeL",)))
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([3], [2], None),
        ([], [2, 1, 0], None),
        ([3, 1], [2, 1, 0], 0.75),  # 3 beats all three; 1 loses, ties and wins
        ([1, 1], [1], 0.5),
        ([0], [1, 2], 0),
    ],
)
def test_agreement_by_hand(ours, theirs, expected) -> None:
    assert filters.agreement(np.array(ours, float), np.array(theirs, float)) == expected


def test_prompts_on_which_the_chosen_policy_disagrees_with_itself_are_dropped(tmp_path) -> None:
    rows = samples("teacher", "same", ["a b c d"] * 3)
    rows += samples("teacher", "near", ["a b c d", "a b c d", "a b x y"])  # 2/3
    rows += samples("teacher", "far", ["a b c d", "a b x y", "a b v w"])  # 1/2
    rows += samples("teacher", "one", ["a b c d"])
    rows += samples("teacher", "equal", ["z", "z"])
    rows += samples("teacher", "same", ["other", "texts"], temperature=1.0)  # of another draw
    of_dev = [response("teacher", "same", "v", sample=i, split="dev") for i in (8, 9)]
    ids = ["same", "near", "far", "one", "equal", "none"]
    rows += [response("student", i, "z") for i in ids]
    inputs = inputs_of(tmp_path, rows + of_dev, prompts=ids)
    for least, expected in ((0.5, ["same", "near", "far"]), (0.6, ["same", "near"]), (0.7, ["same"]), (1.0, ["same"])):
        run = job(tmp_path, "pairs", config(min_self_consistency=least), inputs)
        outcome = build.run(run)
        assert run.out.table(["prompt_id"])["prompt_id"].to_pylist() == expected
        low = {"low_self_consistency": 3 - len(expected)} if len(expected) < 3 else {}
        assert outcome.dropped == {"too_few_samples": 1, "identical": 1, "missing_chosen": 1, **low}
        assert outcome.rows_in == 6 == outcome.rows_out + sum(outcome.dropped.values())
    assert "identical 1, low_self_consistency 2, missing_chosen 1, too_few_samples 1" in stats.render(outcome.metrics)
    assert build.run(job(tmp_path, "pairs", config(), inputs)).rows_out == 4


def test_prompts_that_are_a_coin_toss_are_dropped(tmp_path) -> None:
    scores = {"clear": ([3, 3], [2, 1, 0]), "mostly": ([3, 1], [2, 1, 0]), "toss": ([1, 1], [2, 0, 1])}
    scores["lost"] = ([0], [1, 2])
    rows, values = [], []
    for prompt_id, sides in scores.items():
        for policy, of_side in zip(("teacher", "student"), sides, strict=True):
            rows += samples(policy, prompt_id, [f"{policy} {i}" for i in range(len(of_side))])
            values += of_side
    rows += samples("student", "clear", ["better"], temperature=1.0)  # of another draw
    inputs = inputs_of(tmp_path, rows, [*values, 9])
    kept = {0.0: 4, 0.5: 3, 0.75: 2, 0.76: 1}
    for least, count in kept.items():
        run = job(tmp_path, "pairs", config(min_agreement=least), inputs)
        outcome = build.run(run)
        assert run.out.table(["prompt_id"])["prompt_id"].to_pylist() == list(scores)[:count]
        assert outcome.dropped == ({"low_agreement": 4 - count} if count < 4 else {}) and outcome.rows_in == 4
    limited = build.run(job(tmp_path, "pairs", config(min_agreement=0.75, limit=1), inputs))
    assert limited.dropped == {"low_agreement": 2, "over_limit": 1}, "the limit is of what the filter leaves"
    both = build.run(job(tmp_path, "pairs", config(min_agreement=0.5, min_self_consistency=0.4), inputs))
    assert both.rows_out == 3, "teacher 0 and teacher 1 have one of two words in common"
    few = inputs_of(tmp_path / "few", rows[5:-1], values[5:])
    with pytest.raises(PladError, match=r"low_agreement: 3\. Most prompts are below pairs\.min_agreement: lower it"):
        build.run(job(tmp_path, "pairs", config(min_agreement=0.8), few))


def test_agreement_without_scores_is_refused(tmp_path) -> None:
    inputs = inputs_of(tmp_path, samples("teacher", "a", "xy") + samples("student", "a", "z"))
    with pytest.raises(PladError, match=r"min_agreement: text teacher:a:0\.7:[01] has no score .*scorer\.name"):
        build.run(job(tmp_path, "pairs", config(min_agreement=0.5), inputs))


def test_self_consistency_is_of_the_policy_whichever_text_the_reward_prefers(tmp_path) -> None:
    rows = samples("teacher", "a", ["a b", "a b"]) + samples("student", "a", ["c d", "e f"])
    rows += samples("teacher", "b", ["a b", "c d"]) + samples("student", "b", ["e f", "e f"])
    inputs = inputs_of(tmp_path, rows, [0, 0, 1, 1] * 2)
    run = job(tmp_path, "pairs", config(min_self_consistency=0.9, reward_share=1.0), inputs)
    assert build.run(run).dropped == {"low_self_consistency": 1}
    assert run.out.table(["prompt_id", "chosen"]).to_pylist() == [{"prompt_id": "a", "chosen": "c d"}]


def test_imported_text_is_one_draw_and_a_later_round_has_its_own_samples(tmp_path) -> None:
    inputs = inputs_of(tmp_path, samples("student", "a", ["old", "old"]), [9, 9])
    theirs = samples("teacher", "a", ["a b", "a c"], temperature=0.0)
    new = samples("student", "a", ["x", "y"])
    inputs["imported"] = responses_artifact(tmp_path, theirs, "imported-0")
    inputs["scores"] = scores_artifact(tmp_path, [score(row, 2) for row in theirs], "scores-1")
    inputs["responses/student"] = responses_artifact(tmp_path, new, "responses-1")
    inputs["scores/student"] = scores_artifact(tmp_path, [score(row, i * 2) for i, row in enumerate(new)], "scores-2")
    joined = build.join(inputs, Pairs())
    (row,) = filters.measured(joined, inputs, Pairs(min_agreement=0.5, min_self_consistency=0.5)).to_pylist()
    assert (row["self_consistency"], row["agreement"]) == (0.5, 0.75)
