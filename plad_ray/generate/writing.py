"""Request files, written in a thread: to encode the prompts of a large stage takes hours, which no engine has to wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, zip_longest
from threading import Event
from typing import Any

from plad_ray.generate import parts, requests, verify
from plad_ray.generate.pools import EnginePool
from plad_ray.generate.requests import Work
from plad_ray.generate.tasks import being_written
from plad_ray.stages import Job


@contextmanager
def requests_of(job: Job, turns: list[list[EnginePool]], work: Work, done: parts.Numbers) -> Iterator[Future[None]]:
    """Write the requests that are not ``done``, first those of the first turn, while the caller goes on; leaving ends it.

    The future fails with what ends the writing before all is there: PladError for a prompt that does not fit, OSError of the
    store. Memory holds one file's requests.
    """
    pools = [pool for turn in turns for pool in turn if work.left[pool.name]]
    for pool in pools:
        job.out.store.write_bytes(job.out.file(being_written(work.files(pool))), b"")
    stop = Event()

    def write() -> None:
        try:
            for turn in turns:
                files = [_files(job, pool, work, done) for pool in turn if work.left[pool.name]]
                for _ in chain.from_iterable(zip_longest(*files)):  # one of each pool: none waits for all of another's
                    if stop.is_set():
                        return
        finally:
            for pool in pools:
                job.out.store.delete(job.out.file(being_written(work.files(pool))))

    with ThreadPoolExecutor(1, "requests") as thread:
        try:
            yield thread.submit(write)
        finally:
            stop.set()


def _files(job: Job, pool: EnginePool, work: Work, done: parts.Numbers) -> Iterator[None]:
    """Write one file at each step. ``done`` may grow meanwhile: only what is written can be answered."""
    tally, count = Counter(total=work.first[pool.name]), 0
    every = requests.pool_requests(job.inputs["prompts"], pool, draws(job, pool), job.config["seed"])
    every = requests.mark_verified(every, verified_policies(job, pool), verify.ROWS)
    left = requests.encoded(parts.remaining(every, done, tally), pool)
    for rows in requests.write(left, job.out, work.files(pool), pool.rows_per_block):
        count += rows
        yield
    assert count == work.left[pool.name], f"{pool.name}: {work.left[pool.name]} requests were counted, {count} written"


def draws(job: Job, pool: EnginePool) -> dict[str, list[dict[str, Any]]]:
    """By policy of ``pool`` what is drawn."""
    return {name: job.config["policies"][name]["draws"] for name in pool.policies}


def verified_policies(job: Job, pool: EnginePool) -> list[str]:
    """Every policy of an engine that serves adapters: the bare base, too, must be served as what it is."""
    wanted = job.runtime.verify_engine and pool.adapters and pool.engine != "fake"
    return list(pool.policies) if wanted else []
