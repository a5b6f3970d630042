"""Text made elsewhere as artifacts: teacher responses (RESPONSE rows) and finished preference pairs (TRL columns)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from plad_ray.config import Pairs
from plad_ray.data import reading
from plad_ray.data.rows import Record, is_messages, prompt_of, short_hash, text_of
from plad_ray.errors import PladError
from plad_ray.pairs import build, stats
from plad_ray.records import MESSAGES, RESPONSE
from plad_ray.stages import Job, Outcome

logger = logging.getLogger("plad_ray")
FINISH_REASONS = ("stop", "length")
#: rows that are made into a table, and written, at a time
ROWS = 10_000
PAIRS = "data.pairs needs prompt, chosen, rejected"
JOINED = pa.schema(
    [("prompt", pa.string()), ("messages", MESSAGES), ("prompt_id", pa.string()), ("order", pa.string())]
    + [(f"{side}_{name}", pa.string()) for side in build.SIDES for name in build.FIELDS]
    + [(f"{side}_score", pa.float64()) for side in build.SIDES]
)


def run_responses(job: Job) -> Outcome:
    """Teacher responses: columns ``response`` and ``prompt_id``, or ``prompt`` whose text is matched to the prompts'.

    Optional: ``temperature`` (else 0), ``sample`` (else counted per prompt), ``finish_reason`` (else ``stop``). There
    are no token ids, so token counts are 0. Rows in are the file's rows, once for every prompt row of that text, and
    the distill prompts that nothing answers; dropped: ``no_such_prompt`` and ``no_response``.
    """
    answers = _Answers(_Prompts(job))
    job.out.store.delete(job.out.file("rows"))
    answered = 0
    for number, part in enumerate(_tables(answers.rows(_records(job, "data.responses")), RESPONSE)):
        if part.num_rows:
            job.out.write_rows(part, f"part-{number:05d}")
        answered += part.num_rows
    if not answered:
        raise PladError(
            f"data.responses: no row of {job.config['path']} belongs to a prompt of this experiment (last: "
            f"{answers.last_unknown}); prompt_id, or the prompt text as data.prompt_format makes it, must be the same"
        )
    lost = {"no_such_prompt": answers.unknown, "no_response": answers.missing()}
    dropped = {reason: n for reason, n in lost.items() if n}
    return Outcome(answered + sum(dropped.values()), answered, dropped, {"prompts": len(answers.samples)})


def run_pairs(job: Job) -> Outcome:
    """Finished pairs: TRL's ``prompt, chosen, rejected`` as text, or all three as messages.

    Optional: ``prompt_id``, ``chosen_score`` and ``rejected_score``, ``chosen_finish_reason`` and
    ``rejected_finish_reason`` (else ``stop``), ``order`` (else ``pseudo``). Dropped: what pairs.build drops, and pairs
    whose prompt is in the dev or test split (``in_dev``, ``in_test``). Logs the summary that pairs.build logs.
    """
    prompts, defaults = _Prompts(job), Pairs.model_validate({})
    chat = is_messages(next(_records(job, "data.pairs")).get("prompt", PAIRS))
    held_out: Counter[str] = Counter()

    def usable() -> Iterator[dict[str, Any]]:
        for number, record in enumerate(_records(job, "data.pairs")):
            row = _pair(record, prompts, number)
            if (row["messages"] is not None) != chat:
                raise PladError(
                    f"{record.where}: text and messages are mixed; give all pairs as text or all as messages"
                )
            split = prompts.held_out(row["prompt_id"], row["prompt"])
            if split:
                held_out[f"in_{split}"] += 1
            else:
                yield row

    summary = build.write(job.out, _tables(usable(), JOINED), defaults, chat)
    summary |= {"chosen": "imported chosen", "rejected": "imported rejected"}
    logger.log(logging.WARNING if summary["warnings"] else logging.INFO, "%s", stats.render(summary))
    dropped = summary["dropped"] | dict(held_out)
    if not summary["pairs"]:
        raise PladError(f"data.pairs: no pair of {job.config['path']} can be used; dropped: {dropped}")
    return Outcome(summary["prompts"] + sum(held_out.values()), summary["pairs"], dropped, summary)


class _Prompts:
    """Ids of the experiment's prompts by id and by text (surrounding whitespace apart)."""

    def __init__(self, job: Job):
        self.split: dict[str, str] = {}
        self.by_text: dict[str, list[str]] = {}
        for row in job.inputs["prompts"].rows(["prompt_id", "split", "prompt"]):
            self.split[row["prompt_id"]] = row["split"]
            self.by_text.setdefault(short_hash(row["prompt"].strip()), []).append(row["prompt_id"])

    def find(self, record: Record) -> list[str]:
        """Ids of the prompts that ``record`` is about: none, one, or all of one text."""
        if record.values.get("prompt_id") is not None:
            prompt_id = str(record.values["prompt_id"])
            return [prompt_id] if prompt_id in self.split else []
        if "prompt" not in record.values:
            raise PladError(
                f"{record.where}: no column prompt_id or prompt to match it by; columns there are: "
                f"{', '.join(record.values)}"
            )
        return self.with_text(prompt_of(record, PAIRS)[0])

    def with_text(self, text: str) -> list[str]:
        return self.by_text.get(short_hash(text.strip()), [])

    def held_out(self, prompt_id: str, text: str) -> str | None:
        """``dev`` or ``test`` when a prompt of that id or text is there."""
        found = {self.split.get(name) for name in (prompt_id, *self.with_text(text))}
        return next((split for split in ("test", "dev") if split in found), None)


