"""The generate stage: every policy, temperature and sample in one Ray Data execution, exactly once.

requests ─► those without a response ─► one branch an engine pool ─► union ─► part files ─► rows/ and errors/

Requests are written while engines start and answer the first of them.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from plad_ray.artifacts import Artifact
from plad_ray.cluster import connect
from plad_ray.errors import PladError
from plad_ray.generate import (
    fake_engine,
    openai_engine,
    parts,
    requests,
    transformers_engine,
    verify,
    vllm_engine,
    writing,
)
from plad_ray.generate.pools import EnginePool, build_pools
from plad_ray.generate.quarantine import MARK, Quarantine
from plad_ray.generate.requests import Work
from plad_ray.generate.responses import part_row
from plad_ray.generate.tasks import ONE_TASK, read_requests
from plad_ray.generate.watch import blocks, check
from plad_ray.stages import Job, Outcome

if TYPE_CHECKING:
    from ray.data import Dataset

logger = logging.getLogger(__name__)
#: failed requests are logged until there are so many
SHOWN_ERRORS = 10
#: An engine module has ``check(pool)``, ``branch(requests, pool)`` and ``in_flight(pool)``.
ENGINES: dict[str, ModuleType] = {
    "vllm": vllm_engine,
    "transformers": transformers_engine,
    "openai": openai_engine,
    "fake": fake_engine,
}


def run(job: Job) -> Outcome:
    """RESPONSE rows in ``rows/``, ERROR rows in ``errors/``. ``parts._generate`` makes its config and inputs.

    Raises PladError for what cannot be served or does not fit, for an engine that fails or serves an adapter wrongly, and
    when more than ``generate.max_error_fraction`` of the requests fail.
    """
    pools = build_pools(job)
    for pool in pools:
        ENGINES[pool.engine].check(pool)
    generated = Tally(parts.answered(job.out))
    work = plan(job, pools, generated.done)
    started = time.time()
    connect(job.runtime)
    verifier = Verifier(job, pools)
    if work.done < work.total:
        execute(job, pools, work, verifier, generated)
    checks = verifier.finish()
    seconds = time.time() - started
    count, errors, policies = parts.publish(job.out, work.total)
    refuse_errors(job, errors, work.total)
    quarantined = sum(count for message, count in errors.items() if message.startswith(MARK))
    dropped = {"error": sum(errors.values()) - quarantined, "quarantined": quarantined}
    metrics = outcome_metrics(policies, generated, seconds) | ({"verified": checks} if checks else {})
    if paid := openai_engine.totals(job.out, pools):
        metrics["api"] = paid
    return Outcome(work.total, count, {reason: n for reason, n in dropped.items() if n}, metrics)


def plan(job: Job, pools: list[EnginePool], done: parts.Numbers) -> Work:
    """How many requests there are, and how many of them are not ``done``. Raises PladError for a split without prompts or a
    repeated prompt_id."""
    work = Work()
    for stale in {name.partition("/")[0] for name in job.out.store.files(job.out.file("work"))}:
        if stale.startswith("remaining-"):
            job.out.store.delete(job.out.file(f"work/{stale}"))
    every = [draw for policy in job.config["policies"].values() for draw in policy["draws"]]
    sizes = requests.split_sizes(job.inputs["prompts"], every)
    for pool in pools:
        first = work.first[pool.name] = work.total
        work.total += requests.count_requests(writing.draws(job, pool), sizes)
        work.left[pool.name] = work.total - first - done.count(first, work.total)
    return work


@dataclass
class Tally:
    """What came back in this run; ``done`` are the requests that have an answer, or that have failed in it."""

    done: parts.Numbers
    rows: int = 0
    tokens: int = 0
    cost: float | None = None  # of an API with known prices
    errors: Counter[str] = field(default_factory=Counter)
    engines_ready: float | None = None  # seconds until the first block came back
    seconds: float = 0.0

    def add(self, rows: list[dict[str, Any]], seconds: float) -> None:
        if self.engines_ready is None:
            self.engines_ready = seconds
        self.rows += len(rows)
        self.done.add(np.array([row["number"] for row in rows], np.int64))
        self.tokens += sum(row["num_tokens"] + row["num_reasoning_tokens"] for row in rows)
        self.errors.update(row["error"] for row in rows if row["error"] is not None)
        self.seconds = seconds

    @property
    def rate(self) -> float:
        """Tokens a second since the first block came back, or since the start when that was the only one."""
        since = self.seconds - (self.engines_ready or 0.0)
        return self.tokens / (since or self.seconds or 1.0)


def execute(job: Job, pools: list[EnginePool], work: Work, verifier: Verifier, tally: Tally) -> None:
    """Generate what is left into part files. Raises PladError as soon as too many requests have failed."""
    started, before = time.time(), work.done
    by_policy = {name: pool for pool in pools for name in pool.policies}

    def finished(rows: list[dict[str, Any]], unpublished: list[dict[str, Any]]) -> None:
        parts.write_part(job.out, unpublished)
        tally.add(rows, time.time() - started)
        tally.cost = openai_engine.add_cost(tally.cost, by_policy, rows)
        for row in rows if tally.errors.total() <= SHOWN_ERRORS else ():
            if row["error"] is not None:
                logger.info("%s: %s", row["rid"], row["error"], extra={"rid": row["rid"]})
        notes = {"errors": tally.errors.total(), "quarantined": quarantine.count, "cost": tally.cost}
        notes = {name: value for name, value in notes.items() if value}
        done = min(work.total, before + tally.rows)
        job.progress(done, work.total, "rows", engines="", tokens_per_s=round(tally.rate, 1), **notes)
        refuse_errors(job, tally.errors, work.total)
        verifier.poll(any(row["sampled"] is not None for row in rows))

    def attempt(pools: list[EnginePool], work: Work) -> None:
        job.progress(before + tally.rows, work.total, "rows", engines="starting")
        with closing(_answers(job, pools, work, written)) as blocks_of_answers:  # closing it ends the engines
            for answers in blocks_of_answers:
                rows = [part_row(by_policy, answer) for answer in answers]
                finished(rows, [r for r, a in zip(rows, answers, strict=True) if not a.get("published")])

    turns = in_turn(job, pools)
    with writing.requests_of(job, turns, work, tally.done) as written:
        quarantine = Quarantine(job, tally.done, attempt, lambda row: finished([row], [row]), written)
        for mine in turns:
            share = replace(work, left={pool.name: work.left[pool.name] for pool in mine})
            quarantine.complete(mine, share, lambda pool: ENGINES[pool.engine].in_flight(pool))
        written.result()


def in_turn(job: Job, pools: list[EnginePool]) -> list[list[EnginePool]]:
    """Pools whose engines are up at one time. A role with several bases (students all of whose weights were trained) has
    the devices of ``runtime`` for one of them."""
    found = []
    for turn in job.runtime.turns(sorted({pool.role for pool in pools})):
        of_role = ([pool for pool in pools if pool.role == role] for role in turn)
        found += [[pool for pool in together if pool is not None] for together in zip_longest(*of_role)]
    return found


def _answers(job: Job, pools: list[EnginePool], work: Work, written: Future[None]) -> Generator[list[dict[str, Any]]]:
    """ANSWER rows, a block at a time. Raises EngineLost, what ends the writing of requests, and PladError for any other
    failure of an engine."""
    import ray

    with closing(blocks(dataset(job, pools, work), job.runtime.stall_seconds, written)) as answers:
        try:
            for block in answers:
                yield block.to_pylist()
        except ray.exceptions.RayError as error:
            check(written)  # then a task has found that its requests do not come
            raise PladError(f"{job.stage}: generation failed: {cause(error)}") from error


def dataset(job: Job, pools: list[EnginePool], work: Work) -> Dataset:
    """The lazy execution: a branch for each pool that has requests left."""
    branches = []
    for pool in pools:
        if work.left[pool.name] == 0:
            continue
        rows = _requests(job.out, work.files(pool), work.left[pool.name], pool.rows_per_block)
        branches.append(ENGINES[pool.engine].branch(rows, pool))
    return branches[0].union(*branches[1:]) if len(branches) > 1 else branches[0]


def _requests(out: Artifact, folder: str, requests: int, rows_per_block: int) -> Dataset:
    """The request files as blocks of one engine batch. A block is what a kill can lose; a Parquet read would make one
    block of all the files, and a repartition of it is one more operator with its processes."""
    from ray.data import range as ray_range

    blocks = -(-requests // rows_per_block)
    numbers = ray_range(blocks, override_num_blocks=blocks, concurrency=1)
    read: Any = read_requests  # typed for Arrow blocks, which Ray's annotation of a batch leaves out
    return numbers.map_batches(
        read, fn_kwargs={"out": out, "folder": folder}, batch_format="pyarrow", batch_size=None, **ONE_TASK
    )


_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception)): ?(.*)$", re.MULTILINE)


def cause(error: BaseException) -> str:
    """What really failed, on one line: Ray's exceptions carry it as the text of a traceback among their own."""
    raised = [(name, text) for name, text in _EXCEPTION.findall(str(error)) if not name.startswith("ray.")]
    if raised and raised[-1][0].endswith("PladError"):  # says all there is to say
        return raised[-1][1]
    last = (str(error).strip().splitlines() or ["no message"])[-1]
    name, text = raised[-1] if raised else (type(error).__name__, last)
    logs = "(what an engine printed is in the logs of Ray's session, /tmp/ray/session_latest/logs on its node)"
    return f"{name}: {text} {logs}"


