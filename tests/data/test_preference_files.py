"""Human preferences: every format read as it is meant, what is dropped and why, what is refused."""

from __future__ import annotations

import pytest

from plad_ray.data import demo, preferences
from plad_ray.data.rows import Record
from plad_ray.errors import PladError
from tests.synthetic import job

TURNS = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
INFO = {"subreddit": "pets", "title": "My dog", "post": "He barks.", "id": "t3_1"}


def read(**values: object) -> preferences.Preference | str:
    return preferences.preference(Record(values, "x.jsonl line 1"))


def test_transcripts_share_their_prompt_and_further_turns_are_cut() -> None:
    found = read(chosen=f"{TURNS} yes\n\nHuman: why", rejected=f"{TURNS} no")
    assert found[:1] + found[2:] == (TURNS, " yes", " no")
    assert [m["content"] for m in found.messages] == ["a", "b", "c"]
    assert read(prompt=TURNS, chosen=" yes", rejected=" no") == found
    assert read(chosen="\n\nHuman: a\n\nAssistant: x", rejected="\n\nHuman: b\n\nAssistant: x") == "no_shared_prompt"
    assert read(chosen=TURNS, rejected=f"{TURNS} no") == "empty_response"


def test_trl_pairs_as_text_and_as_messages() -> None:
    assert read(prompt="p", chosen="a", rejected="b") == ("p", None, "a", "b")
    said = [[{"role": role, "content": text}] for role, text in (("user", "p"), ("assistant", "a"), ("assistant", "b"))]
    found = read(prompt=said[0], chosen=said[1], rejected=said[2])
    assert found == ("user: p", said[0], "a", "b")


def test_comparisons_have_a_choice_of_two_summaries() -> None:
    texts = [{"text": " first"}, {"text": " second"}]
    prompt = "SUBREDDIT: r/pets\n\nTITLE: My dog\n\nPOST: He barks.\n\nTL;DR:"
    assert read(info=INFO, summaries=texts, choice=1) == (prompt, None, " second", " first")
    assert read(info={"article": "news"}, summaries=texts, choice=1) == "no_post"
    with pytest.raises(PladError, match=r"x\.jsonl line 1: expected an OpenAI comparison"):
        read(info=INFO, summaries=texts, choice=2)
    with pytest.raises(PladError, match=r"no column 'rejected' \(study.pairs needs prompt, chosen, rejected; or HH"):
        read(prompt="p", chosen="a")


def test_every_text_is_accounted_for_and_a_limit_takes_the_same_pairs(tmp_path, jsonl) -> None:
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(6)]
    odd = [pairs[0], {"prompt": "p", "chosen": "a", "rejected": " a "}, {"prompt": "p", "chosen": "", "rejected": "b"}]
    config = {"path": [jsonl([*pairs, *odd], "p.jsonl")], "limit": None, "seed": 0}
    made = job(tmp_path, "all", config, {})
    outcome = preferences.run(made)
    assert (outcome.rows_in, outcome.rows_out) == (18, 12)
    assert outcome.dropped == {"duplicate": 2, "empty_response": 2, "identical": 2}
    fewer = job(tmp_path, "some", {**config, "limit": 2}, {})
    assert preferences.run(fewer).dropped["over_limit"] == 8
    assert [r["rid"] for r in fewer.out.rows()] == [r["rid"] for r in made.out.rows()][:4]


def test_the_demos_annotator_errs_in_a_fifth() -> None:
    found = demo.preferences(2000, 3)
    assert found == demo.preferences(2000, 3) != demo.preferences(2000, 4)
    better = [demo.reward(prompt, chosen) > demo.reward(prompt, rejected) for prompt, chosen, rejected in found]
    assert sum(better) / len(better) == pytest.approx(0.8, abs=0.03)
