"""Texts as columns of TRL's tables: plain, or as chat messages."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.records import MESSAGES


def prompts(table: pa.Table, chat: bool) -> pa.Array:
    """Column ``prompt`` of a prompt table's rows; with ``chat`` a prompt that is plain text is one user message."""
    if not chat:
        return flat(table["prompt"])
    messages = flat(table["messages"])
    return pc.if_else(pc.is_null(messages), _message("user", table["prompt"]), messages)


def answers(texts: pa.ChunkedArray | pa.Array, chat: bool) -> pa.Array:
    """``texts``; with ``chat`` each is a list of one assistant message."""
    return _message("assistant", texts) if chat else flat(texts)


def _message(role: str, texts: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A list of one message for each text."""
    content = flat(texts)
    items = pa.StructArray.from_arrays(
        [pa.array([role] * len(content), pa.string()), content], fields=list(MESSAGES.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(range(len(content) + 1), pa.int32()), items)


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
