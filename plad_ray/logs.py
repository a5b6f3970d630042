"""Structured logs (``runtime.logs: json``): one JSON object a line, with the run, the stage, and the request it is about."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_stage: ContextVar[str] = ContextVar("stage", default="")


@contextmanager
def within(stage: str) -> Iterator[None]:
    """What this thread logs is of ``stage``."""
    token = _stage.set(stage)
    try:
        yield
    finally:
        _stage.reset(token)


def line(run: str, level: str, message: str, **fields: Any) -> str:
    """A JSON object without line breaks; empty fields are left out."""
    now = time.time()
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    known = {"time": at, "level": level, "run": run, "message": message, **fields}
    return json.dumps({name: value for name, value in known.items() if value not in ("", None)}, ensure_ascii=False)


def of_record(run: str, record: logging.LogRecord, stage: str = "") -> str:
    """A log record as a line, of ``stage`` unless its thread is within another; ``extra={"rid": …}`` says which request it
    is about."""
    trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
    about = {"stage": _stage.get() or stage, "rid": getattr(record, "rid", None), "traceback": trace}
    return line(run, record.levelname.lower(), record.getMessage(), **about, logger=record.name)


@dataclass(frozen=True)
class Source:
    """What the lines of a worker are of. Picklable."""

    run: str
    stage: str

    def begin(self) -> None:
        """From now on what ``plad_ray`` logs in this process, which Ray may have used for another stage before, goes to its
        standard error in lines of this run and stage, and nowhere else: Ray's handlers would wrap them anew."""
        handler = logging.StreamHandler()
        handler.setFormatter(_Lines(self))
        logger = logging.getLogger("plad_ray")
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _Lines(logging.Formatter):
    def __init__(self, source: Source):
        super().__init__()
        self.source = source

    def format(self, record: logging.LogRecord) -> str:
        return of_record(self.source.run, record, self.source.stage)


def begin(source: Source | None) -> None:
    """Where a worker starts: its lines are of ``source``; None leaves plain logs as they are."""
    if source is not None:
        source.begin()
