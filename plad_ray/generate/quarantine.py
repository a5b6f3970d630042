"""Requests that kill their engine, or that it hangs on: found, left out with an error row, and counted.

Ray starts a dead engine anew and gives it its blocks again. A block that has cost ``runtime.engine_tries`` engines ends the
execution; then the blocks that were in flight go to a single engine, one at a time, and the requests of the one that is lost
there one by one. A request that loses its engine alone is in quarantine, and the others go on together.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
    it adds to; ``lost`` is told of each PART row of a request in quarantine."""

    def __init__(
        self,
        job: Job,
        done: parts.Numbers,
        attempt: Callable[[list[EnginePool], Work], None],
        lost: Callable[[dict[str, Any]], None],
    ):
        self.job, self.done, self.attempt, self.lost = job, done, attempt, lost
        self.count, self.alive = 0, False

    def complete(self, pools: list[EnginePool], work: Work, in_flight: Callable[[EnginePool], int]) -> None:
        """All of ``work``. Raises PladError for an engine that finishes nothing at all, and above ``max_quarantined``."""
        while any(work.left.values()):
            try:
                self._try(pools, work)
                return
            except EngineLost as error:
                self._refuse_silence(error)
                logger.warning("%s: engines lost (%s); looking for the request at fault", self.job.stage, error)
            for pool in pools:
                window = pool.runtime.replicas * in_flight(pool) * pool.rows_per_block
                if self._examine(pool, list(islice(self._left(work, pool), window)), pool.rows_per_block, work.total):
                    break
            work = self._written([(pool, self._left(work, pool)) for pool in pools], work.total)

    def _try(self, pools: list[EnginePool], work: Work) -> None:
        try:
            self.attempt(pools, work)
        except EngineLost as error:
            self.alive = self.alive or error.blocks > 0
            raise
        self.alive = True

    def _examine(self, pool: EnginePool, suspects: list[dict[str, Any]], size: int, total: int) -> bool:
        """Answer ``suspects``, ``size`` at a time; True as soon as one of them is in quarantine."""
        runtime = pool.runtime.model_copy(update={"replicas": 1, "batch_size": size})
        single, deaths = replace(pool, runtime=runtime, tries=1, alone=True), Counter[int]()
        while left := [row for row in suspects if row["number"] not in self.done]:
            try:
                self._try([single], self._written([(single, left)], total))
            except EngineLost as error:
                block = [row for row in left if row["number"] not in self.done][:size]
                if size > 1:
                    if self._examine(pool, block, 1, total):
                        return True
                    continue
                for row in block:
                    deaths[row["number"]] += 1
                    if error.stalled or deaths[row["number"]] == self.job.runtime.engine_tries:
                        self._enter(row, error, deaths[row["number"]])
                        return True
        return False

    def _enter(self, row: dict[str, Any], error: EngineLost, deaths: int) -> None:
        self.count += 1
        runtime = self.job.runtime
        why = f"no answer within {runtime.stall_seconds:g} s" if error.stalled else f"killed {deaths} engines"
        message = "%s: request %s is in quarantine: alone in its engine, %s"
        logger.warning(message, self.job.stage, row["rid"], why, extra={"rid": row["rid"]})
        if self.count > runtime.max_quarantined:
            raise PladError(
                f"{self.job.stage}: {self.count} requests are in quarantine, above runtime.max_quarantined "
                f"{runtime.max_quarantined} (the last, {row['rid']}: {why}). So many mean that the engine itself is at "
                "fault: see its logs in Ray's session, /tmp/ray/session_latest/logs on its node"
            )
        self.lost(part_row({}, {**row, "ids": None, "error": f"{MARK}alone in its engine, {why}"}))

    def _refuse_silence(self, error: EngineLost) -> None:
        if error.stalled and not self.alive:
            raise PladError(
                f"{self.job.stage}: {error}, nor was any before: the engines do not start, or hang at once. See their logs "
                "in Ray's session, /tmp/ray/session_latest/logs on their nodes; if they need longer, raise "
                "runtime.stall_seconds"
            ) from error

    def _left(self, work: Work, pool: EnginePool) -> Iterator[dict[str, Any]]:
        rows = stored_requests(self.job.out, f"{work.folder}/{pool.name}") if work.left[pool.name] else iter(())
        return (row for row in rows if row["number"] not in self.done)

    def _written(self, rows: Iterable[tuple[EnginePool, Iterable[dict[str, Any]]]], total: int) -> Work:
        work = Work(total)
        for pool, left in rows:
            work.left[pool.name] = requests.write(left, self.job.out, f"{work.folder}/{pool.name}", pool.rows_per_block)
        return work
