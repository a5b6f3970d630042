"""Input formats: what a scorer is shown, by hand; and that the scorer is shown it."""

from __future__ import annotations

import pytest

from plad_ray.config import Scorer
from plad_ray.errors import PladError
from plad_ray.reward import build
from plad_ray.reward.formats import FORMATS

ONE = "\n\nHuman: a b\n\nAssistant:"
THREE = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\n\nHuman: e\n\nAssistant:"
POST = "SUBREDDIT: r/pets\n\nTITLE: My dog\n\nPOST: He barks.\n\nTL;DR:"


@pytest.mark.parametrize(
    ("name", "prompt", "shown"),
    [
        ("prompt", THREE, (THREE, " r")),
        ("last_turn", ONE, ("a b", " r")),
        ("last_turn", THREE, ("e", " r")),
        ("open_assistant", ONE, ("a b", "r")),
        ("open_assistant", THREE, ("c", "d\n\n<sep>e<sep>r")),
        ("open_assistant", POST, ("He barks. TLDR;", "r")),
        ("response_only", POST, ("", " r")),
    ],
)
def test_what_is_shown(name: str, prompt: str, shown: tuple[str, str]) -> None:
    assert FORMATS[name](prompt, " r") == shown


@pytest.mark.parametrize("name", ["last_turn", "open_assistant"])
def test_a_prompt_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(PladError, match=rf"scorer\.format {name} reads an HH dialogue.*: 'plain'; use format prompt"):
        FORMATS[name]("plain", " r")


def echo(prompt: str, response: str, reference: str | None) -> float:
    return len(prompt) + 100 * len(response)


def test_the_scorer_reads_the_format() -> None:
    scorer = Scorer(name="tests.reward.test_formats:echo", format="open_assistant")
    assert build(scorer)([ONE, POST], [" r", " rs"], [None, None]) == [3 + 100, 15 + 200]
