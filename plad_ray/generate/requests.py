"""The request table: one immutable row per (policy, prompt, temperature, sample), built before any engine starts.

``rid`` is ``<prompt_id>:<policy>:<temperature>:<sample>``; which weights a policy has is in the artifact's digest.
``seed`` is the first 31 bits of ``sha256("plad-request/1|<seed>|<role>|<prompt_id>|<temperature>|<sample>")``: it holds the
role, not the policy, so the distilled students of a comparison draw the same random numbers (paired comparison).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow.dataset as pads

from plad_ray.artifacts import Artifact
from plad_ray.errors import PladError
from plad_ray.generate.pools import EnginePool
from plad_ray.generate.tasks import BLOCKS_PER_FILE, write_requests
from plad_ray.models.tokens import encode_prompts
from plad_ray.slices import Places


@dataclass
class Work:
    """Requests in all, those left by pool name, and where the files of the latter lie."""

    total: int = 0
    left: dict[str, int] = field(default_factory=dict)
    folder: str = field(default_factory=lambda: f"work/remaining-{uuid.uuid4().hex[:8]}")

    @property
    def done(self) -> int:
        return self.total - sum(self.left.values())


def temperature_text(temperature: float) -> str:
    """Shortest stable text of a temperature: 0.7 → ``0.7``, 1.0 → ``1``."""
    return f"{temperature:.12g}"


def request_id(prompt_id: str, policy: str, temperature: float, sample: int) -> str:
    return f"{prompt_id}:{policy}:{temperature_text(temperature)}:{sample}"


def request_seed(seed: int, role: str, prompt_id: str, temperature: float, sample: int) -> int:
    """A number in [0, 2³¹) that depends on nothing but its arguments, on every machine and in every version."""
    text = f"plad-request/1|{seed}|{role}|{prompt_id}|{temperature_text(temperature)}|{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def pool_requests(
    prompts: Artifact, pool: EnginePool, draws: Mapping[str, list[dict[str, Any]]], seed: int
) -> Iterator[dict[str, Any]]:
    """Every request of ``pool``, those of one prompt side by side (engines reuse the prefix).

    ``draws`` lists by policy what is drawn: ``split``, ``temperatures``, ``samples``, ``limit`` (first prompts of the
    split). Raises PladError for a split without prompts, a repeated prompt_id, or a prompt that leaves no room for
    ``generate.max_tokens``.
    """
    columns = ["prompt_id", "prompt", "messages"]
    splits = list(dict.fromkeys(draw["split"] for policy_draws in draws.values() for draw in policy_draws))
    for split in splits:
        if not len(Places(prompts, split)):
            raise PladError(f"split {split} of {prompts.path} has no prompts to generate for")
        index = 0
        for batch in prompts.batches(columns, pads.field("split") == split):
            rows = batch.to_pylist()
            columns_of = _encoded(rows, _asked(draws, split, index, len(rows)), pool)
            for place, row in enumerate(rows):
                mine = {policy: found[place] for policy, found in columns_of.items() if place < len(found)}
                yield from _prompt_requests(row, mine, index + place, split, pool, draws, seed)
            index += len(rows)


def _asked(draws: Mapping[str, list[dict[str, Any]]], split: str, start: int, rows: int) -> dict[str, int]:
    """How many of ``rows`` prompts, from number ``start`` on, each policy is asked."""
    limits = {policy: [draw["limit"] for draw in mine if draw["split"] == split] for policy, mine in draws.items()}
    return {
        policy: rows if None in mine else min(rows, max([0, *(limit - start for limit in mine)]))
        for policy, mine in limits.items()
    }


def _encoded(rows: list[dict[str, Any]], asked: dict[str, int], pool: EnginePool) -> dict[str, list[dict[str, Any]]]:
    """By policy the columns of at least the prompts that it is asked, encoded once for all policies of a tokenizer."""
    tokenizers = {policy: None if pool.model.api is not None else pool.tokenizer(policy) for policy in asked}
    columns = {}
    for tokenizer in dict.fromkeys(tokenizers.values()):
        most = max(asked[policy] for policy, own in tokenizers.items() if own is tokenizer)
        columns[tokenizer] = prompt_columns(rows[:most], tokenizer, pool)
    return {policy: columns[tokenizer] for policy, tokenizer in tokenizers.items()}


def _prompt_requests(
    row: dict[str, Any],
    columns_of: dict[str, dict[str, Any]],
    index: int,
    split: str,
    pool: EnginePool,
    draws: Mapping[str, list[dict[str, Any]]],
    seed: int,
) -> Iterator[dict[str, Any]]:
    for policy, policy_draws in draws.items():
        wanted = {
            (float(temperature), sample): None
            for draw in policy_draws
            if draw["split"] == split and (draw["limit"] is None or index < draw["limit"])
            for temperature in draw["temperatures"]
            for sample in range(draw["samples"])
        }
        for temperature, sample in wanted:
            yield {
                "rid": request_id(row["prompt_id"], policy, temperature, sample),
                "policy": policy,
                "prompt_id": row["prompt_id"],
                "split": split,
                "temperature": temperature,
                "sample": sample,
                "seed": request_seed(seed, pool.role, row["prompt_id"], temperature, sample),
                **columns_of[policy],
                "verify": False,
            }


def prompt_columns(rows: list[dict[str, Any]], tokenizer: Any, pool: EnginePool) -> list[dict[str, Any]]:
    """Prompts as the engine gets them: token ids, or what ``model.api.endpoint`` takes (tokens are counted there)."""
    nothing: dict[str, Any] = {"prompt_token_ids": None, "prompt_text": None, "prompt_messages": None}
    api = pool.model.api
    if api is None:
        encoded = prompt_ids(rows, tokenizer, pool)
        return [{**nothing, "prompt_token_ids": ids, "num_prompt_tokens": len(ids)} for ids in encoded]
    if api.endpoint == "completions":
        return [{**nothing, "prompt_text": row["prompt"], "num_prompt_tokens": 0} for row in rows]
    messages = [row.get("messages") or [{"role": "user", "content": row["prompt"]}] for row in rows]
    return [{**nothing, "prompt_messages": said, "num_prompt_tokens": 0} for said in messages]


def prompt_ids(rows: list[dict[str, Any]], tokenizer: Any, pool: EnginePool) -> list[list[int]]:
    """Token ids of prompt rows. Raises PladError when those of one and the response (an encoder-decoder: they alone) do not
    fit ``model.max_length``."""
    encoded = encode_prompts(tokenizer, rows, pool.model, pool.seq2seq)
    room, max_tokens = pool.model.max_length, pool.generate.max_tokens
    for row, ids in zip(rows, encoded, strict=True):
        if not pool.seq2seq and len(ids) + max_tokens > room:
            raise PladError(
                f"prompt {row['prompt_id']!r} has {len(ids)} tokens; with generate.max_tokens {max_tokens} that exceeds "
                f"{pool.role}.model.max_length {room}. Raise {pool.role}.model.max_length, set "
                f"{pool.role}.model.max_prompt_tokens to at most {room - max_tokens} to cut prompts on the left, or set "
                "data.max_prompt_chars to drop long ones"
            )
    return encoded


def mark_verified(requests: Iterable[dict[str, Any]], policies: Iterable[str], each: int) -> Iterator[dict[str, Any]]:
    """Set ``verify`` on the first ``each`` requests of every policy of ``policies``."""
    left = dict.fromkeys(policies, each)
    for request in requests:
        if left.get(request["policy"], 0) > 0:
            left[request["policy"]] -= 1
            request = {**request, "verify": True}
        yield request


def write(requests: Iterable[dict[str, Any]], out: Artifact, folder: str, rows_per_block: int) -> int:
    """Stream requests to files of blocks under ``folder`` of ``out``; how many there were."""
    total = 0
    size = BLOCKS_PER_FILE * rows_per_block
    for number, group in groupby(enumerate(requests), key=lambda item: item[0] // size):
        rows = [row for _, row in group]
        write_requests(out, folder, number, rows, rows_per_block)
        total += len(rows)
    return total
