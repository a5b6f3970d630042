"""Generation by transformers, for models that vLLM does not serve (T5 and other encoder-decoders, GPT-Neo, unusual head
sizes on CPU).
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from plad_ray import logs
from plad_ray.errors import PladError
from plad_ray.generate.pools import EnginePool, check_context
from plad_ray.generate.tasks import ANSWER, failed, map_engine
from plad_ray.models.load import load_base
from plad_ray.models.sampling import sample

if TYPE_CHECKING:
    from ray.data import Dataset


def check(pool: EnginePool) -> None:
    """Everything that can be known before a model is loaded. Raises PladError."""
    if pool.runtime.engine_kwargs:
        raise PladError(
            f"runtime.{pool.role}.engine_kwargs {sorted(pool.runtime.engine_kwargs)}: the transformers engine has none"
        )
    check_context(pool.config(), pool.model)


def in_flight(pool: EnginePool) -> int:
    """Blocks that one replica has at a time."""
    return 1 if pool.alone else 2


def branch(requests: Dataset, pool: EnginePool) -> Dataset:
    """Requests of one pool to ANSWER rows."""
    from ray.data import ActorPoolStrategy

    runtime = pool.runtime
    return map_engine(
        requests,
        TransformersEngine,
        (pool,),
        pool,
        batch_size=runtime.batch_size,
        compute=ActorPoolStrategy(size=runtime.replicas, max_tasks_in_flight_per_actor=in_flight(pool)),
        num_gpus=runtime.gpus or None,
        accelerator_type=runtime.accelerator_type,
    )


class TransformersEngine:
    """Ray Data actor: the base model with every adapter of the pool beside it."""

    def __init__(self, pool: EnginePool):
        logs.begin(pool.source)
        self.pool = pool
        pool.fetch()
        self.device = torch.device("cuda" if pool.runtime.gpus > 0 else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(pool.runtime.cpus)))
        model: Any = load_base(pool.base, pool.model.dtype, pool.model.load_in_4bit)
        for name, folder in pool.adapters.items():
            from peft import PeftModel

            if isinstance(model, PeftModel):
                model.load_adapter(folder, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=False)
        self.model = model.eval() if pool.model.load_in_4bit else model.eval().to(self.device)

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = sorted(block.to_pylist(), key=lambda row: row["policy"])
        answers = []
        for policy, group in groupby(rows, key=lambda row: row["policy"]):
            answers += self._answer(policy, list(group))
        return pa.Table.from_pylist(answers, schema=ANSWER)

    def _answer(self, policy: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """ANSWER rows of one policy's requests; a batch that does not fit the GPU fails as error rows."""
        generate = self.pool.generate
        try:
            with _adapter(self.model, policy if policy in self.pool.adapters else None, bool(self.pool.adapters)):
                drawn = sample(
                    self.model,
                    [row["prompt_token_ids"] for row in rows],
                    [row["temperature"] for row in rows],
                    [row["seed"] for row in rows],
                    generate.max_tokens,
                    self.pool.eos(policy),
                    generate.top_p,
                    generate.top_k,
                )
        except torch.OutOfMemoryError as error:
            return [failed(row, f"OutOfMemoryError: {error}") for row in rows]
        pairs = zip(rows, drawn, strict=True)
        return [{**row, "ids": ids, "logprobs": logps if row["verify"] else None} for row, (ids, logps) in pairs]


class _adapter:  # noqa: N801 - reads as a with-statement's verb
    """Switch ``model`` to one adapter, or to the bare base."""

    def __init__(self, model: Any, name: str | None, peft: bool):
        self.model, self.name, self.off = model, name, None
        if peft and name is None:
            self.off = model.disable_adapter()

    def __enter__(self) -> None:
        if self.off is not None:
            self.off.__enter__()
        elif self.name is not None:
            self.model.set_adapter(self.name)

    def __exit__(self, *error: Any) -> None:
        if self.off is not None:
            self.off.__exit__(*error)
