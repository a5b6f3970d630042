"""The demo task, against values worked out by hand."""

import statistics

import pytest

from plad_ray.data import demo

PROMPT = (
    "post : anna bought red shoes . anyway it felt late . ben sold old cups . "
    "well this was fine . leo hid new hats . summary :"
)
ANNA, BEN, LEO = " anna bought red shoes .", " ben sold old cups .", " leo hid new hats ."
ALTERED, FILLER = " ben sold red cups .", " anyway it felt late ."


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (ANNA + BEN + LEO, 1.0),
        (LEO + ANNA + BEN, 1.0),  # order is free
        (ANNA + LEO, 2 / 3),  # one dropped
        (ANNA + ALTERED + LEO, 2 / 4),  # one altered: missing and wrong
        (ANNA + ANNA + BEN + LEO, 3 / 4),  # one repeated
        (ANNA + FILLER + BEN + LEO, 3 / 4),
        (ANNA + ANNA + ANNA, 1 / 5),
        (ALTERED, 0.0),
        (" anna bought red shoes", 1 / 3),  # no full stop: still the fact
        (" anna bought red", 0.0),
        (ANNA + " .", 1 / 4),  # an empty sentence is a wrong one
        ("", 0.0),
        ("  ", 0.0),
    ],
)
def test_reward_by_hand(response: str, value: float) -> None:
    assert demo.reward(PROMPT, response) == pytest.approx(value)


def test_reward_without_facts_is_zero() -> None:
    assert demo.reward("no post here", "") == 0.0
    assert demo.reward("no post here", ANNA) == 0.0


def test_marks_name_each_fact_and_keep_the_text() -> None:
    response = ANNA + ALTERED + ANNA + FILLER + " leo hid"
    marks = demo.mark(PROMPT, response)
    assert [m.verdict for m in marks] == ["kept", "wrong", "redundant", "wrong", "wrong"]
    assert "".join(m.text for m in marks) == response
    assert demo.missing(PROMPT, response) == ["ben sold old cups", "leo hid new hats"]
    assert (
        demo.missing(PROMPT, "")
        == demo.facts(PROMPT)
        == ["anna bought red shoes", "ben sold old cups", "leo hid new hats"]
    )


def test_generation_is_deterministic_and_unique() -> None:
    examples = demo.generate(500, seed=7)
    assert examples == demo.generate(500, seed=7)
    assert examples[:100] == demo.generate(100, seed=7)
    assert examples != demo.generate(500, seed=8)
    assert len({example.prompt for example in examples}) == 500


def test_examples_are_well_formed() -> None:
    words = demo.vocabulary()
    assert len(words) == len(set(words)) and 90 <= len(words) <= 110
    for example in demo.generate(500, seed=7):
        assert set((example.prompt + example.reference).split()) <= set(words)
        assert example.prompt.startswith("post : ") and example.prompt.endswith(" . summary :")
        assert example.reference.startswith(" ") and not example.reference.startswith("  ")
        assert len(demo.facts(example.prompt)) in (2, 3)
        perfect = "".join(f" {fact} ." for fact in demo.facts(example.prompt))
        assert demo.reward(example.prompt, perfect) == 1.0


def test_references_make_human_mistakes() -> None:
    examples = demo.generate(4000, seed=7)
    rewards = [demo.reward(e.prompt, e.reference) for e in examples]
    assert statistics.mean(rewards) == pytest.approx(0.84, abs=0.015)
    assert statistics.mean(r < 1 for r in rewards) == pytest.approx(demo.MISTAKE_RATE, abs=0.03)
    assert {round(r, 3) for r in rewards} == {1.0, 0.75, 0.667, 0.5, 0.333}
