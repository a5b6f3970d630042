"""Structured logs (``runtime.logs: json``): one JSON object a line, with the run, the stage, and the request it is about."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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


def of_record(run: str, record: logging.LogRecord) -> str:
    """A log record as a line; ``extra={"rid": …}`` says which request it is about."""
    rid = getattr(record, "rid", None)
    return line(run, record.levelname.lower(), record.getMessage(), stage=_stage.get(), rid=rid, logger=record.name)
