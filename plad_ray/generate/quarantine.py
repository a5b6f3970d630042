"""Requests that kill their engine, or that it hangs on: found, left out with an error row, and counted.

Ray starts a dead engine anew and gives it its blocks again. A block that has cost ``runtime.engine_tries`` engines ends the
execution; then the blocks that were in flight go to a single engine, one at a time, and the requests of the one that is lost
there one by one. A request that loses its engine alone is in quarantine, and the others go on together.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from typing import Any

from plad_ray.errors import PladError
from plad_ray.generate import parts, requests
from plad_ray.generate.pools import EnginePool
from plad_ray.generate.requests import Work
from plad_ray.generate.responses import part_row
from plad_ray.generate.tasks import stored_requests
from plad_ray.generate.watch import EngineLost
from plad_ray.stages import Job

#: what the error of a request in quarantine begins with
MARK = "quarantined: "

logger = logging.getLogger(__name__)


class Quarantine:
    """``attempt(pools, work)`` generates and raises EngineLost; ``done`` are the requests with an answer or an error, which
    it adds to; ``lost`` is told of each PART row of a request in quarantine; ``written`` is done when all requests are."""

    def __init__(
        self,
        job: Job,
        done: parts.Numbers,
        attempt: Callable[[list[EnginePool], Work], None],
        lost: Callable[[dict[str, Any]], None],
        written: Future[None],
    ):
        self.job, self.done, self.attempt, self.lost, self.written = job, done, attempt, lost, written
        self.count, self.answered = 0, bool(done.there.any())

    def complete(self, pools: list[EnginePool], work: Work, in_flight: Callable[[EnginePool], int]) -> None:
        """All of ``work``. Raises PladError for engines that do not start or answer nothing, and above
        ``max_quarantined``."""
        while any(work.left.values()) and (lost := self._try(pools, work)):
            logger.warning("%s: engines lost (%s); looking for the request at fault", self.job.stage, lost)
            self.written.result()
            for pool in pools:
                window = pool.runtime.replicas * in_flight(pool) * pool.rows_per_block
                size = pool.rows_per_block if self.answered else 1  # an answer shows soon that engines work at all
                if self._examine(pool, list(islice(self._left(work, pool), window)), size, work.total):
                    break
            work = self._written([(pool, self._left(work, pool)) for pool in pools], work.total)

    def _try(self, pools: list[EnginePool], work: Work) -> EngineLost | None:
        """What became of the engines, if they did not answer all of ``work``."""
        try:
            self.attempt(pools, work)
        except EngineLost as error:
            if not error.started:
                raise PladError(
                    f"{self.job.stage}: {error}. See the engines' logs in Ray's session, /tmp/ray/session_latest/logs on "
                    "their nodes; if they need longer, raise runtime.stall_seconds"
                ) from None
            self.answered = self.answered or error.blocks > 0
            return error
        self.answered = True
        return None

    def _examine(self, pool: EnginePool, suspects: list[dict[str, Any]], size: int, total: int) -> bool:
        """Answer ``suspects``, ``size`` at a time; True as soon as one of them is in quarantine."""
        runtime = pool.runtime.model_copy(update={"replicas": 1, "batch_size": size})
        single, deaths = replace(pool, runtime=runtime, tries=1, alone=True), Counter[int]()
        while left := [row for row in suspects if row["number"] not in self.done]:
            lost = self._try([single], self._written([(single, left)], total))
            if lost is None:
                continue
            block = [row for row in left if row["number"] not in self.done][:size]
            if size > 1:
                if self._examine(pool, block, 1, total):
                    return True
                continue
            for row in block:
                deaths[row["number"]] += 1
                if lost.stalled or deaths[row["number"]] == self.job.runtime.engine_tries:
                    self._enter(row, lost, deaths[row["number"]])
                    return True
        return False

    def _enter(self, row: dict[str, Any], error: EngineLost, deaths: int) -> None:
        self.count += 1
        runtime = self.job.runtime
        why = f"no answer within {runtime.stall_seconds:g} s" if error.stalled else f"killed {deaths} engines"
        message = "%s: request %s is in quarantine: alone in its engine, %s"
        logger.warning(message, self.job.stage, row["rid"], why, extra={"rid": row["rid"]})
        none, many = self.count == 2 and not self.answered, self.count > runtime.max_quarantined
        if none or many:
            limit = "no other was answered" if none else f"runtime.max_quarantined is {runtime.max_quarantined}"
            raise PladError(
                f"{self.job.stage}: {self.count} requests are in quarantine, and {limit} (the last, {row['rid']}: {why}). "
                "The engine itself is at fault: see its logs in Ray's session, /tmp/ray/session_latest/logs on its node"
            )
        self.lost(part_row({}, {**row, "ids": None, "error": f"{MARK}alone in its engine, {why}"}))

    def _left(self, work: Work, pool: EnginePool) -> Iterator[dict[str, Any]]:
        rows = stored_requests(self.job.out, work.files(pool)) if work.left[pool.name] else iter(())
        return (row for row in rows if row["number"] not in self.done)

    def _written(self, rows: Iterable[tuple[EnginePool, Iterable[dict[str, Any]]]], total: int) -> Work:
        work = Work(total)
        for pool, left in rows:
            work.left[pool.name] = sum(requests.write(left, self.job.out, work.files(pool), pool.rows_per_block))
        return work
