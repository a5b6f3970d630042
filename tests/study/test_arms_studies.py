"""real-pairs, length and ablation: each number again from the stored rows; shares nested; variants trained as said."""

from __future__ import annotations

from statistics import fmean

import pytest

from plad_ray.errors import PladError
from plad_ray.study import ablation, real_pairs
from plad_ray.study.arms import MAIN, vary_arm, with_arms
from plad_ray.study.result import Interval
from tests.study.here import named, rows
from tests.study.test_compare import win, won


def test_real_pairs(here):
    result, store, last = here.run("real-pairs", here.experiment(), shares=[0, 0.5, 1])
    [table] = result.tables
    names = {0: "distilled", 0.5: "distilled-50pct", 1: "distilled-100pct"}
    base = fmean(won(last, store, "distilled"))
    first = fmean(won(last, store, "student"))
    assert first in [pytest.approx(line.y) for line in result.figures[0].lines]
    previous = set()
    for row in table.rows:
        _, _, share, swapped, quality, lift, gain, _ = row
        assert lift.mean == pytest.approx(quality.mean - first)
        assert quality.mean == pytest.approx(fmean(won(last, store, names[share])))
        assert gain is None if share == 0 else gain.mean == pytest.approx(quality.mean - base)
        [pairs] = named(last, store, "pairs" if share == 0 else f"pairs-{names[share]}")
        by_reward = {r["prompt_id"] for r in rows(pairs) if r["order"] == "reward"}
        assert previous <= by_reward
        previous = by_reward
        against = [r for r in rows(pairs) if r["chosen_rid"].split(":")[1] == "student"]
        assert swapped == pytest.approx(len(against) / len(rows(pairs)))
    assert previous == {r["prompt_id"] for r in rows(pairs)} and swapped > 0


def test_a_recipe_that_harms_whatever_the_order_is_said(here):
    def lift(high):
        return Interval(mean=high - 0.1, low=high - 0.2, high=high)

    places = {"distilled": {"arm": "distilled"}, "distilled-100pct": {"arm": "distilled"}}
    harmed = {("distilled", 0.0): lift(-0.3), ("distilled-100pct", 0.0): lift(-0.05)}
    [said] = real_pairs._worse(harmed, places)
    assert said.startswith("Greedy, distilled: whatever the order of its pairs, the student is worse than before")
    assert real_pairs._worse({**harmed, ("distilled-100pct", 0.0): lift(0.05)}, places) == []


def test_real_pairs_refuses_arms_without_pairs(here):
    exp = here.experiment(compare={"seqkd": {"distill": {"objective": {"name": "seqkd"}}}})
    with pytest.raises(PladError, match=r"seqkd \(seqkd\) does not train on pairs"):
        here.run("real-pairs", exp, arms=["distilled", "seqkd"])
    with pytest.raises(PladError, match="no arm kd; arms: distilled, seqkd"):
        here.run("real-pairs", exp, arms=["kd"])


def test_length(here):
    result, store, last = here.run("length", here.experiment(), width=2, minimum=1, seeds=[0, 1])
    [table] = result.tables
    gains: dict[str, list[float]] = {}
    for evaluation in named(last, store, "evaluate"):
        found = {(r["policy"], r["prompt_id"]): r for r in rows(evaluation)}
        for (policy, prompt), row in found.items():
            if policy != "distilled":
                continue
            first = found["student", prompt]
            gain = win(row["score"], row["reference_score"]) - win(first["score"], first["reference_score"])
            bucket = next(k for k in range(9) if row["words"] <= 2 * (k + 1))
            gains.setdefault(f"({2 * bucket}, {2 * bucket + 2}]", []).append(gain)
    assert {row[2]: (row[3], pytest.approx(row[4].mean)) for row in table.rows} == {
        name: (len(values), fmean(values)) for name, values in gains.items()
    }
    assert len(gains) > 1
    few = here.run("length", here.experiment(), width=2, minimum=10_000, seeds=[0, 1])[0]
    assert few.tables[0].rows == () and "no interval has enough" in few.summary[0]


def test_ablation(here):
    exp = here.experiment(split_seed=0, compare={"seqkd": {"distill": {"objective": {"name": "seqkd"}}}})
    variants = {"rank-2": {"distill.lora.r": 2}, "loose": {"distill.objective.margin": 3.0}}
    search = {
        "seeds": [7],
        "grid": {},
        "own": {n: {"distill.learning_rate": [1e-2, 5e-2]} for n in (*variants, "distilled")},
    }
    result, store, last = here.run("ablation", exp, variants=variants, search=search)
    table = result.tables[0]
    base = fmean(won(last, store, "distilled"))
    for row in table.rows:
        assert row[3].mean == pytest.approx(fmean(won(last, store, row[0])) - base)
    trained = {a.manifest["name"]: a.manifest["config"]["training"] for a in named(last, store, lambda s: s.of == "seed 0")
               if "training" in a.manifest["config"]}  # fmt: skip
    assert set(trained) == {"distill", "distill-rank-2", "distill-loose"}
    assert trained["distill-rank-2"]["lora"]["r"] == 2 and trained["distill"]["lora"]["r"] == 4
    assert trained["distill-loose"]["objective"]["margin"] == 3 and trained["distill"]["objective"]["margin"] == 1
    assert result.tables[-1].key == "search" and result.tables[-1].column("trials") == [2, 2, 2]
    assert table.column("changes") == ["distill.lora.r: 2", "distill.objective.margin: 3.0"]


