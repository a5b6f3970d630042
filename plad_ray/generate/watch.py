"""The answers of engines as they come, and word of engines that are lost: dead again and again, or silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

if TYPE_CHECKING:
    from ray.data import Dataset

#: how often an execution is looked at
CHECK_SECONDS = 0.5
_begun = threading.local()


class EngineLost(Exception):  # noqa: N818 - what happened, not a mistake
    """``stalled``: there was no news in time, and all engines were ended. Else one died under a block as often as it may.
    ``blocks`` had come back before; ``started``: there was an engine at work."""

    def __init__(self, message: str, stalled: bool, blocks: int, started: bool = True):
        super().__init__(message)
        self.stalled, self.blocks, self.started = stalled, blocks, started


def blocks(rows: Dataset, stall_seconds: float, written: Future[None]) -> Generator[pa.Table]:
    """The blocks of ``rows`` as engines finish them; this process alone has the tokenizers to read them.

    News are a block that is finished and an engine that comes up or dies: the time that an engine takes to start is not
    counted as time that it takes to answer, nor is the time until its requests are ``written``. Raises EngineLost, and at
    once whatever ends the writing. Closing it ends the engines.
    """
    execution, dead = _Execution(rows, stall_seconds, written), None
    try:
        while (block := execution.next_block()) is not None:
            if block.num_rows:
                yield block
    except ray.exceptions.RayActorError as error:
        if error.actor_init_failed:
            raise
        dead = str(error).splitlines()[0]
    finally:
        execution.end()
    # raised here, where no exception is at hand that would keep the execution in memory
    if dead is not None:
        raise EngineLost(dead, stalled=False, blocks=execution.finished)
    if execution.stalled:
        what = "no block was finished" if execution.alive else "no engine started"
        message = f"{what} for {stall_seconds:g} s"
        raise EngineLost(message, stalled=True, blocks=execution.finished, started=execution.alive > 0)


def check(written: Future[None]) -> None:
    """Raise what has ended the writing of requests, if anything has."""
    if written.done():
        written.result()


class Reports(ExecutionCallback):
    """Made by Ray for an execution, in the thread that begins it, and called by its scheduler. The class travels with the
    dataset's context, so it holds nothing itself."""

    def __init__(self) -> None:
        self.execution: _Execution = _begun.execution
        del _begun.execution

    def before_execution_starts(self, executor: Any) -> None:
        self.execution.executor = executor

    def on_execution_step(self, executor: Any) -> None:
        """What it raises ends the execution, and comes out of it."""
        check(self.execution.written)
        pools: list[Any] = [op._actor_pool for op in executor._topology if isinstance(op, ActorPoolMapOperator)]
        self.execution.alive = sum(pool.num_running_actors() - pool.num_restarting_actors() for pool in pools)
        for pool in pools:
            self.execution.actors.update(pool._running_actors, pool._pending_actors.values())


class _Execution:
    """The execution of a dataset, which this thread begins with the first block. Ray Data's own guard
    (``execution_no_progress_timeout_s``) leaves an engine that hangs alive, and with it its GPU, so silence is noticed here.
    """

    def __init__(self, rows: Dataset, stall_seconds: float, written: Future[None]):
        self.stall_seconds, self.stalled, self.written = stall_seconds, False, written
        self.finished = self.alive = 0  # blocks, and engines that are up
        self.executor: Any = None
        self.actors: set[Any] = set()
        self.waiting, self.over = False, threading.Event()
        _begun.execution = self
        rows.context.custom_execution_callback_classes = [Reports]
        rows.context.execution_no_progress_timeout_s = -1
        self.answers = iter(rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        threading.Thread(target=self._listen, daemon=True, name="engines").start()

    def next_block(self) -> pa.Table | None:
        """None at the end, and when there was no news for too long."""
        self.waiting = True
        try:
            block = next(self.answers, None)
        finally:
            self.waiting = False
        if block is not None:
            self.finished += 1
        elif not self.stalled:
            self.over.set()
        return block

    def _listen(self) -> None:
        heard, last = time.monotonic(), (0, 0)
        while not self.over.wait(CHECK_SECONDS):
            news = (self.finished, self.alive)
            if news != last or not self.waiting or not self.written.done():
                heard, last = time.monotonic(), news
            elif time.monotonic() - heard > self.stall_seconds:
                self.stalled = True
                self.end()

    def end(self) -> None:
        """Stop what is not over, and kill its actors: where an execution has failed, Ray leaves them to whoever still holds
        a reference, and with them their CPUs and GPUs."""
        if not self.over.is_set():
            self.over.set()
            if self.executor is not None:
                self.executor.shutdown(force=True)
            for actor in self.actors.copy():  # the scheduler may still be adding some
                ray.kill(actor)
        self.actors.clear()  # an actor lives as long as there is a handle
