"""The answers of engines as they come, and word of engines that are lost: dead again and again, or silent."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data import Dataset


_here = threading.local()


class Begun(ExecutionCallback):
    """Called in the thread that starts an execution. The class travels with a dataset's context, so it holds nothing."""

    def before_execution_starts(self, executor: Any) -> None:
        _here.executors.append(executor)


class EngineLost(Exception):  # noqa: N818 - what happened, not a mistake
    """``stalled``: no engine finished a block in time, and all of them were ended. Else one died under a block as often as
    it may. ``blocks`` had come back before."""

    def __init__(self, message: str, stalled: bool, blocks: int):
        super().__init__(message)
        self.stalled, self.blocks = stalled, blocks


def blocks(rows: Dataset, stall_seconds: float) -> Generator[pa.Table]:
    """The blocks of ``rows`` as engines finish them; this process alone has the tokenizers to read them.

    Raises EngineLost. Closing it ends the engines.
    """
    execution, finished = _Execution(rows), 0
    try:
        while (block := execution.next_block(stall_seconds)) is not None:
            finished += 1
            if block.num_rows:
                yield block
    except ray.exceptions.RayActorError as error:
        if error.actor_init_failed:
            raise
        raise EngineLost(str(error).splitlines()[0], stalled=False, blocks=finished) from error
    finally:
        execution.end()
    if execution.stalled:
        raise EngineLost(f"no block was finished for {stall_seconds:g} s", stalled=True, blocks=finished)


class _Execution:
    """The execution of a dataset, which this thread starts with the first block. Ray Data's own guard
    (``execution_no_progress_timeout_s``) leaves an engine that hangs alive, and with it its GPU, so ending is done here."""

    def __init__(self, rows: Dataset):
        self.stalled = False
        self.executors: list[Any] = []
        _here.executors = self.executors
        rows.context.custom_execution_callback_classes = [Begun]
        rows.context.execution_no_progress_timeout_s = -1
        self.answers = iter(rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))

    def next_block(self, seconds: float) -> Any:
        """None at the end, and when none was finished for so long."""
        timer = threading.Timer(seconds, self._stall)
        timer.daemon = True
        timer.start()
        try:
            return next(self.answers, None)
        finally:
            timer.cancel()

    def _stall(self) -> None:
        self.stalled = True
        self.end()

    def end(self) -> None:
        """Kill its engines, if they are there still."""
        for executor in self.executors:
            executor.shutdown(force=True)
