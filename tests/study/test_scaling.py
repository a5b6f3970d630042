"""More data: shares are nested, text is made once, curve and price of a point are what a plain fit gives."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import numpy as np
import pytest

from plad_ray import pipeline
from plad_ray.errors import PladError
from plad_ray.study.statistics import log_fit, more_for
from tests.study.here import named, rows
from tests.study.test_compare import SEARCH, won

ARMS = ("distilled", "seqkd")


def test_numbers_equal_a_plain_fit_to_the_stored_scores(here):
    exp = here.experiment(compare={"seqkd": {"distill": {"objective": {"name": "seqkd"}}}})
    result, store, last = here.run("scaling", exp, seeds=[0, 1], shares=[0.25, 0.5, 1])
    shares, between, fits = result.tables
    for _, _, share, difference, p in between.rows:
        ours, theirs = (next(r[5].mean for r in shares.rows if r[0] == arm and r[2] == share) for arm in ARMS)
        assert difference.mean == pytest.approx(ours - theirs) and p == difference.p and difference.adjusted
    assert len(between.rows) == 3 and "distilled less seqkd at the same share" in result.summary[-1]
    names = {0.25: "-25pct", 0.5: "-50pct", 1.0: ""}
    for arm in ARMS:
        measured = [row for row in shares.rows if row[0] == arm]
        assert [row[2] for row in measured] == [0.25, 0.5, 1.0]
        for row in measured:
            assert row[5].mean == pytest.approx(fmean(won(last, store, arm + names[row[2]])))
        n, y = [row[4] for row in measured], [row[5].mean for row in measured]
        slope, _ = np.polyfit(np.log(n), y, 1)
        [fit] = [row for row in fits.rows if row[0] == arm]
        assert fit[2].mean == pytest.approx(slope * np.log(2))
        if slope > 0:
            assert f"{n[-1] * np.expm1(0.01 / slope):,.0f}" in (
                fit[3] if isinstance(fit[3], str) else f"{fit[3].mean:,.0f}"
            )
    trained = {
        a.manifest["name"]: a.manifest["rows"]["out"] for a in named(last, store, lambda s: s.title.endswith("seed 1"))
    }
    limits = {name: trained[f"distill-distilled-{name}"] for name in ("25pct", "50pct")}
    assert limits["25pct"] < limits["50pct"] <= trained["distill"]
    ran = Counter(stage.name for stage in here.ran)
    assert ran["responses"] == ran["pairs"] == ran["eval-responses"] == 2, "once a seed"
    [figure] = result.figures
    assert [s.kind for s in figure.series] == ["points", "band"] * 2 and figure.x.log


def test_what_is_searched_with_all_of_the_data_holds_for_every_share(here):
    exp = here.experiment(split_seed=0, compare={"seqkd": {"distill": {"objective": {"name": "seqkd"}}}})
    result, store, last = here.run("scaling", exp, shares=[0.5, 1], search=SEARCH)
    table = result.tables[-1]
    assert table.key == "search" and table.column("arm") == list(ARMS)
    trained = {a.manifest["name"]: a.manifest["config"]["training"] for a in named(last, store, lambda s: s.of == "seed 0")
               if "training" in a.manifest["config"]}  # fmt: skip
    rates = dict(zip(table.column("arm"), map(float, table.column("distill.learning_rate")), strict=True))
    assert (
        trained["distill"]["learning_rate"] == trained["distill-distilled-50pct"]["learning_rate"] == rates["distilled"]
    )
    assert (
        trained["distill-seqkd"]["learning_rate"] == trained["distill-seqkd-50pct"]["learning_rate"] == rates["seqkd"]
    )


def test_a_known_curve_is_found_and_priced():
    n = np.array([10.0, 100.0, 1000.0])
    a, b = log_fit(n, (0.2 + 0.05 * np.log(n))[:, None])
    assert (a[0], b[0]) == (pytest.approx(0.2), pytest.approx(0.05))
    further = more_for(0.01, 1000, b)[0]
    assert 0.2 + 0.05 * np.log(1000 + further) == pytest.approx(0.2 + 0.05 * np.log(1000) + 0.01)
    assert more_for(0.01, 1000, np.array([-0.1, 0.0])).tolist() == [np.inf, np.inf]


def test_smaller_shares_begin_larger_ones(here):
    exp = here.experiment()
    _, store, last = here.run("scaling", exp, shares=[0.5, 1])
    [pairs] = named(last, store, "pairs")
    small, large = (named(last, store, name)[0] for name in ("distill-distilled-50pct", "distill"))
    assert small.manifest["inputs"]["pairs"] == large.manifest["inputs"]["pairs"] == pairs.name
    assert small.manifest["rows"]["out"] < large.manifest["rows"]["out"] == len(rows(pairs))


def test_a_share_is_of_the_prompts_not_of_the_rows_that_are_left(here):
    """Half of the prompts, whether they gave a pair; all of them are what the experiment alone trains on."""
    exp = here.experiment(
        pairs={"drop_truncated_chosen": True}, compare={"sft": {"distill": {"objective": {"name": "sft"}}}}
    )
    result, store, last = here.run("scaling", exp, shares=[0.5, 1])
    [pairs], [prompts] = named(last, store, "pairs"), named(last, store, "prompts")
    ids = [row["prompt_id"] for row in rows(prompts) if row["split"] == "distill"]
    first = set(ids[: round(len(ids) / 2)])
    half, whole = result.tables[0].rows[:2]
    assert (half[3], whole[3]) == (len(first), len(ids)) and len(rows(pairs)) < len(ids)
    assert half[4] == sum(row["prompt_id"] in first for row in rows(pairs))
    assert [row[4] for row in result.tables[0].rows if row[0] == "sft"] == [len(first), len(ids)]
    assert pipeline.plan(exp).stages["distill"].digest == named(last, store, "distill")[0].manifest["digest"]


def test_shares_that_are_the_same_data_are_refused_or_told(here):
    with pytest.raises(PladError, match=r"study\.shares: two shares of the distill prompts of distilled are as many"):
        here.run("scaling", here.experiment(), shares=[0.98, 0.99])
    result, *_ = here.run(
        "scaling", here.experiment(pairs={"limit": 3, "drop_truncated_chosen": False}), shares=[0.6, 1]
    )
    assert result.tables[1].rows == () and "trained on 3, 3 rows" in result.warnings[0]
