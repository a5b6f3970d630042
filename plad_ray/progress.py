"""Live progress of a run: one line a running stage, whoever reports it (driver, Ray task or train worker)."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from plad_ray import logs
from plad_ray.metrics import Exporter, values

if TYPE_CHECKING:
    from ray.actor import ActorHandle

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 10.0
SILENT_SECONDS = 60  # and of one that starts or waits for its turn
#: a remote reporter sends at most so often, and drops reports while so many are unanswered.
SEND_SECONDS = 0.5
MAX_PENDING = 50


@dataclass
class Line:
    """The newest report of one stage. A note stays until it is reported anew; an empty text takes it away."""

    started: float = field(default_factory=time.time)
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    notes: dict[str, float | str] = field(default_factory=dict)
    first: tuple[float, float] | None = None  # (time, done) of the first report: a resumed stage starts above 0
    gpus: float = 0.0  # that the stage keeps busy
    printed: float = 0.0

    def update(self, done: float, total: float, unit: str, notes: dict[str, float | str]) -> None:
        self.done, self.total, self.unit = done, total, unit
        self.notes = {name: value for name, value in {**self.notes, **notes}.items() if value != ""}
        self.first = self.first or (time.time(), done)

    @property
    def eta(self) -> float | None:
        """Seconds left at the rate since the first report."""
        return None if self.rate is None or self.done >= self.total else (self.total - self.done) / self.rate

    @property
    def rate(self) -> float | None:
        """Units a second since the first report."""
        if self.first is None or self.done <= self.first[1] or time.time() <= self.first[0]:
            return None
        return (self.done - self.first[1]) / (time.time() - self.first[0])

    @property
    def gpu_hours(self) -> float | None:
        return self.gpus * (time.time() - self.started) / 3600 if self.gpus else None

    def text(self) -> str:
        parts = [f"{self.done:,.0f}/{self.total:,.0f} {self.unit}"] if self.unit else ["starting"]
        parts += self.rates()
        parts.append(f"{_clock(time.time() - self.started)}" + (f", {_clock(self.eta)} left" if self.eta else ""))
        return "  ".join(parts)

    def rates(self) -> list[str]:
        """What the stage does a second, what it says besides, and the GPU time it has taken."""
        rate = [] if self.rate is None else [f"{self.unit}/s {_shown(self.rate)}"]
        hours = [] if self.gpu_hours is None else [f"GPU hours {_shown(self.gpu_hours)}"]
        return rate + [f"{_label(k)} {_shown(v)}" for k, v in self.notes.items()] + hours


class Board:
    """Context manager: shows the lines, prints what is said above them, takes the log of ``plad_ray``.

    ``gpus``: those that a stage keeps busy, by its title. ``as_json``: every line that is printed is a JSON object.
    """

    def __init__(
        self,
        console: Console | None = None,
        verbose: bool = False,
        run: str = "",
        gpus: Mapping[str, float] | None = None,
        as_json: bool = False,
    ):
        self.console = console or Console(highlight=False)
        self.verbose, self.run, self.gpus, self.as_json = verbose, run, gpus or {}, as_json
        self.export = Exporter(run)
        self.lines: dict[str, Line] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True, name="progress")
        self._live: Live | None = None
        self._mailbox: ActorHandle | None = None
        self._handler = _Handler(self, logging.DEBUG if verbose else logging.INFO)

    def __enter__(self) -> Board:
        logger = logging.getLogger("plad_ray")
        self._before = (logger.level, logger.propagate)
        logger.addHandler(self._handler)
        logger.setLevel(self._handler.level)
        logger.propagate = False
        if self.console.is_terminal and not self.as_json:
            self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if self._live is not None:
            self._live.stop()
        logger = logging.getLogger("plad_ray")
        logger.removeHandler(self._handler)
        logger.level, logger.propagate = self._before

    def reporter(self, stage: str) -> Reporter:
        """The progress function of ``stage``, whose line starts now."""
        with self._lock:
            self.lines[stage] = Line(gpus=self.gpus.get(stage, 0.0))
        self._event(f"[dim]▸[/dim] [bold]{escape(stage)}[/bold]", stage, "started")
        return Reporter(self, stage)

    def ended(self, stage: str, succeeded: bool) -> None:
        """The stage is over: its line goes, how long it took stays."""
        with self._lock:
            line = self.lines.pop(stage)
        self.export(stage, line)
        mark = "[green]✓[/green]" if succeeded else "[red]✗[/red]"
        took = " ".join([_clock(time.time() - line.started), *line.rates()])
        self._event(f"{mark} {escape(stage)} [dim]{took}[/dim]", stage, "done" if succeeded else "failed", took=took)

    def say(self, text: str) -> None:
        """Print a line of markup."""
        self.write(
            logs.line(self.run, "info", Text.from_markup(text).plain) if self.as_json else Text.from_markup(text)
        )

    def write(self, line: str | Text) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def _event(self, markup: str, stage: str, event: str, **fields: float | str) -> None:
        plain = Text.from_markup(markup)
        told = logs.line(self.run, "info", plain.plain.strip(), stage=stage, event=event, **fields)
        self.write(told if self.as_json else plain)

    def update(self, stage: str, done: float, total: float, unit: str, notes: dict[str, float | str]) -> None:
        with self._lock:
            if stage in self.lines:  # else a late report of a stage that has ended
                self.lines[stage].update(done, total, unit, notes)

    def mailbox(self) -> ActorHandle | None:
        """Where other processes leave their reports; made when the first reporter travels. None without Ray."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        with self._lock:
            if self._mailbox is None:
                actor = ray.remote(num_cpus=0, max_restarts=0)(Mailbox)
                self._mailbox = actor.options(max_pending_calls=MAX_PENDING).remote()
            return self._mailbox

    def _refresh(self) -> None:
        while not self._stop.wait(REFRESH_SECONDS):
            self._collect()
            for name, line in self._running().items():
                self.export(name, line)
            if self._live is not None:
                self._live.update(self._table(), refresh=True)
            else:
                self._print_plain()

    def _collect(self) -> None:
        """Read the mailbox; a Ray that is gone or too busy costs a line its news, nothing else."""
        if self._mailbox is None:
            return
        import ray

        try:
            news: Any = ray.get(self._mailbox.take.remote(), timeout=5)
        except (ray.exceptions.RayError, RuntimeError, ValueError):
            return
        for stage, report in news.items():
            self.update(stage, *report)

    def _running(self) -> dict[str, Line]:
        with self._lock:
            return {n: line for n, line in self.lines.items() if not line.unit or line.done < line.total}

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 1))
        for name, line in self._running().items():
            bar = ProgressBar(total=line.total or None, completed=line.done, width=24, pulse=not line.total)
            table.add_row(escape(name), bar, escape(line.text()))
        return Group(table)

    def _print_plain(self) -> None:
        for name, line in self._running().items():
            if time.time() - max(line.printed, line.started) >= (PLAIN_SECONDS if line.unit else SILENT_SECONDS):
                line.printed = time.time()
                self._event(escape(f"  {name}: {line.text()}"), name, "progress", text=line.text(), **values(line))


