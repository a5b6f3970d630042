"""What a tracker is, and how a failing one is kept from the training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

logger = logging.getLogger(__name__)

#: after a failure a tracker is asked again at most so often, seconds
PAUSE = 60.0
Line = Mapping[str, float]


@dataclass(frozen=True)
class Subject:
    """What is tracked: the artifact by name, in which store, made by which stage with which settings (JSON), continuing
    after ``start`` steps."""

    artifact: str
    store: str
    stage: str
    settings: dict[str, Any]
    start: int = 0


class Tracker(Protocol):
    """``errors``: what it raises when its service is away or refuses; anything else is a bug. ``log`` gets metric lines,
    each with a ``step``, in order and each once."""

    name: str
    errors: tuple[type[Exception], ...]

    def log(self, lines: Sequence[Line]) -> None: ...

    def close(self, finished: bool) -> None: ...


@dataclass
class Feed:
    """One tracker behind a door that never lets its failure out. Lines that could not be sent are sent later."""

    open: Callable[[], Tracker]
    name: str
    errors: tuple[type[Exception], ...]
    sent: int
    tracker: Tracker | None = None
    told: bool = False
    waits_until: float = field(default=0.0)

    def send(self, lines: Sequence[Line]) -> None:
        """Everything of ``lines`` (the whole curve so far) that was not sent yet."""
        if self.sent < len(lines) and time.monotonic() >= self.waits_until:
            self._try(lambda tracker: self._send(tracker, lines))

    def close(self, lines: Sequence[Line], finished: bool) -> None:
        self.waits_until = 0.0
        self.send(lines)
        if self.tracker is not None:
            self._try(lambda tracker: tracker.close(finished))

    def _send(self, tracker: Tracker, lines: Sequence[Line]) -> None:
        tracker.log(lines[self.sent :])
        self.sent = len(lines)

    def _try(self, do: Callable[[Tracker], None]) -> None:
        try:
            if self.tracker is None:
                self.tracker = self.open()
            do(self.tracker)
        except self.errors as error:
            self.waits_until = time.monotonic() + PAUSE
            if not self.told:
                self.told = True
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                logger.warning(
                    "%s: %s. Training goes on; what is missing there is sent when it answers again, and the whole curve is "
                    "in files/metrics.jsonl",
                    self.name,
                    first,
                )


class Trackers:
    """All trackers of one training run; a context, at whose end they are closed."""

    def __init__(self, feeds: Iterable[Feed]):
        self.feeds = list(feeds)
        self.lines: Sequence[Line] = ()

    def __call__(self, lines: Sequence[Line]) -> None:
        """``lines``: the whole curve so far."""
        self.lines = lines
        for feed in self.feeds:
            feed.send(lines)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for feed in self.feeds:
            feed.close(self.lines, finished=kind is None)