def refuse_errors(job: Job, errors: Counter[str], total: int) -> None:
    """PladError quoting the most frequent error when more than the allowed fraction of requests failed."""
    failed, allowed = sum(errors.values()), job.config["generate"]["max_error_fraction"]
    if failed > allowed * total:
        message, count = errors.most_common(1)[0]
        raise PladError(
            f"{job.stage}: {failed} of {total} requests failed, above generate.max_error_fraction {allowed:g}; the most "
            f"frequent error ({count} times): {message}"
        )


class Verifier:
    """Checks each policy as soon as the verification requests of its policy have come back."""

    def __init__(self, job: Job, pools: list[EnginePool]):
        self.job = job
        self.pools = {name: pool for pool in pools for name in writing.verified_policies(job, pool)}
        self.running: dict[Any, str] = {}
        self.found: dict[str, dict[str, float]] = {}

    def poll(self, news: bool) -> None:
        """Start what can start, raise what has failed; never waits."""
        if news:
            self._start(complete=True)
        self._collect(timeout=0)

    def finish(self) -> dict[str, dict[str, float]]:
        """Wait for all of them: the measured differences by policy."""
        self._start(complete=False)
        self._collect(timeout=None)
        return self.found

    def _start(self, complete: bool) -> None:
        import ray

        open_ = [name for name in self.pools if name not in self.found and name not in self.running.values()]
        for name, samples in parts.sampled(self.job.out, open_).items():
            if not samples or (complete and len(samples) < verify.ROWS):
                continue
            pool = self.pools[name]
            gpus = pool.runtime.gpus if pool.model.load_in_4bit else 0
            task = ray.remote(num_cpus=0.5, num_gpus=gpus)(verify.measure)
            arguments = (pool.policies[name], pool.model.dtype, samples, pool.model.load_in_4bit)
            self.running[task.remote(*arguments)] = name

    def _collect(self, timeout: float | None) -> None:
        import ray

        while self.running:
            ready, _ = ray.wait(list(self.running), num_returns=1, timeout=timeout)
            if not ready:
                return
            name = self.running.pop(ready[0])
            self.found[name] = ray.get(ready[0])
            try:
                verify.judge(name, self.pools[name], self.found[name])
            except PladError:
                self.job.out.store.delete(self.job.out.file(parts.FOLDER))  # what it generated is worth nothing
                raise


def outcome_metrics(policies: dict[str, Any], generated: Tally, seconds: float) -> dict[str, Any]:
    """JSON metrics: totals by policy over all runs, speed of this one."""
    return {
        "tokens": {name: entry["tokens"] for name, entry in policies.items()},
        "prompt_tokens": {name: entry["prompt_tokens"] for name, entry in policies.items()},
        "truncated": {name: entry["truncated"] / max(1, entry["rows"]) for name, entry in policies.items()},
        "generated_rows": generated.rows,
        "seconds": round(seconds, 3),
        "engine_start_seconds": None if generated.engines_ready is None else round(generated.engines_ready, 3),
        "tokens_per_s": round(generated.rate, 1),
    }
