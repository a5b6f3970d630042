"""Methods compared: what each number is, recomputed from the stored scores; the search; resuming."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import pytest

from plad_ray import study
from plad_ray.artifacts import Store
from plad_ray.config.search import Search
from plad_ray.errors import PladError
from plad_ray.study.compare import edges
from tests.study.here import named, rows


def win(ours: float, theirs: float) -> float:
    return 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0


def won(last, store, policy: str, against: str = "reference") -> list[float]:
    """Per prompt and seed, from the score tables alone."""
    found = []
    evaluated = (
        named(last, store, lambda s, n=n: s.title.startswith(f"{n} · seed")) for n in ("scores", "eval-scores")
    )
    for bases, arms in zip(*evaluated, strict=True):
        table = [r for r in rows(bases) + rows(arms) if r["split"] == "test" and r["sample"] == 0]
        theirs = {r["prompt_id"]: r["score"] for r in table if r["policy"] == against}
        ours = {r["prompt_id"]: r["score"] for r in table if r["policy"] == policy}
        found += [win(score, theirs[key]) for key, score in sorted(ours.items())]
    return found


SEARCH = {"seeds": [7], "grid": {"distill.learning_rate": [1e-2, 5e-2]}}
ARMS = {"seqkd": {"distill": {"objective": {"name": "seqkd"}}}}


def test_numbers_equal_those_from_the_stored_scores(here):
    result, store, last = here.run("compare", here.experiment(split_seed=0, compare=ARMS), seeds=[0, 1], search=SEARCH)
    methods, differences, seeds, searched = result.tables
    assert methods.column("arm") == ["teacher", "initial student", "distilled", "seqkd"]
    for name, policy in (("teacher", "teacher"), ("initial student", "student"), ("seqkd", "seqkd")):
        [row] = [r for r in methods.rows if r[0] == name]
        expected = won(last, store, policy)
        assert row[7].mean == pytest.approx(fmean(expected)) and row[7].n == len(expected)
    [teacher_student] = [r[8] for r in methods.rows if r[0] == "teacher"]
    assert teacher_student.mean == pytest.approx(fmean(won(last, store, "teacher", "student")))
    ours = won(last, store, "distilled")
    for name, policy in (("seqkd", "seqkd"), ("initial student", "student")):
        [row] = [r for r in differences.rows if r[0] == name]
        assert row[2].mean == pytest.approx(fmean(ours) - fmean(won(last, store, policy)))
        assert row[2].low <= row[2].mean <= row[2].high and row[2].adjusted and row[3] == row[2].p
    assert fmean(seeds.rows[2][2:4]) == pytest.approx(fmean(ours)) == pytest.approx(seeds.rows[2][4])
    assert set(searched.column("trials")) == {2}


def test_a_choice_at_the_edge_of_what_was_tried_is_said():
    def searched(value, *tried):
        trials = {f"try{i}": {"changes": {"distill.learning_rate": v, "x": "text"}} for i, v in enumerate(tried)}
        return {"changes": {"distill.learning_rate": value, "x": "text"}, "trials": trials}

    chosen = {"plad": searched(0.01, 0.001, 0.003, 0.01), "kd": searched(0.01, 0.001, 0.003, 0.01)}
    chosen |= {"seqkd": searched(0.003, 0.001, 0.003, 0.01), "sft": searched(0.001, 0.001, 0.01)}
    assert edges(chosen) == [
        "The search chose the largest distill.learning_rate that was tried, 0.01, for plad, kd: the best may lie beyond."
    ]
    assert "the smallest" in edges({"plad": searched(0.001, 0.001, 0.003, 0.01)})[0]


def test_the_search_freezes_the_best_of_each_arm_on_dev_and_its_own_seeds(here):
    _, store, last = here.run("compare", here.experiment(split_seed=0, compare=ARMS), seeds=[0], search=SEARCH)
    [scores] = named(last, store, "dev-scores")
    references = {r["prompt_id"]: r["score"] for r in rows(scores) if r["policy"] == "reference"}
    rates = {
        (arm, rate): fmean(
            win(r["score"], references[r["prompt_id"]]) for r in rows(scores) if r["policy"] == f"{arm}-try{i}"
        )
        for arm in ("distilled", "seqkd")
        for i, rate in enumerate(SEARCH["grid"]["distill.learning_rate"])
    }
    for arm, stage in (("distilled", "distill"), ("seqkd", "distill-seqkd")):
        [trained] = named(last, store, stage)
        best = max((rate for a, rate in rates if a == arm), key=lambda rate: rates[arm, rate])
        assert trained.manifest["config"]["training"]["learning_rate"] == best
        assert trained.manifest["config"]["seed"] == 0
    assert {a.manifest["config"]["seed"] for a in named(last, store, lambda s: "-try" in s.name)} == {7}


def test_text_is_generated_once_a_seed_and_a_repeated_study_runs_nothing(here):
    exp = here.experiment(split_seed=0, compare=ARMS)
    here.run("compare", exp, seeds=[0, 7], search=SEARCH)
    ran = Counter((stage.name, stage.config.get("seed")) for stage in here.ran)
    assert ran["responses", 7] == ran["responses", 0] == 1 and ran["dev-responses", 7] == 1
    here.ran.clear()
    here.run("compare", exp, seeds=[0, 7], search=SEARCH)
    assert here.ran == []
    here.run("compare", exp, seeds=[0, 7, 8], search=SEARCH)  # a further seed: the others are there
    assert {stage.config["seed"] for stage in here.ran if "seed" in stage.config} == {8}


def test_what_one_seed_is_tuned_on_must_not_be_the_test_of_another(here):
    exp = here.experiment()
    with pytest.raises(PladError, match=r"compare tunes on dev .* seeds 0, 7, .*source files .*: set data\.split_seed"):
        here.run("compare", exp, search=SEARCH)
    with pytest.raises(PladError, match=r"compare tunes on dev .* seeds 0, 1, .*set data\.split_seed"):
        here.run("compare", exp, seeds=[0, 1], search={**SEARCH, "seeds": None})
    with pytest.raises(PladError, match=r"calibration tunes on dev .* seeds 0, 1, .*set data\.split_seed"):
        here.run("calibration", exp, seeds=[0, 1])
    assert here.ran == []
    kind, store = study.find("compare"), Store(exp.runtime.store)
    for seeds, search in (([7], SEARCH), ([0, 1], None)):
        assert kind.plan(exp, kind.settings.model_validate({"seeds": seeds, "search": search}), store).targets


def test_every_arm_gets_the_same_budget():
    search = Search(grid={"distill.learning_rate": (1, 2)}, own={"plad": {"distill.objective.margin": (1, 2)}})
    with pytest.raises(PladError, match="seqkd has 2 candidates where every arm is to get 4 trials"):
        search.candidates(["plad", "seqkd"])
    drawn = search.model_copy(update={"trials": 2}).candidates(["plad", "seqkd"])
    assert {arm: len(tried) for arm, tried in drawn.items()} == {"plad": 2, "seqkd": 2}
    with pytest.raises(PladError, match=r"search\.own\.kd: no such arm"):
        Search(own={"kd": {}}).candidates(["plad"])
