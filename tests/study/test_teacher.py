"""Teachers of several strengths: who is ahead and what is gained again from the stored scores, and their trend."""

from __future__ import annotations

from statistics import correlation, fmean, linear_regression

import numpy as np
import pytest

from plad_ray import study
from plad_ray.artifacts import Store
from plad_ray.errors import PladError
from plad_ray.study.statistics import line_fit
from tests.conftest import save_tiny_model
from tests.study.here import rows
from tests.study.test_compare import win


def test_numbers_equal_those_from_the_stored_scores(here):
    paths = {seed: str(save_tiny_model(here.folder / f"teacher{seed}", seed=seed)) for seed in (6, 7)}
    teachers = {"own": {}, **{f"other-{seed}": {"teacher.model.path": path} for seed, path in paths.items()}}
    result, store, last = here.run("teacher", here.experiment(), teachers=teachers)
    by_teacher, trend = result.tables
    expected = {}
    for name in teachers:
        evaluated = last.inputs[f"evaluation/{name}/0"]
        found = {
            (r["policy"], r["prompt_id"]): r["score"]
            for key in ("scores", "eval_scores")
            for r in rows(evaluated.inputs[key].artifact(store))
            if r["split"] == "test"
        }
        prompts = [prompt for policy, prompt in found if policy == "teacher"]
        ahead = fmean(win(found["teacher", p], found["student", p]) for p in prompts)
        won = {a: fmean(win(found[a, p], found["reference", p]) for p in prompts) for a in ("distilled", "student")}
        expected[name] = (ahead, won["distilled"] - won["student"])
    assert {row[0]: (row[3].mean, row[4].mean) for row in by_teacher.rows} == {
        name: pytest.approx(values) for name, values in expected.items()
    }
    x, y = zip(*expected.values(), strict=True)
    assert len(set(x)) == 3 and by_teacher.column("teacher") == sorted(teachers, key=lambda name: expected[name][0])
    [(_, _, count, slope, r)] = trend.rows
    assert (count, slope.mean) == (3, pytest.approx(0.1 * linear_regression(x, y).slope))
    assert r.mean == pytest.approx(correlation(x, y)) and -1 <= r.low <= r.high <= 1
    [figure] = result.figures
    assert figure.series[0].x == pytest.approx(sorted(x)) and list(figure.series[0].notes) == by_teacher.column(
        "teacher"
    )
    assert max(expected, key=lambda name: expected[name][1]) in result.summary[0]
    names = [stage.name for stage in here.ran]
    assert names.count("prompts") == 1 and names.count("distill") == 3


def test_a_known_line_and_a_flat_one():
    x = np.array([[0.5, 1.0], [0.7, 1.0], [0.9, 1.0]])
    a, b, r = line_fit(x, 0.1 - 0.5 * x + np.array([[0.0], [0.0], [0.0]]))
    assert (a[0], b[0], r[0]) == pytest.approx((0.1, -0.5, -1))
    assert (b[1], r[1]) == (0, 0), "all teachers are as far ahead: no trend"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student.sft": None}, r"study\.teachers\.b: student\.sft: the experiments differ in teacher"),
        ({"teacher.engin": "vllm"}, r"study\.teachers\.b:\n  teacher\.engin: unknown key; did you mean engine"),
    ],
)
def test_a_change_that_is_none_of_a_teacher_is_refused(here, changed, message):
    with pytest.raises(PladError, match=message):
        here.run("teacher", here.experiment(), teachers={"a": {}, "b": changed, "c": {}})


def test_each_teachers_model_is_looked_at_before_compute(here):
    from plad_ray.stages import check
    from plad_ray.study.running import check_models

    kind, exp = study.find("teacher"), here.experiment()
    teachers = {"a": {}, "b": {"teacher.sft": {"method": "lora"}}, "short": {"teacher.model.max_length": 5}}
    store = Store(exp.runtime.store)
    plan = kind.plan(exp, kind.settings.model_validate({"teachers": teachers}), store)
    with pytest.raises(PladError, match=r"teacher: generate\.max_tokens 6 leaves no room .* model\.max_length 5"):
        check_models(plan, check([plan.last], store))


def test_two_teachers_make_no_trend(here):
    with pytest.raises(ValueError, match=r"three teachers or more \(given: a, b\)"):
        here.run("teacher", here.experiment(), teachers={"a": {}, "b": {}})
