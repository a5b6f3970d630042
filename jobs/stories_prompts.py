"""Stories as prompts and references: ``python -m jobs.stories_prompts tinystories.txt stories.jsonl``.

The text holds one story after another, parted by ``<|endoftext|>``. A prompt is a story's first sentences up to about
80 characters, the reference its next ones up to about 120 more (with the space before them).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "<|endoftext|>"
PROMPT_CHARS, REFERENCE_CHARS = 80, 120


def pairs(text: str) -> Iterator[dict[str, str]]:
    """Prompt and reference of every complete story that has enough sentences; the last, cut story is left out."""
    for story in text.split(SEPARATOR)[:-1]:
        sentences = re.findall(r"[^.!?]+[.!?]+[\"']?", " ".join(story.split()))
        prompt, rest = _take(sentences, PROMPT_CHARS)
        reference, _ = _take(rest, REFERENCE_CHARS)
        if reference.strip():
            yield {"prompt": prompt, "reference": f" {reference.strip()}"}


def _take(sentences: list[str], characters: int) -> tuple[str, list[str]]:
    taken = ""
    for index, sentence in enumerate(sentences):
        if taken and len(taken) + len(sentence) > characters:
            return taken, sentences[index:]
        taken += sentence
    return taken, []


def main(source: str, target: str) -> None:
    rows = list(pairs(Path(source).read_text(encoding="utf-8")))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(target).write_text("".join(lines), encoding="utf-8")
    print(f"{len(rows)} stories written to {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
