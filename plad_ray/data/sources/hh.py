r"""Anthropic HH dialogues: ``\n\nHuman: …\n\nAssistant: …`` (METHODS §7.3).

Rows are ``chosen`` and ``rejected`` transcripts, or, as in Dahoas/full-hh-rlhf, a ``prompt`` and the two responses.
The prompt goes up to and including the last ``\n\nAssistant:`` that both transcripts share, the chosen remainder is the
reference. A remainder that goes on to another turn is cut there, where generation stops too. Prompts are cut on
the left at a turn. Rows of one group share the first human turn, which tells dialogues apart.
"""

from __future__ import annotations

import os.path
import re

from plad_ray.config import Data
from plad_ray.data.rows import Messages, Record, Row
from plad_ray.data.sources.files import group_of, id_of
from plad_ray.errors import PladError

HUB = "Dahoas/full-hh-rlhf"
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
DEV_ROWS = 500  # carved from the published test split (METHODS §7.1)


def convert(record: Record, data: Data) -> Row | str:
    """One row, or why there is none: ``no_shared_prompt`` or ``empty_response``."""
    chosen = _text(record, "chosen")
    if "prompt" in record.values:
        prompt, remainder = _text(record, "prompt").rstrip(), chosen
    else:
        prompt, remainder = split(chosen, _text(record, "rejected"))
    if not is_dialogue(prompt):
        return "no_shared_prompt"
    if not (reference := response(remainder)):
        return "empty_response"
    group = group_of(record, data, first_turn(prompt))
    if data.max_prompt_chars is not None:
        prompt = truncate(prompt, data.max_prompt_chars)
    return Row(prompt, reference, group, messages(prompt), id_of(record, data))


def split(chosen: str, rejected: str) -> tuple[str, str]:
    """Shared prompt and chosen response; the prompt is empty when the transcripts share no assistant turn."""
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 (characters are meant)
    end = shared.rfind(ASSISTANT)
    end = 0 if end < 0 else end + len(ASSISTANT)
    return chosen[:end], chosen[end:]


def is_dialogue(prompt: str) -> bool:
    """Whether it begins with a human turn and ends where the assistant's next one begins."""
    return prompt.startswith(HUMAN) and prompt.endswith(ASSISTANT)


def response(remainder: str) -> str:
    """What the assistant says before any further turn, after one space; empty where that is nothing."""
    text = TURN.split(remainder, maxsplit=1)[0].rstrip()
    return text if not text or text.startswith(" ") else f" {text}"


def truncate(prompt: str, limit: int) -> str:
    """Drop the oldest turns until the rest, which starts with a human turn, has at most ``limit`` characters.

    The last human turn is never cut: a prompt that is too long with it alone stays too long.
    """
    starts = [match.start() for match in re.finditer(HUMAN, prompt)]
    fitting = (start for start in starts if len(prompt) - start <= limit)
    return prompt[next(fitting, starts[-1]) :]


def first_turn(prompt: str) -> str:
    return prompt.removeprefix(HUMAN).partition(ASSISTANT)[0].strip()


def messages(prompt: str) -> Messages:
    """The turns as chat messages; neighbours of one role become one message, the open assistant turn none."""
    turns: Messages = []
    parts = TURN.split(prompt.removesuffix(ASSISTANT))[1:]
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role, content = ROLES[speaker], text.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{content}"
        else:
            turns.append({"role": role, "content": content})
    return turns


def _text(record: Record, column: str) -> str:
    value = record.get(column, "data.source hh reads chosen and rejected, or prompt and chosen")
    if not isinstance(value, str):
        raise PladError(f"{record.where} column {column!r}: expected a transcript, found {type(value).__name__}")
    return value
