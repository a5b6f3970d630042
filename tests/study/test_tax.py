"""Reward against tax: endpoints and points between, their likelihoods and win rates again from the stored rows."""

from __future__ import annotations

from statistics import fmean

import pytest

from plad_ray.study import tax
from plad_ray.study.result import Interval
from tests.study.here import named, rows
from tests.study.test_compare import win

ARMS = {"seqkd": {"distill": {"objective": {"name": "seqkd"}}}}


def test_numbers_equal_those_from_the_stored_rows(here):
    result, store, last = here.run(
        "tax", here.experiment(compare=ARMS), base_weights=[0.5], kinds=["plain", "adaptive"], parts=2
    )
    [table] = result.tables
    [scored], [base], [read] = (named(last, store, name) for name in ("tax-scores", "scores", "likelihoods"))
    references = {r["prompt_id"]: r["score"] for r in rows(scored) if r["policy"] == "reference"}
    names = {
        ("", "start"): "student",
        **{(arm, "as distilled"): arm for arm in ("distilled", "seqkd")},
        **{(arm, kind): f"{arm}-{kind}-50" for arm in ("distilled", "seqkd") for kind in ("plain", "adaptive")},
    }
    shown = {("" if row[1] == "start" else row[0], row[1]): row for row in table.rows}
    assert shown.keys() == names.keys()
    for key, name in names.items():
        nll = fmean(-r["logp"] / r["tokens"] for r in rows(read) if r["reader"] == name)
        assert shown[key][5].mean == pytest.approx(nll)
        texts = [r for r in rows(base if name == "student" else scored) if (r["policy"], r["split"]) == (name, "test")]
        assert shown[key][4].mean == pytest.approx(fmean(win(r["score"], references[r["prompt_id"]]) for r in texts))
    nlls = {key: row[5].mean for key, row in shown.items()}
    ends = nlls["", "start"], nlls["seqkd", "as distilled"]
    assert nlls["seqkd", "plain"] != pytest.approx(ends[0]) and nlls["seqkd", "plain"] != pytest.approx(ends[1])
    assert [s.name for s in result.figures[0].series] == [
        f"{arm}, {kind}" for arm in ("distilled", "seqkd") for kind in ("plain", "adaptive")
    ]
    ran = [stage.name for stage in here.ran]
    assert ran.count("tax-responses") == ran.count("proxy-seqkd") == 1, "all students answer in one generation"


def student(name: str, quality: float, nll: float) -> tax.Student:
    at = [Interval(mean=value, low=value, high=value) for value in (quality, nll)]
    return tax.Student(name, "a", "plain", 0.5, *at, None)


def test_the_front_holds_what_nothing_beats():
    found = [student("a", 0.6, 2.0), student("b", 0.5, 1.0), student("c", 0.5, 1.5), student("d", 0.6, 2.0)]
    assert tax.on_front(found) == {"a", "b", "d"}
