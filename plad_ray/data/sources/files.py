"""Any table: one column is the prompt (text, list of texts, or chat messages), one the reference.

A list of texts is joined by ``columns.join`` for the prompt (each stripped); of a list of references the first counts.
"""

from __future__ import annotations

from plad_ray.config import Data
from plad_ray.data.rows import (
    Record,
    Row,
    fill,
    is_messages,
    messages_of,
    messages_text,
    prompt_text,
    reference_text,
    short_hash,
)
from plad_ray.errors import PladError

HUB = None


def convert(record: Record, data: Data) -> Row:
    """One row from one record. Raises PladError naming file, line, column and what would be right."""
    columns = data.columns
    what = f"{record.where} column {columns.prompt!r}"
    cell = record.get(columns.prompt, "data.columns.prompt")
    messages = None
    if is_messages(cell):
        if data.prompt_format != "{prompt}":
            raise PladError(f"{what} holds chat messages, which data.prompt_format cannot format; leave it out")
        messages = messages_of(cell, what, "user")
        prompt = messages_text(messages)
        if not messages[-1]["content"].strip():
            raise PladError(f"{what}: the last message is empty; remove the row or fill it in")
    else:
        own = {"prompt": prompt_text(cell, columns.join, what)}
        prompt = fill(data.prompt_format, "prompt_format", record, own, columns.join)
    return Row(prompt, reference(record, data), group_of(record, data, prompt), messages, id_of(record, data))


def reference(record: Record, data: Data) -> str | None:
    """The formatted reference; None when the experiment has no reference column."""
    column = data.columns.reference
    if column is None:
        return None
    text = reference_text(record.get(column, "data.columns.reference"), f"{record.where} column {column!r}")
    return fill(data.reference_format, "reference_format", record, {"reference": text}, data.columns.join)


def group_of(record: Record, data: Data, default: str) -> str:
    """The cell of ``columns.group``, else a hash of ``default`` (the prompt, or what of it rows may share)."""
    if data.columns.group is None:
        return short_hash(default)
    return _name(record, data.columns.group, "data.columns.group")


def id_of(record: Record, data: Data) -> str | None:
    return None if data.columns.prompt_id is None else _name(record, data.columns.prompt_id, "data.columns.prompt_id")


def _name(record: Record, column: str, option: str) -> str:
    value = record.get(column, option)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise PladError(f"{record.where} column {column!r} ({option}): expected text or an integer, found {value!r}")
    return str(value)
