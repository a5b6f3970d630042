"""Functions of Ray Data tasks. They import little: a task's process that loads torch costs seconds of CPU each.

Every task operator here runs one task at a time (``ONE_TASK``): Ray starts a process for each task that may run, and
fractional CPUs without a bound start dozens of them.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from plad_ray import records
from plad_ray.artifacts import Artifact

if TYPE_CHECKING:
    from ray.data import Dataset

    from plad_ray.generate.pools import EnginePool

logger = logging.getLogger(__name__)
ONE_TASK: dict[str, Any] = {"num_cpus": 0.25, "concurrency": 1}
#: A request on its way to an engine: ``number`` is its place in the stage's request table, ``verify`` asks for the log-probs
#: of its tokens.
REQUEST = pa.schema(
    [("number", pa.int64()), *records.REQUEST, ("num_prompt_tokens", pa.int32()), ("verify", pa.bool_())]
)
#: What an engine gives back: its request, and the generated ids (with the one that ended them), an API's ``text``, or an
#: ``error``. ``published``: the engine has put the row into a part file itself.
ANSWER = pa.schema(
    [
        *REQUEST,
        ("ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("num_generated_tokens", pa.int32()),
        ("num_reasoning_tokens", pa.int32()),
        ("error", pa.string()),
        ("published", pa.bool_()),
    ]
)
#: blocks of a request file
BLOCKS_PER_FILE = 16
#: how often a task looks for a request file that is still to be written
LOOK_SECONDS = 0.2


def write_requests(out: Artifact, folder: str, number: int, rows: list[dict[str, Any]], rows_per_block: int) -> None:
    """One request file: a row group is a block."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=REQUEST), sink, row_group_size=rows_per_block)
    out.store.write_bytes(out.file(f"{folder}/requests-{number:06d}.parquet"), sink.getvalue().to_pybytes())


def being_written(folder: str) -> str:
    """The file that is there as long as somebody writes request files to ``folder``."""
    return f"{folder}.writing"


def read_requests(block: pa.Table, out: Artifact, folder: str) -> pa.Table:
    """The request rows of the blocks whose numbers are in column ``id``, as soon as they are there. Raises FileNotFoundError
    for those that nobody writes."""
    tables = []
    for number in block.column("id").to_pylist():
        with _request_file(out, folder, number // BLOCKS_PER_FILE) as stream:
            tables.append(pq.ParquetFile(stream).read_row_group(number % BLOCKS_PER_FILE))
    return pa.concat_tables(tables)


def _request_file(out: Artifact, folder: str, number: int) -> pa.NativeFile:
    path = out.store.path(out.file(f"{folder}/requests-{number:06d}.parquet"))
    while out.store.exists(out.file(being_written(folder))):
        with suppress(FileNotFoundError):
            return out.store.fs.open_input_file(path)
        time.sleep(LOOK_SECONDS)
    return out.store.fs.open_input_file(path)


def stored_requests(out: Artifact, folder: str) -> Iterator[dict[str, Any]]:
    """The request rows of every file in ``folder``, in order."""
    for name in sorted(out.store.files(out.file(folder))):
        path = out.store.path(out.file(f"{folder}/{name}"))
        yield from pq.read_table(path, filesystem=out.store.fs, schema=REQUEST).to_pylist()


def failed(request: dict[str, Any], error: str) -> dict[str, Any]:
    """The ANSWER row of a request that has none, which the engine's log tells as well."""
    logger.info("%s: %s", request["rid"], error, extra={"rid": request["rid"]})
    return {**request, "error": error}


def map_engine(requests: Dataset, engine: type, arguments: tuple[Any, ...], pool: EnginePool, **how: Any) -> Dataset:
    """``requests`` through actors of the class ``engine``. Ray would try a block whose engine dies again without end."""
    with warnings.catch_warnings():  # the named parameters that are to come in its place have none for retries
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return requests.map_batches(
            engine,
            fn_constructor_args=arguments,
            batch_format="pyarrow",
            num_cpus=pool.runtime.cpus,
            max_task_retries=pool.tries - 1,
            **how,
        )
