"""The request table: one immutable row per (policy, prompt, temperature, sample). How many there are is known at once.

``rid`` is ``<prompt_id>:<policy>:<temperature>:<sample>``; which weights a policy has is in the artifact's digest.
``seed`` is the first 31 bits of ``sha256("plad-request/1|<seed>|<role>|<prompt_id>|<temperature>|<sample>")``: it holds the
role, not the policy, so the distilled students of a comparison draw the same random numbers (paired comparison).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import pyarrow.dataset as pads

from plad_ray.artifacts import BATCH_ROWS, Artifact
from plad_ray.errors import PladError
from plad_ray.generate.pools import EnginePool
from plad_ray.generate.tasks import BLOCKS_PER_FILE, write_requests
from plad_ray.models.tokens import encode_prompts
from plad_ray.slices import Places

#: prompts that one policy is asked before the next one's turn
TURN_PROMPTS = 1024


@dataclass
class Work:
    """Requests in all, those left by pool name, and where the files of the latter lie. ``first``: the number of each pool's
    first request in the stage's request table."""

    total: int = 0
    left: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    folder: str = field(default_factory=lambda: f"work/remaining-{uuid.uuid4().hex[:8]}")

    @property
    def done(self) -> int:
        return self.total - sum(self.left.values())

    def files(self, pool: EnginePool) -> str:
        """The folder of the pool's request files."""
        return f"{self.folder}/{pool.name}"


def temperature_text(temperature: float) -> str:
    """Shortest stable text of a temperature: 0.7 → ``0.7``, 1.0 → ``1``."""
    return f"{temperature:.12g}"


def request_id(prompt_id: str, policy: str, temperature: float, sample: int) -> str:
    return f"{prompt_id}:{policy}:{temperature_text(temperature)}:{sample}"


def request_seed(seed: int, role: str, prompt_id: str, temperature: float, sample: int) -> int:
    """A number in [0, 2³¹) that depends on nothing but its arguments, on every machine and in every version."""
    text = f"plad-request/1|{seed}|{role}|{prompt_id}|{temperature_text(temperature)}|{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def split_sizes(prompts: Artifact, draws: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Prompts of each split that ``draws`` name. Raises PladError for a split without prompts or a repeated prompt_id."""
    sizes = {split: len(Places(prompts, split)) for split in dict.fromkeys(draw["split"] for draw in draws)}
    for split, size in sizes.items():
        if not size:
            raise PladError(f"split {split} of {prompts.path} has no prompts to generate for")
    return sizes


def count_requests(draws: Mapping[str, list[dict[str, Any]]], sizes: Mapping[str, int]) -> int:
    """How many ``pool_requests`` makes of ``draws``."""
    reach: dict[tuple[str, str, float, int], int] = {}  # the first so many prompts are asked it
    for policy, policy_draws in draws.items():
        for draw in policy_draws:
            prompts = sizes[draw["split"]] if draw["limit"] is None else min(draw["limit"], sizes[draw["split"]])
            for temperature, sample in product(draw["temperatures"], range(draw["samples"])):
                asked = (policy, draw["split"], float(temperature), sample)
                reach[asked] = max(prompts, reach.get(asked, 0))
    return sum(reach.values())


def pool_requests(
    prompts: Artifact, pool: EnginePool, draws: Mapping[str, list[dict[str, Any]]], seed: int
) -> Iterator[dict[str, Any]]:
    """Every request of ``pool``, with the row of its ``prompt``, which ``encoded`` turns into what the engine gets.

    Those of one prompt and policy stand side by side, as engines reuse the prefix, and policies take turns of
    ``TURN_PROMPTS`` prompts: an engine runs requests of a few adapters at one time only (vLLM's ``max_loras``), and would be
    nearly empty with every prompt asked of all.

    ``draws`` lists by policy what is drawn: ``split``, ``temperatures``, ``samples``, ``limit`` (first prompts of the
    split).
    """
    columns = ["prompt_id", "prompt", "messages"]
    splits = list(dict.fromkeys(draw["split"] for policy_draws in draws.values() for draw in policy_draws))
    for split in splits:
        batches = prompts.batches(columns, pads.field("split") == split)
        rows = enumerate(row for batch in batches for row in batch.to_pylist())
        while turn := list(islice(rows, TURN_PROMPTS if len(draws) > 1 else 1)):
            for policy in draws:
                for index, row in turn:
                    yield from _prompt_requests(row, index, split, pool, policy, draws[policy], seed)


def encoded(requests: Iterable[dict[str, Any]], pool: EnginePool) -> Iterator[dict[str, Any]]:
    """``requests`` with the columns of their prompts, each encoded once for all policies of a tokenizer, a few thousand at a
    time. Raises PladError for a prompt that leaves no room for ``generate.max_tokens``."""
    tokenizers = {name: None if pool.model.api is not None else pool.tokenizer(name) for name in pool.policies}
    known: dict[Any, dict[tuple[str, str], dict[str, Any]]] = {tokenizer: {} for tokenizer in tokenizers.values()}
    held = TURN_PROMPTS if len(tokenizers) > 1 else 0  # the next policy's turn is of the same prompts
    rest = iter(requests)
    while batch := list(islice(rest, BATCH_ROWS)):
        new: dict[Any, dict[tuple[str, str], dict[str, Any]]] = {tokenizer: {} for tokenizer in known}
        for request in batch:
            tokenizer, key = tokenizers[request["policy"]], (request["split"], request["prompt_id"])
            if key not in known[tokenizer]:
                new[tokenizer][key] = request["prompt"]
        for tokenizer, rows in new.items():
            known[tokenizer] |= zip(rows, prompt_columns(list(rows.values()), tokenizer, pool), strict=True)
        for request in batch:
            key = request["split"], request.pop("prompt")["prompt_id"]
            yield {**request, **known[tokenizers[request["policy"]]][key]}
        for columns in known.values():
            for key in list(islice(columns, max(0, len(columns) - held))):
                del columns[key]


def _prompt_requests(
    row: dict[str, Any],
    index: int,
    split: str,
    pool: EnginePool,
    policy: str,
    draws: list[dict[str, Any]],
    seed: int,
) -> Iterator[dict[str, Any]]:
    wanted = {
        (float(temperature), sample): None
        for draw in draws
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
            "prompt": row,
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


def write(requests: Iterable[dict[str, Any]], out: Artifact, folder: str, rows_per_block: int) -> Iterator[int]:
    """Stream requests to files of blocks under ``folder`` of ``out``; how many there are in each, as it is written."""
    rest, number = iter(requests), 0
    while count := len(rows := list(islice(rest, BLOCKS_PER_FILE * rows_per_block))):
        write_requests(out, folder, number, rows, rows_per_block)
        rows.clear()  # or they would be held until somebody wants the next file
        yield count
        number += 1
