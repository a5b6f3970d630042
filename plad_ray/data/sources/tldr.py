"""Reddit TL;DR: ``SUBREDDIT: r/…, TITLE: …, POST: …, TL;DR:`` and one leading space before the summary.

Formats (METHODS §7.2): ``trl-lib/tldr`` (prompt, completion), ``CarperAI/openai_summarize_tldr`` (prompt, label) and
OpenAI's raw tldr_3_filtered rows (subreddit, title, post, summary). A post that is too long for ``max_prompt_chars``
loses its last lines, as in OpenAI's ``tldr_task``, and then its last characters.
"""

from __future__ import annotations

from plad_ray.config import Data
from plad_ray.data.rows import Record, Row
from plad_ray.data.sources.files import group_of, id_of
from plad_ray.errors import PladError

HUB = "trl-lib/tldr"
FORMAT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
RAW = ("subreddit", "title", "post", "summary")
CUE = "\n\nTL;DR:"
POST = "\n\nPOST: "


def convert(record: Record, data: Data) -> Row | str:
    """One row, or ``empty_response`` when there is no summary."""
    if "post" in record.values:
        fields = {name: _text(record, name) for name in RAW}
        prompt, summary = FORMAT.format(**fields), fields["summary"]
    else:
        summary = _text(record, "label" if "label" in record.values else "completion")
        prompt = _text(record, "prompt").rstrip()
        if not prompt.endswith(CUE.strip()):
            raise PladError(f"{record.where} column 'prompt': a TL;DR prompt ends in 'TL;DR:'; use data.source files")
    if not summary.strip():
        return "empty_response"
    if data.max_prompt_chars is not None:
        prompt = truncate(prompt, data.max_prompt_chars)
    return Row(prompt, f" {summary.strip()}", group_of(record, data, prompt), None, id_of(record, data))


def truncate(prompt: str, limit: int) -> str:
    """Cut the post at its last newline, else its last characters, until the prompt has at most ``limit`` characters.

    Subreddit, title and cue stay. A prompt whose frame alone is longer stays too long.
    """
    head, mark, rest = prompt.partition(POST)
    if len(prompt) <= limit or not mark:
        return prompt
    room = limit - len(head) - len(mark) - len(CUE)
    post = rest.removesuffix(CUE)
    while len(post) > max(room, 0):
        newline = post.rfind("\n")
        post = post[:newline] if newline > 0 else post[: max(room, 0)]
    return f"{head}{mark}{post}{CUE}"


def _text(record: Record, column: str) -> str:
    expected = "data.source tldr reads prompt, completion or prompt, label or subreddit, title, post, summary"
    value = record.get(column, expected)
    if not isinstance(value, str):
        raise PladError(f"{record.where} column {column!r}: expected text, found {type(value).__name__}")
    return value
