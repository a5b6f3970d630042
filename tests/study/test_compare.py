"""Methods compared: what each number is, recomputed from the stored scores; the search; resuming."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from statistics import fmean

import numpy as np
import pyarrow as pa
import pytest

from plad_ray import study
from plad_ray.artifacts import Store
from plad_ray.config import Evaluate
from plad_ray.config.loading import vary
from plad_ray.config.search import Search
from plad_ray.errors import PladError
from plad_ray.evaluate.frame import Frame
from plad_ray.stages import check, closure
from plad_ray.study.across import _is_best
from plad_ray.study.result import Interval
from plad_ray.study.running import check_models
from plad_ray.study.runs import Runs, families
from plad_ray.study.searched import edges
from tests.conftest import save_tiny_model
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


def measured(last, store, name: str, seeds: list[int]) -> dict[str, list[float]]:
    """By policy, what it won in the setting ``name``: per prompt and seed, from the score tables alone."""
    found = defaultdict(list)
    for seed in seeds:
        evaluated = last.inputs[f"{name}/evaluation/{seed}"]
        scores = [evaluated.inputs[key].artifact(store) for key in ("scores", "eval_scores")]
        table = {(r["policy"], r["prompt_id"]): r["score"] for a in scores for r in rows(a) if r["split"] == "test"}
        for policy, prompt in sorted(table):
            found[policy].append(win(table[policy, prompt], table["reference", prompt]))
    return found


@pytest.fixture
def across(here):
    """Two tasks and another student, the first being the experiment itself."""
    other = [{"prompt": f"w{i % 6} w{i % 4} w{i}", "reference": f" w{3 + i % 17}"} for i in range(1, 40)]
    (here.folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    student = save_tiny_model(here.folder / "student", seed=9)
    return {
        "first": {},
        "second": {"data.path": str(here.folder / "other.jsonl")},
        "student": {"student.model.path": str(student)},
    }


def test_every_method_in_every_setting_is_in_one_overview(here, across):
    exp = here.experiment(split_seed=0, compare=ARMS)
    result, store, last = here.run("compare", exp, seeds=[0, 1], search=SEARCH, across=across)
    overview, *others = result.tables
    assert overview.column("arm") == ["teacher", "initial student", "distilled", "seqkd"]
    policies = ("teacher", "student", "distilled", "seqkd")
    found = {name: measured(last, store, name, [0, 1]) for name in across}
    for name in across:
        for cell, policy in zip(overview.column(f"win-{name}"), policies, strict=True):
            assert (cell.mean, cell.n) == (pytest.approx(fmean(found[name][policy])), len(found[name][policy]))
            assert cell.low <= cell.mean <= cell.high
    assert len({cell.mean for cell in overview.rows[2][2:5]}) > 1, "the settings differ"
    each = ("methods", "differences", "seeds", "search")
    assert [table.key for table in others] == [f"{name}-{key}" for name in across for key in each]
    assert [figure.key for figure in result.figures] == [f"{name}-win-rates" for name in across]
    by_key = {table.key: table for table in others}
    told = {}
    for name in across:
        table = by_key[f"{name}-differences"]
        assert table.title.startswith(f"{name}: distilled less") and "the 6 differences of all settings" in table.note
        for policy, label in (("seqkd", "seqkd"), ("student", "initial student")):
            [row] = [r for r in table.rows if r[0] == label]
            assert row[2].mean == pytest.approx(fmean(found[name]["distilled"]) - fmean(found[name][policy]))
            told[name, label] = row[2]
    for sentence, name in zip(result.summary, across, strict=True):
        assert sentence.startswith(f"{name}: distilled is ")
        parts = sentence.removeprefix(f"{name}: distilled is ").split("; ")
        said = {who: part.split(":")[0] for part in parts for who in ("seqkd", "initial student") if who in part}
        for who, verdict in said.items():
            e = told[name, who]
            assert verdict == ("not told apart from" if e.p > 0.05 else "above" if e.mean > 0 else "below")
        assert set(said) == {"seqkd", "initial student"}
    ahead = [n for n in across if all(told[n, who].p <= 0.05 and told[n, who].mean > 0 for _, who in told if _ == n)]
    assert overview.column("best") == ["", "", ", ".join(ahead), ""]


def test_a_setting_is_what_its_own_study_is_but_for_the_family_of_its_p_values(here, across):
    exp, wanted = here.experiment(split_seed=0, compare=ARMS), {"seeds": [0], "search": SEARCH}
    result, _, last = here.run("compare", exp, **wanted, across=across)
    ran = Counter(stage.name for stage in here.ran)
    # two seeds (one is the search's) of two tasks' prompts and of three settings' texts; a search tries two arms' two rates
    assert (ran["prompts"], ran["responses"], ran["search"], ran["study-compare"]) == (4, 6, 3, 1)
    assert sum(n for name, n in ran.items() if "-try" in name and name.startswith("distill-")) == 12
    here.ran.clear()
    alone, *_ = here.run("compare", vary(exp, across["second"], "here"), **wanted)
    assert [stage.name for stage in here.ran] == ["study-compare"]
    tables = {t.key.removeprefix("second-"): t for t in result.tables if t.key.startswith("second-")}
    assert set(tables) == {t.key for t in alone.tables}
    for table in alone.tables:
        rows_, own = tables[table.key].rows, table.rows
        if table.key != "differences":
            assert rows_ == own
            continue
        assert [r[2].mean for r in rows_] == [r[2].mean for r in own]
        assert all(ours[3] >= theirs[3] for ours, theirs in zip(rows_, own, strict=True)), "a larger family"
    titles = [stage.title for stage in closure([last])]
    assert len(set(titles)) == len(titles) and "search · second" in titles and "responses · second, seed 0" in titles


def test_a_study_of_one_setting_has_the_name_it_had(here):
    kind, exp = study.find("compare"), here.experiment()
    stage = kind.plan(exp, kind.settings.model_validate({"across": {}}), Store(exp.runtime.store)).last
    assert "across" not in stage.config["settings"] and stage.config["facts"] == {"arms": ["distilled"]}
    assert list(stage.inputs) == ["evaluation/0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.pat": "x"}, r"study\.across\.b:\n  data\.pat: unknown key; did you mean path"),
        ({"data.path": "absent.jsonl"}, r"study\.across\.b: .*absent\.jsonl"),
        ({"scorer": None}, r"study\.across\.b: study compare compares scores"),
        ({"seed": 3}, r"study\.across\.b: seed: settings do not differ in it; give study\.seeds"),
        ({"runtime.train.workers": 2}, r"study\.across\.b: runtime\.train\.workers: settings do not differ in it"),
        ({"compare": {"kd": {}}}, r"study\.across\.b: compare: the arms are distilled, kd, and in .* distilled, seqkd"),
        ({"evaluate.confidence": 0.9}, r"study\.across\.b: evaluate\.confidence: one page has one, .* is 0\.95"),
        ({}, r"study\.across\.b: the same experiment as a"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(here, changes, message):
    with pytest.raises(PladError, match=message):
        here.run("compare", here.experiment(compare=ARMS), across={"a": {}, "b": changes})
    assert here.ran == []


def test_names_of_settings_and_their_models_are_looked_at_before_compute(here):
    kind, exp = study.find("compare"), here.experiment()
    with pytest.raises(ValueError, match=r"letters, digits, - and _ \(given: a/b\)"):
        kind.settings.model_validate({"across": {"a/b": {}}})
    settings = kind.settings.model_validate({"across": {"a": {}, "short": {"student.model.max_length": 5}}})
    store = Store(exp.runtime.store)
    plan = kind.plan(exp, settings, store)
    with pytest.raises(PladError, match=r"study\.across\.short: student: generate\.max_tokens 6 leaves no room"):
        check_models(plan, check([plan.last], store))


def test_the_best_is_marked_where_it_is_told_apart_from_all():
    def less(mean: float, p: float) -> Interval:
        return Interval(mean=mean, low=mean - 0.1, high=mean + 0.1, p=p, adjusted=True)

    def best(*others: Interval | None) -> bool:
        return _is_best({(f"arm{i}", 0.7): e for i, e in enumerate(others)}, 0.7, 0.95)

    assert best(less(0.2, 0.01), less(0.1, 0.05))
    assert not best(less(0.2, 0.01), less(0.1, 0.051)) and not best(less(0.2, 0.01), less(-0.2, 0.01))
    assert not best(less(0.2, 0.01), None) and not best()


def test_p_values_of_several_comparisons_are_of_one_family():
    ids = pa.array([str(i) for i in range(64)])
    rng = np.random.default_rng(0)
    found = Runs((0,), (Frame(ids, {}),), Evaluate(bootstrap=500), "reference")
    means = {"a": {"x": 0.5, "y": 0.2}, "b": {"x": 0.3}}
    wanted = {name: {key: [rng.normal(mean, 1, 64)] for key, mean in of.items()} for name, of in means.items()}
    together = families({name: (found, values) for name, values in wanted.items()})
    raw = {(n, k): e.p for n, values in wanted.items() for k, e in found.for_tests(3).estimates(values).items()}
    ranked, highest = sorted(raw, key=raw.get), 0.0
    for rank, (name, key) in enumerate(ranked):
        highest = max(highest, min(1.0, raw[name, key] * (3 - rank)))
        assert together[name][0][key].p == pytest.approx(highest)
