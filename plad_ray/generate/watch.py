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
    execution = _Execution(rows)
    answers = iter(rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    finished = 0
    while True:
        timer = threading.Timer(stall_seconds, execution.end)
        timer.daemon = True
        timer.start()
        try:
            block: Any = next(answers, None)
        except ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise
            raise EngineLost(str(error).splitlines()[0], stalled=False, blocks=finished) from error
        finally:
            timer.cancel()
        if block is None and execution.ended:
            raise EngineLost(f"no block was finished for {stall_seconds:g} s", stalled=True, blocks=finished)
        if block is None:
            return
        finished += 1
        if block.num_rows:
            yield block


class _Execution:
    """A handle on the execution of a dataset that this thread is about to start. Ray Data's own guard
    (``execution_no_progress_timeout_s``) leaves an engine that hangs alive, and with it its GPU, so ending is done here."""

    def __init__(self, rows: Dataset):
        self.ended = False
        self.executors: list[Any] = []
        _here.executors = self.executors
        rows.context.custom_execution_callback_classes = [Begun]
        rows.context.execution_no_progress_timeout_s = -1

    def end(self) -> None:
        """Kill its engines."""
        self.ended = True
        for executor in self.executors:
            executor.shutdown(force=True)
