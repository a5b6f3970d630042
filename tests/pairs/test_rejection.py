"""Statistical rejection sampling: its limits, the distribution of what it accepts, and the pairs made of it."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from plad_ray.config import Pairs
from plad_ray.errors import PladError
from plad_ray.pairs import rejection, stats
from plad_ray.pairs.rejection import accept
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact, score, scores_artifact


def rng(seed=0):
    return np.random.default_rng(seed)


def config(chat=False, limit=None, drop_truncated_chosen=True, **settings):
    pairs = Pairs(rejection=settings, limit=limit, drop_truncated_chosen=drop_truncated_chosen)
    return {"pairs": pairs.model_dump(mode="json"), "chat": chat, "seed": 0}


def inputs_of(root, drawn, temperature=0.7, cut=()):
    """From ``{prompt_id: [(text, reward), …]}``, all the student's."""
    rows, scores = [], []
    for prompt_id, texts in drawn.items():
        for s, (text, reward) in enumerate(texts):
            reason = "length" if text in cut else "stop"
            rows.append(response("student", prompt_id, text, temperature, sample=s, finish_reason=reason))
            scores.append(score(rows[-1], reward))
    return {
        "prompts": prompts_artifact(root, [prompt(p) for p in drawn]),
        "responses": responses_artifact(root, rows),
        "scores": scores_artifact(root, scores),
    }


def test_an_infinite_beta_keeps_the_first_and_a_small_one_the_best():
    scores = np.array([0.3, 0.9, 0.1, 0.5, 0.7])
    assert accept(scores, 3, 1e12, rng()).tolist() == [0, 1, 2]
    assert accept(scores, 3, 1e-12, rng()).tolist() == [1, 4, 3]
    assert sorted(accept(scores, 9, 0.5, rng()).tolist()) == [0, 1, 2, 3, 4], "a pool smaller than keep is taken whole"
    assert accept(np.empty(0), 2, 0.5, rng()).tolist() == []


def test_the_best_text_is_accepted_in_the_first_pass_and_equal_texts_count_as_often_as_they_were_drawn():
    for seed in range(50):
        assert 2 in accept(np.array([0.0, 0.0, 5.0, 0.0]), 4, 0.1, rng(seed))[:1]
    assert accept(np.array([1.0, 1.0, 0.0, 1.0]), 3, 1e-9, rng()).tolist() == [0, 1, 3]


def test_what_is_accepted_follows_the_optimal_policy():
    """π(y) = (.5, .3, .15, .05) and r = (0, .5, 1, 1.5) at β = .5: accepted texts follow π(y)·exp(r/β)/Z."""
    policy, reward, beta = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.5, 1.0, 1.5]), 0.5
    target = policy * np.exp(reward / beta)
    target /= target.sum()
    counts = np.zeros(4)
    for seed in range(3000):
        pool = rng([seed, 1]).choice(4, size=128, p=policy)
        counts += np.bincount(pool[accept(reward[pool], 4, beta, rng([seed, 2]))], minlength=4)
    assert chisquare(counts, target * counts.sum()).pvalue > 0.01
    assert chisquare(counts, policy * counts.sum()).pvalue < 1e-9, "and not the policy that drew them"


def test_pairs_are_disjoint_and_ordered_by_reward(tmp_path) -> None:
    drawn = {p: [(f"{p}{i}", float(i)) for i in range(7)] for p in ("a", "b")}
    run = job(tmp_path, "rejection", config(beta=1e9, keep=6), inputs_of(tmp_path, drawn))
    outcome = rejection.run(run)
    made = run.out.table().to_pylist()
    assert [r["prompt_id"] for r in made] == ["a"] * 3 + ["b"] * 3 and outcome.rows_out == 6 == outcome.rows_in
    for p, rows in (("a", made[:3]), ("b", made[3:])):
        used = [r[side] for r in rows for side in ("chosen", "rejected")]
        assert sorted(used) == [f"{p}{i}" for i in range(6)], "each of the six first texts once"
        for r in rows:
            assert r["chosen_score"] > r["rejected_score"] and r["chosen"] == f"{p}{r['chosen_score']:.0f}"
            assert r["order"] == "reward" and r["score_gap"] == r["chosen_score"] - r["rejected_score"]
            assert r["chosen_rid"] == f"student:{p}:0.7:{r['chosen_score']:.0f}"
    found = outcome.metrics["pool"]
    assert (
        (found["texts"], found["accepted"]) == (14, 12) and found["accepted_score"] == 2.5 and found["best_score"] == 6
    )
    assert "12 of 14 texts" in stats.render(outcome.metrics) and "chosen wins" not in stats.render(outcome.metrics)


