"""Formats of TL;DR, HH and free tables, on rows written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from plad_ray.config import Data
from plad_ray.data.rows import Record, short_hash
from plad_ray.data.sources import demo, files, hh, tldr
from plad_ray.errors import PladError

RAW = {"id": "t3_1", "subreddit": "cats", "title": "Help", "post": "One.\nTwo two.\nThree", "summary": "cat trouble "}
PROMPT = "SUBREDDIT: r/cats\n\nTITLE: Help\n\nPOST: One.\nTwo two.\nThree\n\nTL;DR:"
FRAME = "SUBREDDIT: r/cats\n\nTITLE: Help\n\nPOST: {}\n\nTL;DR:"


def data(source: str = "files", **values: Any) -> Data:
    return Data.model_validate({"source": source, **({"path": "x.jsonl"} if source == "files" else {}), **values})


def record(**values: Any) -> Record:
    return Record(values, "t.jsonl line 1")


def test_tldr_raw_and_hub_rows_are_the_same_row() -> None:
    made = tldr.convert(record(**RAW), data("tldr"))
    assert (made.prompt, made.reference) == (PROMPT, " cat trouble")
    assert tldr.convert(record(prompt=PROMPT, completion=" cat trouble"), data("tldr")) == made
    assert tldr.convert(record(prompt=PROMPT, label="cat trouble"), data("tldr")) == made


@pytest.mark.parametrize(
    ("post", "room"),
    [
        ("One.\nTwo two.\nThree", 19),
        ("One.\nTwo two.", 18),  # the last line goes
        ("One.", 12),
        ("One.", 4),
        ("On", 2),  # no newline left: characters go
        ("", 0),
    ],
)
def test_tldr_cuts_the_post_at_its_last_newline(post: str, room: int) -> None:
    limit = len(FRAME.format("")) + room
    assert tldr.truncate(PROMPT, limit) == FRAME.format(post)
    assert tldr.convert(record(**RAW), data("tldr", max_prompt_chars=limit)).prompt == FRAME.format(post)


def test_tldr_frame_is_never_cut() -> None:
    assert tldr.truncate(PROMPT, 5) == FRAME.format("")


def test_tldr_problems() -> None:
    assert tldr.convert(record(prompt=PROMPT, completion=" "), data("tldr")) == "empty_response"
    with pytest.raises(PladError, match=r"no column 'completion'.*columns there are: prompt, text"):
        tldr.convert(record(prompt=PROMPT, text="x"), data("tldr"))
    with pytest.raises(PladError, match=r"ends in 'TL;DR:'"):
        tldr.convert(record(prompt="hello", completion="x"), data("tldr"))
    with pytest.raises(PladError, match=r"column 'title': expected text, found NoneType"):
        tldr.convert(record(**{**RAW, "title": None}), data("tldr"))


FIRST, SECOND = "\n\nHuman: hi\n\nAssistant: hello", "\n\nHuman: how\n\nAssistant:"


def test_hh_prompt_ends_at_the_last_shared_assistant_turn() -> None:
    made = hh.convert(record(chosen=FIRST + SECOND + " well", rejected=FIRST + SECOND + " bad"), data("hh"))
    assert made.prompt == FIRST + SECOND
    assert made.reference == " well"
    assert made.group == short_hash("hi")
    assert made.messages == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "how"},
    ]


def test_hh_when_only_the_first_turn_is_shared() -> None:
    made = hh.convert(record(chosen=FIRST + SECOND + " well", rejected="\n\nHuman: hi\n\nAssistant: hey"), data("hh"))
    assert (made.prompt, made.reference) == ("\n\nHuman: hi\n\nAssistant:", " hello")  # cut before the next turn


def test_hh_rows_of_prompt_and_responses() -> None:
    made = hh.convert(record(prompt=FIRST + SECOND + " ", chosen="well\n", rejected="bad"), data("hh"))
    assert (made.prompt, made.reference) == (FIRST + SECOND, " well")


def test_hh_drops() -> None:
    same = FIRST + SECOND
    assert hh.convert(record(chosen=same + " ", rejected=same + " x"), data("hh")) == "empty_response"
    assert hh.convert(record(chosen="\n\nHuman: a", rejected="\n\nHuman: b"), data("hh")) == "no_shared_prompt"
    with pytest.raises(PladError, match=r"column 'chosen': expected a transcript, found list"):
        hh.convert(record(chosen=[], rejected=""), data("hh"))


def test_hh_is_cut_on_the_left_at_a_human_turn() -> None:
    prompt = FIRST + SECOND
    assert hh.truncate(prompt, len(prompt)) == prompt
    assert hh.truncate(prompt, len(prompt) - 1) == SECOND
    assert hh.truncate(prompt, 3) == SECOND  # the last turn stays whole
    made = hh.convert(record(chosen=prompt + " x", rejected=prompt + " y"), data("hh", max_prompt_chars=40))
    assert (made.prompt, made.group) == (SECOND, short_hash("hi"))  # still the dialogue's group
    assert made.messages == [{"role": "user", "content": "how"}]


def test_files_lists_and_formats() -> None:
    section = data(
        columns={"prompt": "source", "reference": "target", "prompt_id": "n", "group": "who"},
        prompt_format="{title}: {prompt} ({year}) {{}}\nTL;DR:",
        reference_format=" {reference}",
    )
    row = record(
        source=["One. ", "", "Two.\n"], target=["first ", "a longer second"], n=7, who="x", title="T", year=2020
    )
    made = files.convert(row, section)
    assert made.prompt == "T: One. Two. (2020) {}\nTL;DR:"
    assert made.reference == " first"
    assert (made.prompt_id, made.group, made.messages) == ("7", "x", None)


def test_files_keeps_plain_text_as_it_is() -> None:
    made = files.convert(record(prompt=" a ", reference=" b"), data())
    assert (made.prompt, made.reference, made.group) == (" a ", " b", short_hash(" a "))
    assert files.convert(record(prompt="a"), data(columns={"reference": None})).reference is None


def test_files_chat() -> None:
    chat = [{"role": "system", "content": "be brief", "extra": 1}, {"role": "user", "content": "hi"}]
    made = files.convert(record(prompt=chat, reference=[{"role": "assistant", "content": "yo"}]), data())
    assert made.prompt == "system: be brief\nuser: hi"
    assert made.messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert made.reference == "yo"


@pytest.mark.parametrize(
    ("values", "section", "message"),
    [
        (
            {"text": "a", "reference": "b"},
            {},
            r"line 1: no column 'prompt' \(data.columns.prompt\).*are: text, reference",
        ),
        ({"prompt": "a"}, {}, r"no column 'reference' \(data.columns.reference\); columns there are: prompt"),
        ({"prompt": 3, "reference": "b"}, {}, "column 'prompt': expected text, a list of texts or chat.*found int 3"),
        ({"prompt": [], "reference": "b"}, {}, r"column 'prompt': expected text.*found list \[\]"),
        ({"prompt": ["a", None], "reference": "b"}, {}, "column 'prompt': expected text"),
        ({"prompt": " \n", "reference": "b"}, {}, "column 'prompt': the prompt is empty"),
        ({"prompt": ["", " "], "reference": "b"}, {}, "column 'prompt': the prompt is empty"),
        ({"prompt": "a", "reference": None}, {}, "column 'reference': the reference is missing"),
        ({"prompt": "a", "reference": " "}, {}, "column 'reference': the reference is missing"),
        ({"prompt": "a", "reference": []}, {}, "column 'reference': the reference is missing"),
        ({"prompt": "a", "reference": 1.5}, {}, "column 'reference': expected a text.*found float 1.5"),
        ({"prompt": "a", "reference": "b"}, {"prompt_format": "{prompt} {x}"}, r"no column 'x' \(data.prompt_format\)"),
        (
            {"prompt": "a", "reference": "b", "x": None},
            {"prompt_format": "{x}"},
            "column 'x'.*expected text or a number",
        ),
        (
            {"prompt": "a", "reference": "b"},
            {"prompt_format": "{prompt"},
            "data.prompt_format: '{prompt' is no template",
        ),
        ({"prompt": "a", "reference": "b"}, {"prompt_format": "{prompt!r}"}, "without format or number"),
        ({"prompt": "a", "reference": "b"}, {"columns": {"group": "g"}}, r"no column 'g' \(data.columns.group\)"),
        (
            {"prompt": "a", "reference": "b", "n": 1.5},
            {"columns": {"prompt_id": "n"}},
            "'n'.*expected text or an integer",
        ),
        ({"prompt": [{"role": "user"}], "reference": "b"}, {}, "a chat message needs role and content"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}], "reference": "b"},
            {},
            "the last message must be by 'user', not by 'assistant'",
        ),
        (
            {"prompt": [{"role": "user", "content": "x"}], "reference": "b"},
            {"prompt_format": "Q: {prompt}"},
            "chat messages, which data.prompt_format cannot format",
        ),
    ],
)
def test_files_problems_name_row_column_and_remedy(values, section, message) -> None:
    with pytest.raises(PladError, match=message) as caught:
        files.convert(record(**values), data(**section))
    assert "t.jsonl line 1" in str(caught.value) or "is no template" in message or "without format" in message


def test_demo_splits_share_no_prompt_and_larger_shards_keep_the_test_set() -> None:
    sizes = {"train": 20, "distill": 15, "dev": 5, "test": 10}
    found = demo.splits(data("demo", sizes=sizes), 0)
    assert {split: len(rows) for split, rows in found.items()} == sizes
    assert len({row.prompt for rows in found.values() for row in rows}) == 50
    larger = demo.splits(data("demo", sizes={**sizes, "distill": 30}), 0)
    assert all(larger[split] == found[split] for split in ("test", "dev", "train"))
    assert larger["distill"][:15] == found["distill"]
