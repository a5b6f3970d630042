"""Text made elsewhere as artifacts: teacher responses (RESPONSE rows) and finished preference pairs (TRL columns)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.config import Pairs
from plad_ray.data import reading
from plad_ray.data.rows import Record, is_messages, prompt_of, short_hash, text_of
from plad_ray.errors import PladError
from plad_ray.pairs import build, stats
from plad_ray.records import MESSAGES, RESPONSE
from plad_ray.stages import Job, Outcome

logger = logging.getLogger("plad_ray")
FINISH_REASONS = ("stop", "length")
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
    prompts = _Prompts(job)
    answered: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    samples: Counter[str] = Counter()
    unknown, last = 0, ""
    for record in _records(job, "data.responses"):
        ids = prompts.find(record)
        unknown += not ids
        last = last if ids else record.where
        for prompt_id in ids:
            row = _response(record, prompt_id, prompts.split[prompt_id], samples[prompt_id])
            samples[prompt_id] += 1
            if row["rid"] in seen:
                raise PladError(f"{record.where}: the same prompt, temperature and sample as {seen[row['rid']]}")
            seen[row["rid"]] = record.where
            answered.append(row)
    if not answered:
        raise PladError(
            f"data.responses: no row of {job.config['path']} belongs to a prompt of this experiment (last: {last}); "
            "prompt_id, or the prompt text as data.prompt_format makes it, must be the same"
        )
    missing = sum(split == "distill" and i not in samples for i, split in prompts.split.items())
    job.out.write_rows(pa.Table.from_pylist(answered, RESPONSE))
    dropped = {reason: n for reason, n in (("no_such_prompt", unknown), ("no_response", missing)) if n}
    return Outcome(len(answered) + unknown + missing, len(answered), dropped, {"prompts": len(samples)})


def run_pairs(job: Job) -> Outcome:
    """Finished pairs: TRL's ``prompt, chosen, rejected`` as text, or all three as messages.

    Optional: ``prompt_id``, ``chosen_score`` and ``rejected_score``, ``chosen_finish_reason`` and
    ``rejected_finish_reason`` (else ``stop``), ``order`` (else ``pseudo``). Dropped: what pairs.build drops, and pairs
    whose prompt is in the dev or test split (``in_dev``, ``in_test``). Logs the summary that pairs.build logs.
    """
    prompts = _Prompts(job)
    rows, chats = [], set()
    held_out: Counter[str] = Counter()
    for number, record in enumerate(_records(job, "data.pairs")):
        row, chat = _pair(record, prompts, number)
        chats.add(chat)
        if len(chats) > 1:
            raise PladError(f"{record.where}: text and messages are mixed; give all pairs as text or all as messages")
        split = prompts.held_out(row["prompt_id"], row["prompt"])
        if split:
            held_out[f"in_{split}"] += 1
        else:
            rows.append(row)
    joined = pa.Table.from_pylist(rows, JOINED)
    defaults = Pairs.model_validate({})
    reason = build.drop_reasons(joined, defaults)
    kept = joined.filter(pc.is_null(reason))
    summary = stats.summary(stats.facts(joined, reason), defaults)
    summary |= {"chosen": "imported chosen", "rejected": "imported rejected"}
    logger.log(logging.WARNING if summary["warnings"] else logging.INFO, "%s", stats.render(summary))
    dropped = summary["dropped"] | dict(held_out)
    if not kept.num_rows:
        raise PladError(f"data.pairs: no pair of {job.config['path']} can be used; dropped: {dropped}")
    table = build.to_trl(kept, chats.pop())
    job.out.write_rows(table)
    return Outcome(len(rows) + sum(held_out.values()), table.num_rows, dropped, summary)


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


def _pair(record: Record, prompts: _Prompts, number: int) -> tuple[dict[str, Any], bool]:
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
    return row, messages is not None


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
