"""Generation by an OpenAI-compatible endpoint: one actor with many requests in flight.

What has been paid for is not paid for again: the actor itself writes each answer into a part file within PUBLISH_SECONDS
of its coming in, whatever the other requests of its block do, and a stage that runs again asks only for what no part file
answers. A kill therefore costs the requests then in flight (at most ``concurrency``) and the answers of that last moment.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from plad_ray import logs
from plad_ray.artifacts import Artifact
from plad_ray.errors import PladError
from plad_ray.generate import parts
from plad_ray.generate.endpoint import Endpoint, Failure, read_key
from plad_ray.generate.pools import EnginePool
from plad_ray.generate.responses import part_row
from plad_ray.generate.tasks import ANSWER, failed, map_engine

if TYPE_CHECKING:
    from ray.data import Dataset

#: an answer is in a part file at most so long after it came in; all that come within it share a file
PUBLISH_SECONDS = 1.0


def check(pool: EnginePool) -> None:
    """Everything that can be known before a request is sent. Raises PladError."""
    runtime, where = pool.runtime, f"runtime.{pool.role}"
    if runtime.engine_kwargs:
        raise PladError(f"{where}.engine_kwargs {sorted(runtime.engine_kwargs)}: the openai engine has none")
    if runtime.gpus or runtime.accelerator_type:
        raise PladError(f"{where}.gpus and accelerator_type: a model behind an API uses no GPU here; leave them out")
    if runtime.replicas != 1:
        raise PladError(
            f"{where}.replicas {runtime.replicas}: one replica keeps {where}.api.concurrency requests in flight, and the "
            "rate limits are its own; raise that and set replicas to 1"
        )
    read_key(pool.api.api_key_env)


def in_flight(pool: EnginePool) -> int:
    """As many blocks as hold ``concurrency`` requests, and one more to take their place as they finish."""
    return 1 if pool.alone else -(-pool.api.concurrency // pool.rows_per_block) + 1


def branch(requests: Dataset, pool: EnginePool) -> Dataset:
    """Requests of one pool to ANSWER rows, which are in part files already."""
    from ray.data import ActorPoolStrategy

    calls = in_flight(pool)
    return map_engine(
        requests,
        OpenAIEngine,
        (pool,),
        pool,
        batch_size=None,
        compute=ActorPoolStrategy(
            size=1,
            max_tasks_in_flight_per_actor=calls,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=True,
        ),
    )


def totals(out: Artifact, pools: list[EnginePool]) -> dict[str, dict[str, float]]:
    """Tokens and cost of each policy behind an API, over all runs of the stage."""
    found: dict[str, dict[str, float]] = {}
    for pool in pools:
        for name in pool.policies if pool.model.api is not None else ():
            used = parts.usage(out, name)
            spent = cost(pool, used["input_tokens"], used["output_tokens"])
            found[name] = {**used, **({} if spent is None else {"cost": round(spent, 6)})}
    return found


def cost(pool: EnginePool, input_tokens: int, output_tokens: int) -> float | None:
    """In the currency of the prices; None without prices."""
    api = pool.api
    if pool.model.api is None or api.input_price is None or api.output_price is None:
        return None
    return (input_tokens * api.input_price + output_tokens * api.output_price) / 1e6


def add_cost(so_far: float | None, pools: Mapping[str, EnginePool], rows: list[dict[str, Any]]) -> float | None:
    """``so_far`` and what PART rows cost; None while nothing has a price."""
    for row in rows:
        generated = row["num_tokens"] + row["num_reasoning_tokens"]
        spent = cost(pools[row["policy"]], row["num_prompt_tokens"], generated)
        so_far = so_far if spent is None else (so_far or 0.0) + spent
    return so_far


class OpenAIEngine:
    """Ray Data actor. Its calls run in threads and share one event loop, in which all requests live."""

    def __init__(self, pool: EnginePool):
        logs.begin(pool.source)
        assert pool.out is not None and pool.model.api is not None
        self.pools = dict.fromkeys(pool.policies, pool)
        self.out = pool.out
        self.done = parts.answered(pool.out)  # not empty for an actor that Ray has started anew
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="endpoint").start()
        self.endpoint: Endpoint = asyncio.run_coroutine_threadsafe(self._connect(pool), self.loop).result()
        self.waiting: list[dict[str, Any]] = []
        self.writing = asyncio.Lock()
        self.timer: asyncio.Task[None] | None = None
        self.open = 0

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = [row for row in block.to_pylist() if row["number"] not in self.done]
        answers = asyncio.run_coroutine_threadsafe(self._block(rows), self.loop).result()
        if self.endpoint.refusal is not None:
            raise PladError(self.endpoint.refusal.message)
        return pa.Table.from_pylist(answers, schema=ANSWER)

    async def _connect(self, pool: EnginePool) -> Endpoint:
        assert pool.model.api is not None
        return Endpoint(pool.model.api, pool.api, pool.generate)

    async def _block(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers of one block, all of them in part files. When the endpoint refuses, what is in flight elsewhere is awaited
        too: raising ends this process."""
        self.open += 1
        try:
            answers = await asyncio.gather(*(self._answer(row) for row in rows))
            await self._write()
        finally:
            self.open -= 1
        while self.endpoint.refusal is not None and self.open:
            await asyncio.sleep(0.05)
        return [answer for answer in answers if answer is not None]

    async def _answer(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The ANSWER row of a request, soon in a part file; None when the endpoint refuses all of them."""
        outcome = await self.endpoint.ask(row)
        counts = {"num_prompt_tokens": outcome.prompt_tokens, "num_generated_tokens": outcome.generated_tokens}
        if isinstance(outcome, Failure):
            if outcome.fatal:
                return None
            answer = {**failed(row, outcome.message), **counts, "published": True}
        else:
            said = {"text": outcome.text, "finish_reason": outcome.finish_reason}
            answer = {**row, **counts, **said, "num_reasoning_tokens": outcome.reasoning_tokens, "published": True}
        self._publish(part_row(self.pools, {"ids": None, "error": None, **answer}))
        return answer

    def _publish(self, row: dict[str, Any]) -> None:
        self.waiting.append(row)
        if self.timer is None or self.timer.done():
            self.timer = asyncio.create_task(self._write(PUBLISH_SECONDS))

    async def _write(self, delay: float = 0) -> None:
        """Put every row that has come in so far into a part file. Rows stay until they are written, so what one write cannot
        do the block's own does, or raises."""
        await asyncio.sleep(delay)
        async with self.writing:
            rows = list(self.waiting)
            await asyncio.to_thread(parts.write_part, self.out, rows)
            del self.waiting[: len(rows)]
