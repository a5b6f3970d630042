"""Reward against tax: endpoints and points between, their likelihoods and win rates again from the stored rows."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

from plad_ray.errors import PladError
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


def test_whole_models_are_not_averaged(here):
    exp = here.experiment(compare={"whole": {"distill": {"method": "full"}}})
    with pytest.raises(PladError, match=r"arm whole has distill\.method full.*only adapters are averaged"):
        here.run("tax", exp, base_weights=[0.5], kinds=["plain"])


def test_the_second_task_is_read_and_answered_by_every_student(here):
    lines = [{"prompt": f"w{i} w{i % 4} w9", "reference": f" w{i % 3} w{i}"} for i in range(1, 9)]
    (here.folder / "second.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fractions = {"train": 0.25, "distill": 0.25, "dev": 0.0, "test": 0.5}
    data = {"source": "files", "path": str(here.folder / "second.jsonl"), "fractions": fractions}
    settings = {"base_weights": [0.5], "kinds": ["plain"], "second": {"data": data, "limit": 3}}
    result, store, last = here.run("tax", here.experiment(), **settings)
    own, second = result.tables
    start, scored = (named(last, store, name)[0] for name in ("second-start-scores", "second-responses-scores"))
    _, read = (a for a in named(last, store, "likelihoods"))
    references = {r["prompt_id"]: r["score"] for r in rows(scored) if r["policy"] == "reference"}
    names = {"start": "student", "as distilled": "distilled", "plain": "distilled-plain-50"}
    nlls, wins = {}, {}
    for row in second.rows:
        name = names[row[1]]
        found = {r["rid"]: -r["logp"] / r["tokens"] for r in rows(read) if r["reader"] == name}
        nlls[name], texts = found, [r for r in rows(start if row[1] == "start" else scored) if r["policy"] == name]
        wins[name] = {r["prompt_id"]: win(r["score"], references[r["prompt_id"]]) for r in texts}
        assert row[5].mean == pytest.approx(fmean(found.values())) and row[5].n == len(found) == 3
        assert row[4].mean == pytest.approx(fmean(wins[name].values()))
    changed = {row[1]: row[7:] for row in second.rows}
    assert changed["start"] == changed["as distilled"] == (None, None)
    for found, change in zip((wins, nlls), changed["plain"], strict=True):
        less = fmean(found["distilled-plain-50"].values()) - fmean(found["distilled"].values())
        assert change.mean == pytest.approx(less)
    shown, of_second = result.figures
    assert of_second.series[0].y == shown.series[0].y and of_second.series[0].x[0] == pytest.approx(
        fmean(nlls["distilled"].values())
    )
    assert "second task" in result.summary[1] and len(own.rows) == len(second.rows) == 3


def student(name: str, quality: float, nll: float) -> tax.Student:
    at = [Interval(mean=value, low=value, high=value) for value in (quality, nll)]
    return tax.Student(name, "a", "plain", 0.5, *at, None)


def test_the_front_holds_what_nothing_beats():
    found = [student("a", 0.6, 2.0), student("b", 0.5, 1.0), student("c", 0.5, 1.5), student("d", 0.6, 2.0)]
    assert tax.on_front(found) == {"a", "b", "d"}
