"""A deterministic engine without a model, for tests of everything around engines.

``engine_kwargs``: ``seconds`` a block takes, and prompt_ids whose requests ``fail``, ``kill`` the engine's process or
``hang``. A response repeats prompt tokens in an order drawn from the request's seed; one in eight is cut at ``max_tokens``.
"""

from __future__ import annotations

import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from plad_ray import logs
from plad_ray.generate.tasks import ANSWER, failed, map_engine

if TYPE_CHECKING:
    from ray.data import Dataset

    from plad_ray.generate.pools import EnginePool


def check(pool: EnginePool) -> None:
    """Nothing can be wrong."""


def in_flight(pool: EnginePool) -> int:
    """Blocks that one replica has at a time."""
    return 1 if pool.alone else 2


def branch(requests: Dataset, pool: EnginePool) -> Dataset:
    """Requests of one pool to ANSWER rows."""
    from ray.data import ActorPoolStrategy

    eos = {name: pool.eos(name)[0] for name in pool.policies}
    return map_engine(
        requests,
        FakeEngine,
        (eos, pool.generate.max_tokens, pool.runtime.engine_kwargs, pool.source),
        pool,
        batch_size=pool.runtime.batch_size,
        compute=ActorPoolStrategy(size=pool.runtime.replicas, max_tasks_in_flight_per_actor=in_flight(pool)),
    )


class FakeEngine:
    """Ray Data actor."""

    def __init__(
        self, eos: dict[str, int], max_tokens: int, settings: dict[str, Any], source: logs.Source | None = None
    ):
        logs.begin(source)
        self.eos, self.max_tokens, self.settings = eos, max_tokens, settings

    def __call__(self, block: pa.Table) -> pa.Table:
        time.sleep(self.settings.get("seconds", 0))
        return pa.Table.from_pylist([self._answer(row) for row in block.to_pylist()], schema=ANSWER)

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["prompt_id"] in self.settings.get("kill", ()):
            os._exit(1)
        if row["prompt_id"] in self.settings.get("hang", ()):
            threading.Event().wait()
        if row["prompt_id"] in self.settings.get("fail", ()):
            return failed(row, f"RuntimeError: fake failure of {row['prompt_id']}")
        return {**row, "ids": self._ids(row)}

    def _ids(self, row: dict[str, Any]) -> list[int]:
        """Generated ids of a request; greedy requests of one prompt agree."""
        draw = random.Random(row["seed"] if row["temperature"] > 0 else row["prompt_id"])
        long = draw.random() < 1 / 8
        length = self.max_tokens if long else draw.randrange(1, self.max_tokens)
        ids = draw.choices(row["prompt_token_ids"], k=length)
        return ids if long else [*ids[:-1], self.eos[row["policy"]]]
