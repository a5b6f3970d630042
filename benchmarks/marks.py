"""What is measured stands between marks in a document; what is written around them stays."""

from __future__ import annotations

import re
from pathlib import Path


def put(document: Path, name: str, content: str) -> None:
    """``content`` between ``<!-- name -->`` and ``<!-- /name -->``. Raises ValueError for a document without these marks."""
    text = document.read_text(encoding="utf-8")
    marks = re.compile(f"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if len(marks.findall(text)) != 1:
        raise ValueError(f"{document} must have the marks <!-- {name} --> and <!-- /{name} --> once")
    document.write_text(marks.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text), encoding="utf-8")


def names(document: Path) -> list[str]:
    """Of the marks in a document, in its order."""
    return re.findall("<!-- ([^/].*?) -->\n", document.read_text(encoding="utf-8"))
