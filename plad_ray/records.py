"""Row types that travel between stages, as Arrow schemas.

No column is called ``margin``, which TRL's RewardTrainer would consume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

#: One row a prompt. ``prompt`` is always readable text; ``messages`` is set when the data is conversational, and then
#: it, not ``prompt``, is what the chat template renders. ``group`` keeps related rows in one split.
PROMPT = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("split", pa.string()),  # train | distill | dev | test
        ("group", pa.string()),
        ("prompt", pa.string()),
        ("messages", MESSAGES),
        ("reference", pa.string()),
    ]
)

#: One immutable row per (policy, prompt, temperature, sample). ``rid`` is unique, ``seed`` a hash of it. The prompt is
#: token ids, or for a model behind an API text or messages; the two other columns are null.
REQUEST = pa.schema(
    [
        ("rid", pa.string()),
        ("policy", pa.string()),
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("temperature", pa.float64()),
        ("sample", pa.int32()),
        ("seed", pa.int64()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("prompt_text", pa.string()),
        ("prompt_messages", MESSAGES),
    ]
)

#: One row a request. ``finish_reason`` is ``stop`` (EOS or a stop token ended it) or ``length``. ``token_ids`` are the
#: generating tokenizer's, without EOS; none where the model is behind an API, whose counts are those that it reported.
RESPONSE = pa.schema(
    [
        ("rid", pa.string()),
        ("policy", pa.string()),
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("temperature", pa.float64()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("num_tokens", pa.int32()),
        ("num_reasoning_tokens", pa.int32()),
    ]
)

#: Side table of requests that failed.
ERROR = pa.schema([("rid", pa.string()), ("policy", pa.string()), ("prompt_id", pa.string()), ("error", pa.string())])

#: One row a scored text. References are rows of policy ``reference`` with rid ``reference:<prompt_id>``.
SCORE = pa.schema(
    [
        ("rid", pa.string()),
        ("policy", pa.string()),
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("temperature", pa.float64()),
        ("sample", pa.int32()),
        ("score", pa.float64()),
    ]
)


def pair_schema(chat: bool) -> pa.Schema:
    """TRL's preference columns (text, or messages for conversational data) and where each side comes from."""
    text = MESSAGES if chat else pa.string()
    return pa.schema(
        [
            ("prompt", text),
            ("chosen", text),
            ("rejected", text),
            ("chosen_score", pa.float64()),
            ("rejected_score", pa.float64()),
            ("score_gap", pa.float64()),
            ("order", pa.string()),  # pseudo (teacher preferred) | reward
            ("prompt_id", pa.string()),
            ("chosen_rid", pa.string()),
            ("rejected_rid", pa.string()),
            ("chosen_finish_reason", pa.string()),
            ("rejected_finish_reason", pa.string()),
        ]
    )


def list_schema(chat: bool) -> pa.Schema:
    """One row a prompt with every candidate text, as list-wise objectives read them."""
    text = MESSAGES if chat else pa.string()
    return pa.schema(
        [
            ("prompt", text),
            ("candidates", pa.list_(text)),
            ("scores", pa.list_(pa.float64())),
            ("prompt_id", pa.string()),
            ("rids", pa.list_(pa.string())),
            ("finish_reasons", pa.list_(pa.string())),
        ]
    )


def response_text(value: str | list[Mapping[str, Any]]) -> str:
    """The text of a ``chosen`` or ``rejected`` cell, plain or conversational."""
    return value if isinstance(value, str) else value[-1]["content"]
