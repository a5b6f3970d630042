"""A scorer against people: its accuracy by input format again from the file itself; the demo's annotator; refusals."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

from plad_ray.config import load
from plad_ray.data import demo
from plad_ray.errors import PladError
from tests.study.here import named, rows
from tests.study.test_compare import win

FORMATS = ["prompt", "last_turn", "response_only"]


def overlap(prompt: str, response: str, reference: str | None) -> float:
    """A scorer: how many words of the response are in the prompt."""
    return sum(word in prompt.split() for word in response.split())


def test_numbers_equal_those_of_the_file(here):
    turns = [(f"w{i} w{i + 1}", f"w{i + 2}", f"w{i % 4}", f"w{i % 4} w{i}", f"w{i} w{i % 3} w9") for i in range(1, 30)]
    dialogues = [(f"\n\nHuman: {a}\n\nAssistant: {b}\n\nHuman: {c}\n\nAssistant:", d, e) for a, b, c, d, e in turns]
    lines = [{"chosen": f"{prompt} {ours}", "rejected": f"{prompt} {theirs}"} for prompt, ours, theirs in dialogues]
    (here.folder / "hh.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    exp = here.experiment(scorer={"name": "tests.study.test_reward:overlap"})
    result, _, _ = here.run("reward", exp, pairs=str(here.folder / "hh.jsonl"), formats=FORMATS)
    [table] = result.tables
    shown = {
        "prompt": lambda p: p,
        "last_turn": lambda p: p.split("Human: ")[-1].split("\n")[0],
        "response_only": lambda p: "",
    }
    expected = {
        name: [win(overlap(cut(p), ours, None), overlap(cut(p), theirs, None)) for p, ours, theirs in dialogues]
        for name, cut in shown.items()
    }
    for name, accuracy, ties, longer, shorter, difference, p in table.rows[:-1]:
        assert accuracy.mean == pytest.approx(fmean(expected[name])) and accuracy.n == len(dialogues)
        assert ties == pytest.approx(fmean(value == 0.5 for value in expected[name]))
        assert longer is None and shorter.mean == pytest.approx(accuracy.mean), "all chosen ones have fewer words"
        if name != "prompt":
            assert difference.mean == pytest.approx(fmean(expected[name]) - fmean(expected["prompt"])) and p <= 1
    assert len({fmean(values) for values in expected.values()}) == 3
    assert table.rows[-1][:2] == ("longer text", table.rows[-1][1]) and table.rows[-1][1].mean == 0
    best = max(expected, key=lambda name: fmean(expected[name]))
    assert f"scorer.format: {best}" in result.summary[-1]
    assert [stage.name for stage in here.ran].count("preferences") == 1


def test_the_demos_annotator_agrees_with_its_reward_where_he_does_not_err(here):
    exp = here.experiment(data={"source": "demo", "sizes": dict.fromkeys(("train", "distill", "dev", "test"), 300)},
                          scorer={"name": "demo"})  # fmt: skip
    result, store, last = here.run("reward", exp, formats=["prompt", "response_only"])
    [pairs] = named(last, store, "preferences")
    texts = {(r["policy"], r["prompt_id"]): r for r in rows(pairs)}
    right = [demo.reward(r["prompt"], r["text"]) > demo.reward(r["prompt"], texts["rejected", i]["text"])
             for (side, i), r in texts.items() if side == "chosen"]  # fmt: skip
    accuracy, coin = (row[1] for row in result.tables[0].rows[:2])
    assert len(right) == 300 and accuracy.mean == pytest.approx(fmean(right)) == pytest.approx(0.8, abs=0.07)
    assert coin.mean == 0.5 and result.tables[0].rows[1][2] == 1, "without its post a summary has no fact right"


@pytest.mark.parametrize(
    ("sections", "settings", "message"),
    [
        ({}, {}, "only the demo task has preferences of its own; name a file"),
        ({}, {"pairs": "nowhere.jsonl"}, r"study\.pairs: nowhere\.jsonl does not exist"),
        ({}, {"pairs": "x", "seeds": [0]}, r"study\.seeds: nothing is trained here"),
        ({"scorer": {"name": "rouge"}}, {"pairs": "x"}, "rouge compares with a reference"),
    ],
)
def test_what_cannot_be_measured_is_refused(here, sections, settings, message):
    with pytest.raises(PladError, match=message):
        here.run("reward", here.experiment(**sections), **settings)


def test_the_format_that_the_study_names_is_the_experiments(tmp_path):
    plain = load("jobs/demo.yaml").scorer.model_dump(mode="json")
    assert "format" not in plain, "scores that were made before there were formats keep their names"
    assert load("jobs/demo.yaml", ["scorer.format=response_only"]).scorer.model_dump()["format"] == "response_only"
    with pytest.raises(PladError, match="rouge reads no prompt"):
        load("jobs/scitldr.yaml", ["scorer.format=last_turn"])
