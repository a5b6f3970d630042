"""From artifact tables to training rows: tokens once, before the first step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from plad_ray.config import Model, SplitName
from plad_ray.errors import PladError
from plad_ray.models.tokens import encode_prompt, encode_response, eos_ids
from plad_ray.objectives import Objective
from plad_ray.records import response_text
from plad_ray.train.layout import Row


def reference_table(
    prompts: pa.Table, split: SplitName, limit: int | None, needed: bool = True
) -> tuple[pa.Table, dict[str, int]]:
    """Rows of ``split`` that have a reference (all of them when it is not ``needed``), at most ``limit`` (a prefix), and
    the rest counted by reason."""
    splits, references = prompts.column("split").to_pylist(), prompts.column("reference").to_pylist()
    keep: list[int] = []
    dropped = Counter[str]()
    for index, (found, reference) in enumerate(zip(splits, references, strict=True)):
        reason = (
            "other_split"
            if found != split
            else "no_reference"
            if needed and not reference
            else "over_limit"
            if limit is not None and len(keep) >= limit
            else None
        )
        if reason is None:
            keep.append(index)
        else:
            dropped[reason] += 1
    if not keep:
        raise PladError(
            f"no prompt of split {split} has a reference, so there is nothing to train on (rows: {dict(dropped)})"
            if needed
            else f"no prompt is of split {split}, so there is nothing to train on (rows: {dict(dropped)})"
        )
    return prompts.take(keep), dict(dropped)


def of_first_prompts(table: pa.Table, prompts: pa.Table, count: int) -> tuple[pa.Table, dict[str, int]]:
    """Rows of the first ``count`` distill prompts, whatever table they are in, and the number of the others."""
    first = prompts.filter(pc.equal(prompts["split"], "distill"))["prompt_id"].slice(0, count)
    kept = table.filter(pc.is_in(table["prompt_id"], value_set=first.combine_chunks()))
    if not kept.num_rows:
        raise PladError(f"distill.prompts {count}: the first {count} distill prompts have no row to train on")
    return kept, {"other_prompt": table.num_rows - kept.num_rows}


def first_rows(table: pa.Table, limit: int | None) -> tuple[pa.Table, dict[str, int]]:
    """The first ``limit`` rows of a table of pairs or lists."""
    if table.num_rows == 0:
        raise PladError("the pair table is empty: every pair was dropped when it was built (see its manifest)")
    kept = table if limit is None else table.slice(0, limit)
    over = table.num_rows - kept.num_rows
    return kept, {"over_limit": over} if over else {}


def rows_of(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, model: Model, objective: Objective, seq2seq: bool = False
) -> list[Row]:
    """Training rows of whatever ``objective`` trains on; ``seq2seq`` when the student is an encoder-decoder."""
    if objective.trains_on == "references":
        return reference_rows(table, tokenizer, model, seq2seq)
    if objective.trains_on == "lists":
        return list_rows(table, tokenizer, model, objective, seq2seq)
    return pair_rows(table, tokenizer, model, objective, seq2seq)


def reference_rows(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, model: Model, seq2seq: bool = False
) -> list[Row]:
    """Prompt and reference (where there is one), EOS appended: a reference is a finished text."""
    eos = eos_ids(tokenizer, model)[0]
    rows = []
    for record in table.to_pylist():
        prompt = encode_prompt(tokenizer, record, model, seq2seq)
        texts = [record["reference"]] if record["reference"] else []
        responses = [encode_response(tokenizer, text, eos, seq2seq) for text in texts]
        rows.append(_row(prompt, responses, [0.0] * len(texts), model, seq2seq))
    return rows


def pair_rows(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, model: Model, objective: Objective, seq2seq: bool = False
) -> list[Row]:
    """Prompt, chosen and rejected (or chosen alone, as the objective asks); truncated text gets no EOS."""
    eos = eos_ids(tokenizer, model)[0]
    sides = ("chosen",) if objective.trains_on == "chosen" else ("chosen", "rejected")
    rows = []
    for record in table.to_pylist():
        prompt = encode_prompt(tokenizer, _prompt(record, model), model, seq2seq)
        texts = [response_text(record[side]) for side in sides]
        ended = [
            record[f"{side}_finish_reason"] != "length" for side in sides
        ]  # none recorded: an imported, whole text
        candidates = [
            encode_response(tokenizer, t, eos if e else None, seq2seq) for t, e in zip(texts, ended, strict=True)
        ]
        scores = [record[f"{side}_score"] for side in sides]
        rows.append(_row(prompt, candidates, _checked(scores, record, objective), model, seq2seq))
    return rows


def list_rows(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, model: Model, objective: Objective, seq2seq: bool = False
) -> list[Row]:
    """Prompt and every candidate with its score (``records.list_schema``); truncated text gets no EOS."""
    eos = eos_ids(tokenizer, model)[0]
    rows = []
    for record in table.to_pylist():
        prompt = encode_prompt(tokenizer, _prompt(record, model), model, seq2seq)
        texts = [response_text(text) for text in record["candidates"]]
        ended = [reason != "length" for reason in record["finish_reasons"]]
        candidates = [
            encode_response(tokenizer, t, eos if e else None, seq2seq) for t, e in zip(texts, ended, strict=True)
        ]
        rows.append(_row(prompt, candidates, _checked(record["scores"], record, objective), model, seq2seq))
    return rows


def check_room(rows: list[Row], max_new_tokens: int, model: Model) -> None:
    """PladError when a fresh sample may not fit behind a prompt within ``model.max_length``."""
    longest = max(len(row.prompt) for row in rows)
    if longest + max_new_tokens > model.max_length:
        raise PladError(
            f"a prompt of {longest} tokens and a fresh sample of generate.max_tokens {max_new_tokens} exceed "
            f"student.model.max_length {model.max_length}: raise it, or set student.model.max_prompt_tokens to at most "
            f"{model.max_length - max_new_tokens} to cut prompts on the left"
        )


def _prompt(record: dict[str, Any], model: Model) -> dict[str, Any]:
    prompt = record["prompt"]
    if isinstance(prompt, str):
        return {"prompt": prompt, "messages": None, "prompt_id": record["prompt_id"]}
    if model.template != "chat":
        raise PladError(f"pair {record['prompt_id']} holds chat messages, but model.template is plain; set it to chat")
    return {"prompt": "", "messages": prompt, "prompt_id": record["prompt_id"]}


def _checked(scores: list[float | None], record: dict[str, Any], objective: Objective) -> list[float]:
    """``scores``, 0 for those that are not there; raises PladError when the objective needs them."""
    if objective.needs_scores and None in scores:
        raise PladError(
            f"the texts of prompt {record['prompt_id']} have no score, and the objective needs one: set scorer.name"
        )
    return [0.0 if score is None else float(score) for score in scores]


def _row(
    prompt: list[int], candidates: list[list[int]], scores: list[float], model: Model, seq2seq: bool = False
) -> Row:
    """Candidates are cut at ``model.max_length`` (and so lose their EOS); a decoder of its own has all of it for them."""
    room = model.max_length - (0 if seq2seq else len(prompt))
    cut = tuple(np.array(c[:room], np.int32) for c in candidates)
    return Row(np.array(prompt, np.int32), cut, tuple(scores))
