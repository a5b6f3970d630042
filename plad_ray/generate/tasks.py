"""Functions of Ray Data tasks. They import little: a task's process that loads torch costs seconds of CPU each.

Every task operator here runs one task at a time (``ONE_TASK``): Ray starts a process for each task that may run, and
fractional CPUs without a bound start dozens of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from plad_ray import records
from plad_ray.artifacts import Artifact

if TYPE_CHECKING:
    from ray.data import Dataset

    from plad_ray.generate.pools import EnginePool

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
BLOCKS_PER_FILE = 64


def write_requests(out: Artifact, folder: str, number: int, rows: list[dict[str, Any]], rows_per_block: int) -> None:
    """One request file: a row group is a block, verified as a whole or not at all.

    Were only some rows of a block to ask for log-probs, pandas would turn their ``logprobs: 0`` beside None into 0.0, at
    which vLLM's input thread dies without a word and the run hangs (seen in Ray 2.60 with vLLM 0.32).
    """
    blocks = [rows[start : start + rows_per_block] for start in range(0, len(rows), rows_per_block)]
    whole = [{**row, "verify": any(r["verify"] for r in block)} for block in blocks for row in block]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(whole, schema=REQUEST), sink, row_group_size=rows_per_block)
    out.store.write_bytes(out.file(f"{folder}/requests-{number:06d}.parquet"), sink.getvalue().to_pybytes())


def read_requests(block: pa.Table, out: Artifact, folder: str) -> pa.Table:
    """The request rows of the blocks whose numbers are in column ``id``. Where the prompts are token ids, without the
    columns of text: ray.data.llm takes rows through pandas, which changes the types of columns with nulls."""
    tables = []
    for number in block.column("id").to_pylist():
        path = out.store.path(out.file(f"{folder}/requests-{number // BLOCKS_PER_FILE:06d}.parquet"))
        with out.store.fs.open_input_file(path) as stream:
            tables.append(pq.ParquetFile(stream).read_row_group(number % BLOCKS_PER_FILE))
    rows = pa.concat_tables(tables)
    text = ["prompt_text", "prompt_messages"]
    return rows if rows.column("prompt_token_ids").null_count else rows.drop_columns(text)


def stored_requests(out: Artifact, folder: str) -> Iterator[dict[str, Any]]:
    """The request rows of every file in ``folder``, in order."""
    for name in sorted(out.store.files(out.file(folder))):
        path = out.store.path(out.file(f"{folder}/{name}"))
        yield from pq.read_table(path, filesystem=out.store.fs, schema=REQUEST).to_pylist()


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


class VllmRequest:
    """REQUEST row to what ray.data.llm reads beside it. Every row has the same keys: rows share one Arrow struct."""

    def __init__(self, weights: dict[str, str], sampling: dict[str, dict[str, Any]]):
        """By policy: the path that names its weights, and the sampling parameters that its requests share."""
        self.weights, self.sampling = weights, sampling

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        sampled = row["temperature"] > 0
        shared = self.sampling[row["policy"]]
        own = {"temperature": row["temperature"], "seed": int(row["seed"])}
        if not sampled:
            own |= {"top_p": 1.0, "top_k": 0}
        return {
            "model": self.weights[row["policy"]],  # a value that is not the engine's own model names a LoRA folder
            "tokenized_prompt": row["prompt_token_ids"],
            "sampling_params": shared | own,
        }


def vllm_answer(row: dict[str, Any]) -> dict[str, Any]:
    """What ray.data.llm gives back to an ANSWER row."""
    ids = [int(token) for token in row["generated_tokens"]]
    logprobs = None
    if row["verify"]:
        logprobs = [float(step[token]["logprob"]) for step, token in zip(row["logprobs"], ids, strict=True)]
    kept = {name: row[name] for name in REQUEST.names if name in row}
    return {**kept, "ids": ids, "logprobs": logprobs, "error": None}
