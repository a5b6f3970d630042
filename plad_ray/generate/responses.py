"""The row contract behind every engine: generated ids or text become a response row, a failure becomes an error row."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from plad_ray import records
from plad_ray.generate.pools import EnginePool
from plad_ray.models.tokens import decode, encode_response

#: What verification reads: the ids the engine was given and sampled (with EOS), and the log-prob it gave each sample.
SAMPLED = pa.struct(
    [("prompt_ids", pa.list_(pa.int32())), ("ids", pa.list_(pa.int32())), ("logprobs", pa.list_(pa.float64()))]
)
#: A finished request in a part file: a response, or an ``error`` and empty text. ``sampled`` where a request asked.
PART = pa.schema([("number", pa.int64()), *records.RESPONSE, ("error", pa.string()), ("sampled", SAMPLED)])


def part_row(pools: Mapping[str, EnginePool], answer: Mapping[str, Any]) -> dict[str, Any]:
    """PART row of an engine's ANSWER row; ``pools`` by policy."""
    names = ("number", "rid", "policy", "prompt_id", "split", "temperature", "sample", "num_prompt_tokens")
    common = {name: answer[name] for name in names}
    error = answer["error"]
    if error:
        empty: dict[str, Any] = {
            "text": "",
            "token_ids": [],
            "finish_reason": None,
            "num_tokens": answer.get("num_generated_tokens") or 0,  # an API may have been paid for it
            "num_reasoning_tokens": 0,
        }
        return {**common, **empty, "error": error, "sampled": None}
    if answer["ids"] is None:
        return {**common, **_text_columns(answer, pools[answer["policy"]]), "error": None, "sampled": None}
    policy, ids, sampled = answer["policy"], answer["ids"], None
    if answer["verify"]:
        sampled = {"prompt_ids": answer["prompt_token_ids"], "ids": ids, "logprobs": answer["logprobs"]}
    pool = pools[policy]
    settings = pool.generate
    text, kept, reason, reasoning = finish(
        ids, pool.tokenizer(policy), pool.eos(policy), settings.stop, settings.strip_reasoning, pool.seq2seq
    )
    return {
        **common,
        "text": text,
        "token_ids": kept,
        "finish_reason": reason,
        "num_tokens": len(kept),
        "num_reasoning_tokens": reasoning,
        "error": None,
        "sampled": sampled,
    }


def _text_columns(answer: Mapping[str, Any], pool: EnginePool) -> dict[str, Any]:
    """The response columns of an answer that is text. Reasoning tokens are those that the API reports, or, where the
    marks are in the text, the reasoning's share of its characters if that is more: there is no tokenizer to count with."""
    settings, whole = pool.generate, answer["text"]
    text, reason, thought = finish_text(whole, answer["finish_reason"], settings.stop, settings.strip_reasoning)
    generated = answer["num_generated_tokens"]
    reasoning = max(answer["num_reasoning_tokens"], round(generated * thought / max(1, len(whole))))
    return {
        "text": text,
        "token_ids": [],
        "finish_reason": reason,
        "num_tokens": generated - reasoning,
        "num_reasoning_tokens": reasoning,
    }


def finish_text(
    text: str, reason: str, stop: tuple[str, ...] = (), reasoning: tuple[str, str] | None = None
) -> tuple[str, str, int]:
    """(text, finish reason, characters of reasoning) of generated ``text``; the rules are those of ``finish``."""
    thought = 0
    if reasoning is not None:
        opening, closing = reasoning
        before, found, after = text.partition(closing)
        if not found and opening in text:
            return "", "length", len(text)
        if found:
            thought, text = len(before) + len(closing), after.lstrip()
    places = [place for place in (text.find(mark) for mark in stop) if place >= 0]
    return (text[: min(places)], "stop", thought) if places else (text, reason, thought)


def finish(
    ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    eos: tuple[int, ...],
    stop: tuple[str, ...] = (),
    reasoning: tuple[str, str] | None = None,
    seq2seq: bool = False,
) -> tuple[str, list[int], str, int]:
    """(text, token ids without EOS, finish reason, reasoning tokens) of generated ``ids``.

    ``stop`` cuts the text at the first of its strings. ``reasoning`` marks a block that is cut out; one that never closes
    leaves nothing, since the answer never came.
    """
    ended = bool(ids) and ids[-1] in eos
    kept = list(ids[:-1] if ended else ids)
    reason = "stop" if ended else "length"
    thought = 0
    if reasoning is not None:
        cut = _reasoning_end(kept, tokenizer, *reasoning)
        if cut is None:
            return "", [], "length", len(kept)
        thought, kept = cut, kept[cut:]
    text = decode(tokenizer, kept, seq2seq)
    wanted = text.lstrip() if thought else text
    places = [place for place in (wanted.find(mark) for mark in stop) if place >= 0]
    if places:
        wanted, reason = wanted[: min(places)], "stop"
    if wanted != text:
        kept = _ids_of(wanted, kept, tokenizer, seq2seq)
    return wanted, kept, reason, thought


def _reasoning_end(ids: list[int], tokenizer: PreTrainedTokenizerBase, opening: str, closing: str) -> int | None:
    """How many ids the reasoning block takes (0: there is none; None: it does not close). A block may begin in the
    prompt: templates that open it there leave only the closing mark in the response."""
    whole = _raw(ids, tokenizer)
    if closing not in whole:
        return None if opening in whole else 0
    return bisect_left(range(len(ids) + 1), True, key=lambda n: closing in _raw(ids[:n], tokenizer))


def _raw(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Text with special tokens, as the marks are often special."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _ids_of(text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, seq2seq: bool) -> list[int]:
    """The first ids that decode to ``text``, else (a token straddles the cut) its own tokens."""
    length = bisect_left(range(len(ids) + 1), True, key=lambda n: len(decode(tokenizer, ids[:n], seq2seq)) >= len(text))
    if length <= len(ids) and decode(tokenizer, ids[:length], seq2seq) == text:
        return ids[:length]
    return encode_response(tokenizer, text, None, seq2seq)