class Reporter:
    """``job.progress`` in the driver. Pickled, it becomes one that sends through the board's mailbox."""

    def __init__(self, board: Board, stage: str):
        self.board, self.stage = board, stage

    def __call__(self, done: float, total: float, unit: str, **notes: float | str) -> None:
        self.board.update(self.stage, done, total, unit, notes)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (RemoteReporter, (self.board.mailbox(), self.stage))


class RemoteReporter:
    """``job.progress`` anywhere else: fire and forget, at most every half second, silent when nobody listens."""

    def __init__(self, mailbox: ActorHandle | None, stage: str):
        self.mailbox, self.stage, self.sent = mailbox, stage, 0.0

    def __call__(self, done: float, total: float, unit: str, **notes: float | str) -> None:
        now = time.time()
        if self.mailbox is None or (now - self.sent < SEND_SECONDS and done < total):
            return
        self.sent = now
        import ray

        try:
            self.mailbox.put.remote(self.stage, (done, total, unit, notes))
        except (ray.exceptions.RayError, RuntimeError, ValueError):  # overloaded or shut down: progress is no result
            self.sent = now + 10

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (RemoteReporter, (self.mailbox, self.stage))


class Mailbox:
    """Ray actor: the newest report of each stage since it was last emptied."""

    def __init__(self) -> None:
        self.news: dict[str, tuple[Any, ...]] = {}

    def put(self, stage: str, report: tuple[Any, ...]) -> None:
        self.news[stage] = report

    def take(self) -> dict[str, tuple[Any, ...]]:
        news, self.news = self.news, {}
        return news


_STARTED = re.compile(r"▸ (\S.*)")
_ENDED = re.compile(r"([✓✗]) (\S.*?) (\d+:\d\d.*)")
_AT = re.compile(r"  (\S.*?): (.+)")


def read_log(log: str) -> dict[str, tuple[str, str]]:
    """What a run's log says of each stage, in order of their starts: (▸ runs, ✓ done or ✗ failed; its newest line)."""
    found: dict[str, tuple[str, str]] = {}
    for line in log.splitlines():
        if event := _event_of(line):
            mark = {"done": "✓", "failed": "✗"}.get(event["event"], "▸")
            found[event["stage"]] = (mark, event.get("took") or event.get("text") or "")
        elif started := _STARTED.fullmatch(line):
            found[started[1]] = ("▸", "")
        elif ended := _ENDED.fullmatch(line):
            found[ended[2]] = (ended[1], ended[3])
        elif (at := _AT.fullmatch(line)) and at[1] in found and found[at[1]][0] == "▸":
            found[at[1]] = ("▸", at[2])
    return found


def _event_of(line: str) -> dict[str, str] | None:
    """The event of a stage that a line of a structured log holds."""
    try:
        event = json.loads(line) if line.startswith("{") else {}
    except json.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and {"event", "stage"} <= event.keys() else None


class _Handler(logging.Handler):
    """Log lines above the progress lines: warnings in yellow, infos as they are."""

    def __init__(self, board: Board, level: int):
        super().__init__(level)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        if self.board.as_json:
            self.board.write(logs.of_record(self.board.run, record))
            return
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else ""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        self.board.write(Text(prefix + record.getMessage(), style=style))


def _label(name: str) -> str:
    return {"tokens_per_s": "tokens/s"}.get(name, name.replace("_", " "))


def _shown(value: float | str) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
