"""How a prompt and a response are put to a scorer: one function a format, ``(prompt, response) -> (question, answer)``."""

from __future__ import annotations

from collections.abc import Callable

from plad_ray.data.sources import hh, tldr
from plad_ray.errors import PladError

Format = Callable[[str, str], tuple[str, str]]
SEPARATOR = "<sep>"


def as_it_is(prompt: str, response: str) -> tuple[str, str]:
    return prompt, response


def response_only(prompt: str, response: str) -> tuple[str, str]:
    return "", response


def last_turn(prompt: str, response: str) -> tuple[str, str]:
    """The last human turn of a dialogue, without its name."""
    _dialogue(prompt, "last_turn")
    return prompt.rpartition(hh.HUMAN)[2].removesuffix(hh.ASSISTANT).strip(), response


def open_assistant(prompt: str, response: str) -> tuple[str, str]:
    """As OpenAssistant's reward models were trained (Open-Assistant, model/reward/instructor/rank_datasets.py).

    Of TL;DR the bare post and `` TLDR;``. Of a dialogue its last two human turns: the first of them is the question, all
    that follows the answer, in which ``<sep>`` stands for the names.
    """
    if tldr.POST in prompt and prompt.endswith(tldr.CUE):
        return f"{prompt.partition(tldr.POST)[2].removesuffix(tldr.CUE)} TLDR;", response.strip()
    _dialogue(prompt, "open_assistant")
    window = hh.HUMAN.join(prompt.split(hh.HUMAN)[-2:]) + response
    question, _, answer = window.partition(hh.ASSISTANT)
    answer = answer.replace("Human: ", SEPARATOR).replace("\n\nAssistant: ", SEPARATOR)
    return question.removeprefix(hh.HUMAN).strip(), answer.strip()


def _dialogue(prompt: str, name: str) -> None:
    if not hh.is_dialogue(prompt):
        kinds = "an HH dialogue or a TL;DR post" if name == "open_assistant" else "an HH dialogue"
        raise PladError(f"scorer.format {name} reads {kinds}, and a prompt is none: {prompt[:80]!r}; use format prompt")


FORMATS: dict[str, Format] = {
    "prompt": as_it_is,
    "last_turn": last_turn,
    "open_assistant": open_assistant,
    "response_only": response_only,
}
