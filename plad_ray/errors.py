"""The one exception a user is meant to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PladError(ValueError):
    """Bad input or a run that cannot go on: the message names what, where and what would be right."""


@contextmanager
def told_of(where: str) -> Iterator[None]:
    """Messages begin with ``where`` they are about, unless that is empty or they do already."""
    try:
        yield
    except PladError as error:
        if not where or str(error).startswith(where):
            raise
        raise PladError(f"{where}: {error}") from None
