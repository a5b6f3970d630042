r"""Human preferences between two responses to one prompt, as texts that a scorer reads.

Formats: TRL's ``prompt, chosen, rejected`` (text or messages), Anthropic HH transcripts (``chosen, rejected``), and OpenAI's
summarize-from-feedback comparisons (``info, summaries, choice``). Without files, those of the demo task's annotator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.data import demo, reading
from plad_ray.data.rows import Messages, Record, prompt_of, short_hash, text_of
from plad_ray.data.sources import hh, tldr
from plad_ray.errors import PladError
from plad_ray.records import PROMPT, SCORE
from plad_ray.stages import Job, Outcome

SIDES = ("chosen", "rejected")
OPTION = "study.pairs needs prompt, chosen, rejected; or HH's chosen and rejected; or info, summaries, choice"

#: two rows a pair, whose id is ``prompt_id`` and whose sides are the policies: the text, and the prompt for ``prompts``
ROW = pa.schema(
    [
        *(field for field in SCORE if field.name != "score"),
        ("text", pa.string()),
        *(PROMPT.field(name) for name in ("prompt", "messages", "reference")),
    ]
)


class Preference(NamedTuple):
    prompt: str
    messages: Messages | None
    chosen: str
    rejected: str


def run(job: Job) -> Outcome:
    """Config ``path`` (files or a URI; null: the demo's), ``limit`` (pairs), ``seed`` -> ``ROW`` rows, pairs in the order of
    their ids, which are hashes. Rows are counted in texts. Dropped by reason: ``duplicate``, ``identical``, ``over_limit``,
    ``no_shared_prompt``, ``empty_response``, ``no_post``. Raises PladError naming file, line and column for bad input."""
    limit, files = job.config["limit"], job.config["path"]
    if files is None:
        made = demo.preferences(limit, job.config["seed"])
        found: Iterator[Preference | str] = (Preference(prompt, None, *texts) for prompt, *texts in made)
    else:
        uri = isinstance(files, str)
        found = map(preference, reading.records(reading.expand(files, "study.pairs") if uri else [*map(Path, files)]))
    kept: dict[str, Preference] = {}
    dropped: Counter[str] = Counter()
    for pair in found:
        if isinstance(pair, str):
            dropped[pair] += 2
        elif pair.chosen.strip() == pair.rejected.strip():
            dropped["identical"] += 2
        elif (key := short_hash(*pair)) in kept:
            dropped["duplicate"] += 2
        else:
            kept[key] = pair
    if not kept:
        raise PladError(f"study.pairs: no pair can be used; dropped: {dict(dropped)}")
    names = sorted(kept)[:limit]
    dropped["over_limit"] = 2 * (len(kept) - len(names))
    rows = [row for name in names for row in _rows(name, kept[name])]
    job.out.write_rows(pa.Table.from_pylist(rows, ROW))
    return Outcome(len(rows) + dropped.total(), len(rows), {k: n for k, n in sorted(dropped.items()) if n})


def prompts(job: Job) -> Outcome:
    """``ROW`` rows of ``preferences`` -> a prompt table: one PROMPT row a pair."""
    table = job.inputs["preferences"].table()
    chosen = table.filter(pc.equal(table["policy"], SIDES[0]))
    chosen = chosen.append_column("group", chosen["prompt_id"])
    job.out.write_rows(chosen.select(PROMPT.names).cast(PROMPT))
    return Outcome(table.num_rows, chosen.num_rows, {"same_prompt": table.num_rows - chosen.num_rows})


def preference(record: Record) -> Preference | str:
    """One pair, or why there is none."""
    if "summaries" in record.values:
        return _comparison(record)
    if "prompt" not in record.values:
        return _transcripts(record)
    prompt, messages = prompt_of(record, OPTION)
    chosen, rejected = (text_of(record, side, OPTION) for side in SIDES)
    if messages is None and hh.is_dialogue(prompt):
        messages = hh.messages(prompt)
    return Preference(prompt, messages, chosen, rejected) if chosen.strip() and rejected.strip() else "empty_response"


def _transcripts(record: Record) -> Preference | str:
    chosen, rejected = (text_of(record, side, OPTION) for side in SIDES)
    prompt, _ = hh.split(chosen, rejected)
    if not hh.is_dialogue(prompt):
        return "no_shared_prompt"
    ours, theirs = (hh.response(text.removeprefix(prompt)) for text in (chosen, rejected))
    return Preference(prompt, hh.messages(prompt), ours, theirs) if ours and theirs else "empty_response"


def _comparison(record: Record) -> Preference | str:
    try:
        info, choice = record.values["info"], record.values["choice"]
        texts = [summary["text"] for summary in record.values["summaries"]]
        if not info.get("post"):
            return "no_post"  # news articles are compared too
        fields = {name: info.get(name) or "" for name in ("subreddit", "title", "post")}
        chosen, rejected = texts[choice], texts[1 - choice]
    except (KeyError, TypeError, IndexError, AttributeError):
        raise PladError(
            f"{record.where}: expected an OpenAI comparison: info (subreddit, title, post), two summaries with a text each, "
            "and choice, 0 or 1"
        ) from None
    return Preference(tldr.FORMAT.format(**fields), None, chosen, rejected) if chosen and rejected else "empty_response"


def _rows(name: str, pair: Preference) -> list[dict[str, Any]]:
    shared = {"prompt_id": name, "split": "test", "temperature": 0.0, "sample": 0, "prompt": pair.prompt}
    shared |= {"messages": pair.messages, "reference": None}
    return [{**shared, "rid": f"{side}:{name}", "policy": side, "text": getattr(pair, side)} for side in SIDES]