@dataclass
class _Answers:
    """RESPONSE rows of records, and what there is to say of all records read so far."""

    prompts: _Prompts
    seen: dict[str, str] = field(default_factory=dict)  # where each rid came from
    samples: Counter[str] = field(default_factory=Counter)  # of each prompt
    unknown: int = 0
    last_unknown: str = ""

    def rows(self, records: Iterator[Record]) -> Iterator[dict[str, Any]]:
        for record in records:
            ids = self.prompts.find(record)
            if not ids:
                self.unknown, self.last_unknown = self.unknown + 1, record.where
            for prompt_id in ids:
                row = _response(record, prompt_id, self.prompts.split[prompt_id], self.samples[prompt_id])
                self.samples[prompt_id] += 1
                if row["rid"] in self.seen:
                    raise PladError(
                        f"{record.where}: the same prompt, temperature and sample as {self.seen[row['rid']]}"
                    )
                self.seen[row["rid"]] = record.where
                yield row

    def missing(self) -> int:
        """Distill prompts without a response."""
        return sum(split == "distill" and i not in self.samples for i, split in self.prompts.split.items())


def _tables(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """``rows`` in runs that fit into memory; the last one has less, perhaps none."""
    length = ROWS
    while length == ROWS:
        part = list(islice(rows, ROWS))
        length = len(part)
        yield pa.Table.from_pylist(part, schema)


def _records(job: Job, option: str) -> Iterator[Record]:
    return reading.records(reading.expand(job.config["path"], option))


def _response(record: Record, prompt_id: str, split: str, count: int) -> dict[str, Any]:
    text = text_of(record, "response", "data.responses")
    temperature, sample = _number(record, "temperature", 0.0), _number(record, "sample", float(count))
    if not sample.is_integer() or sample < 0:
        raise PladError(f"{record.where} column 'sample': expected 0, 1, 2, …, found {sample:g}")
    return {
        "rid": f"teacher:{prompt_id}:{temperature:g}:{sample:g}",
        "policy": "teacher",
        "prompt_id": prompt_id,
        "split": split,
        "temperature": temperature,
        "sample": int(sample),
        "text": text,
        "token_ids": [],
        "finish_reason": _finish_reason(record, "finish_reason"),
        "num_prompt_tokens": 0,
        "num_tokens": 0,
        "num_reasoning_tokens": 0,
    }


def _pair(record: Record, prompts: _Prompts, number: int) -> dict[str, Any]:
    prompt, messages = prompt_of(record, PAIRS)
    known = prompts.find(record)
    given = record.values.get("prompt_id")
    row = {"prompt": prompt, "messages": messages, "order": record.values.get("order") or "pseudo"}
    row["prompt_id"] = str(given) if given is not None else known[0] if known else short_hash(prompt, messages)
    for side in build.SIDES:
        cell = record.get(side, PAIRS)
        if is_messages(cell) != (messages is not None):
            raise PladError(f"{record.where}: prompt and {side} must be both text or both messages")
        score = _number(record, f"{side}_score", math.nan)
        row |= {
            f"{side}_text": text_of(record, side, "data.pairs"),
            f"{side}_rid": f"imported:{number}:{side}",
            f"{side}_finish_reason": _finish_reason(record, f"{side}_finish_reason"),
            f"{side}_score": None if math.isnan(score) else score,
        }
    return row


def _number(record: Record, column: str, default: float) -> float:
    value = record.values.get(column)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PladError(f"{record.where} column {column!r}: expected a number, found {value!r}")
    return float(value)


def _finish_reason(record: Record, column: str) -> str:
    value = record.values.get(column) or "stop"
    if value not in FINISH_REASONS:
        raise PladError(f"{record.where} column {column!r}: expected {' or '.join(FINISH_REASONS)}, found {value!r}")
    return value
