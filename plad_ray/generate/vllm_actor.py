"""vLLM's engine in a Ray Data actor. Blocks go in and come out as they are; between them the engine sees one stream of
requests and never waits for a block to be complete: calls run in threads, and one thread steps the engine.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from plad_ray import logs
from plad_ray.generate.tasks import ANSWER, failed

if TYPE_CHECKING:
    from vllm import SamplingParams

    from plad_ray.generate.pools import EnginePool

Row = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass
class Block:
    """Requests of one call, and their answers as they come."""

    rows: list[Row]
    answers: list[Row] = field(default_factory=list)
    complete: Future[list[Row]] = field(default_factory=Future)

    def answer(self, row: Row) -> None:
        self.answers.append(row)
        if len(self.answers) == len(self.rows):
            self.complete.set_result(self.answers)


class VllmEngine:
    """Ray Data actor: the base model, with every adapter of the pool beside it."""

    def __init__(self, pool: EnginePool, engine_kwargs: dict[str, Any], sampling: dict[str, dict[str, Any]]):
        """``sampling``: by policy what its requests share."""
        logs.begin(pool.source)
        pool.fetch()
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest
        from vllm.usage.usage_lib import UsageContext

        self.sampling = sampling
        self.adapters = {
            name: LoRARequest(name, number, folder) for number, (name, folder) in enumerate(pool.adapters.items(), 1)
        }
        loggers: list[Any] | None = None
        if pool.metrics:
            from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

            loggers = [RayPrometheusStatLogger]
        # vLLM sizes its steps by who asks: 128 sequences for a bare engine, on a GPU up to 1,024 for one that works offline
        self.engine = LLMEngine.from_engine_args(
            EngineArgs(**engine_kwargs), usage_context=UsageContext.LLM_CLASS, stat_loggers=loggers
        )
        self.arrived: queue.SimpleQueue[Block] = queue.SimpleQueue()
        self.open: dict[str, tuple[Row, Block]] = {}
        threading.Thread(target=self._serve, daemon=True, name="vllm").start()
        threading.Thread(target=_end_with_a_child, daemon=True, name="vllm-children").start()

    def __call__(self, rows: pa.Table) -> pa.Table:
        block = Block(rows.to_pylist())
        self.arrived.put(block)
        return pa.Table.from_pylist(block.complete.result(), schema=ANSWER)

    def _serve(self) -> None:
        """Until it fails; an engine that has failed serves nothing more, so its process ends, and Ray starts another one and
        tries its blocks again."""
        try:
            while True:
                self._take()
                for output in self.engine.step():
                    self._answer(output)
        finally:
            logger.error("vLLM's engine has failed", exc_info=True)
            os._exit(1)

    def _take(self) -> None:
        """Hand the engine all that has arrived, and wait for something when it has nothing to do."""
        while not self.open or not self.arrived.empty():
            block = self.arrived.get()
            for row in block.rows:
                self._ask(row, block)

    def _ask(self, row: Row, block: Block) -> None:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt

        name, adapter = str(row["number"]), self.adapters.get(row["policy"])
        try:
            # the renderer refuses a prompt that is too long; the engine's core would die of it
            [prompt] = self.engine.renderer.render_cmpl([TokensPrompt(prompt_token_ids=row["prompt_token_ids"])])
            self.engine.add_request(name, prompt, self._parameters(row), lora_request=adapter)
        except (VLLMClientError, ValueError) as error:
            block.answer(failed(row, f"{type(error).__name__}: {error}"))
        else:
            self.open[name] = (row, block)

    def _parameters(self, row: Row) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        own = {"temperature": row["temperature"], "seed": row["seed"], "logprobs": 0 if row["verify"] else None}
        if row["temperature"] == 0:
            own |= {"top_p": 1.0, "top_k": 0}
        return SamplingParams(**self.sampling[row["policy"]] | own, output_kind=RequestOutputKind.FINAL_ONLY)

    def _answer(self, output: Any) -> None:
        """``output``: vLLM's RequestOutput of a request that is finished."""
        row, block = self.open.pop(output.request_id)
        [made] = output.outputs
        ids, logprobs = list(made.token_ids), None
        if row["verify"]:
            logprobs = [step[token].logprob for step, token in zip(made.logprobs, ids, strict=True)]
        block.answer({**row, "ids": ids, "logprobs": logprobs})


def _end_with_a_child() -> None:
    """On GPUs vLLM's core is a process of its own. Nobody tells the thread that waits for its output when it has died
    (vLLM 0.32, ``SyncMPClient.get_output``), so this process ends as well, and Ray starts another one."""
    if children := multiprocessing.active_children():
        multiprocessing.connection.wait([child.sentinel for child in children])
        logger.error("a process of vLLM's has died")
        os._exit(1)