def test_sentences_of_an_ablation_name_what_is_told_apart_first_and_the_rest_together():
    def of(mean: float, p: float) -> Interval:
        return Interval(mean=mean, low=mean - 0.01, high=mean + 0.01, p=p)

    found = {
        ("slic", 0.7): of(0.002, 1.0), ("slic", 0.0): of(-0.004, 0.8),
        ("full", 0.7): of(0.035, 0.002), ("full", 0.0): of(0.005, 0.3),
        ("bare", 0.7): of(-0.15, 0.002), ("bare", 0.0): of(-0.1, 0.002),
    }  # fmt: skip
    assert list(ablation.sentences(found, 0.95)) == [
        "full: sampled at 0.7 +3.5 [+2.5, +4.5] points; greedy +0.5 [-0.5, +1.5] points, not told apart from none.",
        "bare: sampled at 0.7 -15.0 [-16.0, -14.0] points; greedy -10.0 [-11.0, -9.0] points.",
        "Not told apart from the recipe: slic.",
    ]
    assert ablation.written({"distill.objective": {"name": "simpo", "beta": 2.0}, "pairs.min_agreement": None}) == (
        "distill.objective: {name: simpo, beta: 2.0}, pairs.min_agreement: null"
    )


def test_each_share_of_real_pairs_can_have_a_rate_of_its_own(here):
    search = {"seeds": [7], "grid": {"distill.learning_rate": [1e-2, 5e-2]}}
    result, *_ = here.run("real-pairs", here.experiment(split_seed=0), shares=[0, 1], search=search)
    table = result.tables[-1]
    assert table.key == "search" and table.column("arm") == ["distilled", "distilled-100pct"]
    assert table.column("trials") == [2, 2]


def test_a_variant_can_take_back_what_the_recipe_sets(here):
    """Settings that are left out of a dump where they are null."""
    student = here.experiment().student.model_dump(mode="json") | {"draw": {"samples": 2}}
    exp = here.experiment(pairs={"min_agreement": 0.5}, distill={"prompts": 5}, student=student)
    recipe = (exp.pairs, exp.distill)
    plain = vary_arm(recipe, {"pairs.min_agreement": None, "distill.prompts": None}, "variant")
    for main, other in ((recipe, plain), (plain, recipe)):
        arms = with_arms(exp, {MAIN: main, "other": other}).arms()
        assert [(p.min_agreement, d.prompts) for p, d in arms.values()] == [
            (p.min_agreement, d.prompts) for p, d in (main, other)
        ]
    told = with_arms(exp, {MAIN: plain, "other": plain}).compare["other"]
    assert told.pairs == plain[0].model_dump(mode="json"), "no name of what was made before changes"


def test_an_arm_takes_nothing_from_a_main_arm_that_trains_all_weights(here):
    exp = here.experiment()
    sections = {"distilled": vary_arm((exp.pairs, exp.distill), {"distill.method": "full", "distill.prompts": 4}, "x")}
    sections["adapter"] = (exp.pairs, exp.distill)
    arms = with_arms(exp, sections).arms()
    found = {name: (distill.method, distill.prompts) for name, (_, distill) in arms.items()}
    assert found == {"distilled": ("full", 4), "adapter": ("lora", None)}


def test_lora_against_full_training(here):
    variants = {"full": {"distill.method": "full", "distill.learning_rate": 1e-3}}
    result, store, last = here.run("ablation", here.experiment(), variants=variants)
    [row] = result.tables[0].rows
    base = fmean(won(last, store, "distilled"))
    assert row[3].mean == pytest.approx(fmean(won(last, store, "full")) - base)
    [adapter], [whole] = named(last, store, "distill"), named(last, store, "distill-full")
    assert (adapter.local_folder() / "adapter_model.safetensors").is_file()
    assert (whole.local_folder() / "model.safetensors").is_file()
    said = [{r["prompt_id"]: r["text"] for r in rows(answers) if r["policy"] == policy}
            for answers in named(last, store, "eval-responses") for policy in ("distilled", "full")]  # fmt: skip
    assert said[0].keys() == said[1].keys() and said[0] != said[1]


def test_ablation_says_what_it_needs(here):
    with pytest.raises(PladError, match=r"variants\.big: distill\.lora\.rank: unknown key"):
        here.run("ablation", here.experiment(), variants={"big": {"distill.lora.rank": 2}})
    with pytest.raises(PladError, match="generate: an arm differs in pairs"):
        here.run("ablation", here.experiment(), variants={"long": {"generate.max_tokens": 9}})
    with pytest.raises(PladError, match=r"asks for student text at temperature 0\.3"):
        here.run("ablation", here.experiment(), variants={"cold": {"pairs.rejected.temperature": 0.3}})