def test_partners_are_random_not_by_acceptance(tmp_path) -> None:
    """Early passes accept better texts: pairing in that order would set equals against each other."""
    drawn = {f"p{n}": [(str(i), float(i)) for i in range(4)] for n in range(60)}
    run = job(tmp_path, "rejection", config(beta=1e-9, keep=4), inputs_of(tmp_path, drawn))
    rejection.run(run)
    met = {frozenset((r["chosen"], r["rejected"])) for r in run.out.table().to_pylist()}
    assert len(met) == math.comb(4, 2)


def test_a_prompts_pairs_depend_on_the_prompt_alone(tmp_path) -> None:
    drawn = {f"p{n}": [(str(i), float(i * 7 % 5)) for i in range(10)] for n in range(5)}
    tables = []
    for n, names in enumerate((list(drawn), ["p4", "p2"])):
        run = job(
            tmp_path / str(n), "rejection", config(keep=4), inputs_of(tmp_path / str(n), {k: drawn[k] for k in names})
        )
        rejection.run(run)
        tables.append([r for r in run.out.table().to_pylist() if r["prompt_id"] in ("p2", "p4")])
    assert sorted(map(str, tables[0])) == sorted(map(str, tables[1]))


def test_every_drop_has_its_reason_and_rows_are_conserved(tmp_path) -> None:
    drawn = {
        "tie": [("x", 1.0), ("y", 1.0)],
        "same": [("x", 1.0), (" x", 1.0)],
        "one": [("x", 1.0)],
        "none": [],
        "ok": [("x", 1.0), ("y", 0.0)],
        "cut": [("cut", 1.0), ("y", 0.0)],
        "more": [("x", 1.0), ("y", 0.0)],
    }
    inputs = inputs_of(tmp_path, drawn, cut=("cut",))
    outcome = rejection.run(job(tmp_path, "rejection", config(limit=1), inputs))
    expected = {"tie": 1, "identical": 1, "one_text": 1, "no_text": 1, "truncated_chosen": 1, "over_limit": 1}
    assert outcome.dropped == expected == outcome.metrics["dropped"]
    assert outcome.rows_in == 7 == outcome.rows_out + sum(outcome.dropped.values())
    assert "nothing was selected" in outcome.metrics["warnings"][-1]
    assert rejection.run(job(tmp_path, "rejection", config(drop_truncated_chosen=False), inputs)).rows_out == 3


def test_the_pool_is_one_policys_samples(tmp_path) -> None:
    texts = {"teacher": {0.7: "tT"}, "student": {0.0: "gG", 0.7: "aA", 1.0: "bB"}}
    rows = [
        response(who, "a", text, t, sample=s)
        for who, drawn in texts.items()
        for t, pair in drawn.items()
        for s, text in enumerate(pair)
    ]
    inputs = {"prompts": prompts_artifact(tmp_path, [prompt("a")]), "responses": responses_artifact(tmp_path, rows)}
    inputs["scores"] = scores_artifact(tmp_path, [score(row, float(i)) for i, row in enumerate(rows)])
    for settings, expected in (
        ({}, "aAbB"),
        ({"temperatures": [1.0]}, "bB"),
        ({"temperatures": [0.0]}, "gG"),
        ({"policy": "teacher"}, "tT"),
    ):
        run = job(tmp_path, "rejection", config(**settings), inputs)
        rejection.run(run)
        used = {r[side] for r in run.out.table().to_pylist() for side in ("chosen", "rejected")}
        assert used == set(expected), settings


def test_a_text_without_a_score_and_a_pool_without_a_pair_are_refused(tmp_path) -> None:
    inputs = inputs_of(tmp_path, {"a": [("x", 1.0), ("y", 1.0)]})
    with pytest.raises(PladError, match=r"none of the 1 prompts.*'tie': 1.*student\.draw\.samples"):
        rejection.run(job(tmp_path, "rejection", config(), inputs))
    del inputs["scores"]
    with pytest.raises(PladError, match=r"text student:a:0\.7:0 has no score.*scorer\.name"):
        rejection.run(job(tmp_path, "rejection", config(), inputs))
