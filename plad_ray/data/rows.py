"""What a source reads (Record) and what it makes of it (Row), and how cells of a table become text."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plad_ray.errors import PladError

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a source as it is, and where it stands (``train.jsonl line 3``) for messages."""

    values: Mapping[str, Any]
    where: str

    def get(self, column: str, option: str) -> Any:
        """The cell of ``column``. ``option`` is the key of the experiment file that names the column."""
        if column not in self.values:
            raise PladError(
                f"{self.where}: no column {column!r} ({option}); columns there are: {', '.join(self.values) or 'none'}"
            )
        return self.values[column]


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt before it has a split. ``group`` is what must not be torn apart between splits."""

    prompt: str
    reference: str | None
    group: str
    messages: Messages | None = None
    prompt_id: str | None = None


def short_hash(*parts: Any) -> str:
    """16 hex digits of the SHA-256 of ``parts`` (JSON values): the same on every machine and in every run."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def is_messages(value: Any) -> bool:
    """A non-empty list of mappings: chat messages, well-formed or not."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def messages_of(value: list[Mapping[str, Any]], what: str, last: str) -> Messages:
    """Check chat messages and keep their role and content. ``last`` is the role that must have the last word."""
    for message in value:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise PladError(f"{what}: a chat message needs role and content, both text; found {_shown(message)}")
    if value[-1]["role"] != last:
        raise PladError(f"{what}: the last message must be by {last!r}, not by {value[-1]['role']!r}")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def messages_text(messages: Messages) -> str:
    """Readable text of a conversation: one ``role: content`` line a message."""
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def prompt_text(value: Any, join: str, what: str) -> str:
    """A string as it is, or a list of strings (each stripped) joined with ``join``. Never empty."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = join.join(item.strip() for item in value if item.strip())
    if not isinstance(value, str):
        raise PladError(f"{what}: expected text, a list of texts or chat messages, found {_shown(value)}")
    if not value.strip():
        raise PladError(f"{what}: the prompt is empty; remove the row or fill it in")
    return value


def reference_text(value: Any, what: str) -> str:
    """A string as it is, the first of a list of references, or the content of one assistant message. Never empty."""
    if is_messages(value):
        value = messages_of(value, what, "assistant")[-1]["content"]
    elif isinstance(value, list) and value and isinstance(value[0], str):
        value = value[0].strip()
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise PladError(
            f"{what}: the reference is missing; remove the row, or set data.columns.reference to null if there is none"
        )
    if not isinstance(value, str):
        raise PladError(f"{what}: expected a text, a list of texts or an assistant message, found {_shown(value)}")
    return value


def prompt_of(record: Record, option: str) -> tuple[str, Messages | None]:
    """Readable text of the cell ``prompt``, and its messages when it is a conversation."""
    cell = record.get("prompt", option)
    if is_messages(cell):
        messages = messages_of(cell, f"{record.where} column 'prompt'", "user")
        return messages_text(messages), messages
    if not isinstance(cell, str) or not cell.strip():
        raise PladError(f"{record.where} column 'prompt': expected text or chat messages, found {cell!r}")
    return cell, None


def text_of(record: Record, column: str, option: str) -> str:
    """A text, or the content of one assistant message."""
    cell = record.get(column, option)
    what = f"{record.where} column {column!r}"
    if is_messages(cell):
        messages = messages_of(cell, what, "assistant")
        if len(messages) > 1:
            raise PladError(f"{what}: expected one assistant message; put the turns before it into the prompt column")
        return messages[0]["content"]
    if not isinstance(cell, str):
        raise PladError(f"{what}: expected text or one assistant message, found {cell!r}")
    return cell


def fill(template: str, option: str, record: Record, own: Mapping[str, str], join: str) -> str:
    """Put cells into ``{column}`` fields; ``own`` holds the texts of the mapped columns and comes first.

    Raises PladError for a field that is no column or whose cell is no text or number.
    """
    pieces = []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PladError(f"data.{option}: {template!r} is no template: {error}; write {{{{ for a brace") from None
    for literal, field, spec, conversion in parsed:
        pieces.append(literal)
        if field is None:
            continue
        if spec or conversion or not field:
            raise PladError(f"data.{option}: write fields of {template!r} as {{column}}, without format or number")
        pieces.append(own[field] if field in own else _cell(record, field, f"data.{option}", join))
    return "".join(pieces)


def _cell(record: Record, column: str, option: str, join: str) -> str:
    value = record.get(column, option)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return join.join(item.strip() for item in value if item.strip())
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PladError(
            f"{record.where}: column {column!r} ({option}): expected text or a number, found {_shown(value)}"
        )
    return str(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"
