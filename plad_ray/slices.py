"""Tables that belong to prompts, cut into slices of the prompt table that fit into memory together.

A join by prompt_id of a slice is a join of small tables, and slices come in the order of the prompt table, so what is made
of them one after another is what would be made of the whole, whatever order the other tables are in.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pandas.util import hash_array

from plad_ray.artifacts import Artifact, Store
from plad_ray.errors import PladError

#: prompts of a slice
PROMPTS = 5_000
#: files that are open at once, each for a slice, while a table is cut
OPEN_FILES = 250
#: columns that no reader of slices wants, and that are large
LEFT_OUT = ("token_ids",)


def slice_size(rows: int, least: int) -> int:
    """Rows of a slice: ``least``, or as many more as it takes to keep the slices of ``rows`` to OPEN_FILES."""
    return max(least, -(-rows // OPEN_FILES))


class Places:
    """Which row of a split of the prompt table each prompt is, in 16 bytes a prompt: ids are held as hashes of 64 bits."""

    def __init__(self, prompts: Artifact, split: str):
        """Raises PladError when a prompt_id is there twice."""
        ids = (batch.column("prompt_id") for batch in prompts.batches(["prompt_id"], pads.field("split") == split))
        hashes = np.concatenate([np.zeros(0, np.uint64), *(_hashes(column) for column in ids)])
        self.rows = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.rows]
        twice = np.flatnonzero(self.hashes[1:] == self.hashes[:-1])
        if len(twice):
            row = int(self.rows[twice[0] + 1])
            found = prompts.dataset().scanner(["prompt_id"], filter=pads.field("split") == split).head(row + 1)
            name = found["prompt_id"][row].as_py()
            raise PladError(f"prompt_id {name!r} is there twice in split {split} of {prompts.path}")

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, prompt_ids: pa.Array) -> np.ndarray:
        """Row of each prompt, int64 [N]; -1 for one that is not of the split."""
        wanted = _hashes(prompt_ids)
        if not len(self):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.hashes, wanted), len(self) - 1)
        return np.where(self.hashes[at] == wanted, self.rows[at], -1)


def _hashes(ids: pa.Array) -> np.ndarray:
    return hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)


def prompts_by_id(prompts: Artifact, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What ``encode_prompt`` reads of the prompts ``ids``; one that is not there is left out."""
    asked = pads.field("prompt_id").isin(list(set(ids)))
    table = prompts.dataset().to_table(columns=["prompt_id", "prompt", "messages"], filter=asked)
    return {row["prompt_id"]: row for row in table.to_pylist()}


def slices(inputs: Mapping[str, Artifact], split: str, limit: int | None = None) -> Iterator[dict[str, Artifact]]:
    """``inputs`` cut to runs of the first ``limit`` prompts of ``split``, in order: ``prompts``, and beside it whatever has
    a prompt_id. A small table comes as one slice, which is the inputs themselves.

    The slices lie in a temporary folder of this machine, each until the next one is asked for.
    """
    places = Places(inputs["prompts"], split)
    count = min(len(places), limit or len(places))
    size = slice_size(count, PROMPTS)
    if count <= size and count == len(places):
        yield dict(inputs)
        return
    with tempfile.TemporaryDirectory(prefix="plad-slices-") as folder:
        for key, artifact in inputs.items():
            _cut(artifact, Path(folder), key, places, split, size, count)
        pa.default_memory_pool().release_unused()  # of cutting, which held a part of every slice
        for number in range(-(-count // size)):
            yield {key: Artifact(Store(folder), f"{number}/{key}") for key in inputs}
            shutil.rmtree(Path(folder) / str(number))
            pa.default_memory_pool().release_unused()


def _cut(artifact: Artifact, folder: Path, key: str, places: Places, split: str, size: int, count: int) -> None:
    """Write the rows of ``artifact`` that belong to each slice; a slice without any is an empty table."""
    schema = pa.schema([field for field in artifact.dataset().schema if field.name not in LEFT_OUT])

    def numbered() -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        for batch in artifact.batches(schema.names, pads.field("split") == split):
            place = places.of(batch.column("prompt_id"))
            yield batch, np.where((place >= 0) & (place < count), place // size, -1)

    files = [folder / str(number) / key / "rows" / "part.parquet" for number in range(-(-count // size))]
    scatter(numbered(), schema, files)


def scatter(numbered: Iterable[tuple[pa.RecordBatch, np.ndarray]], schema: pa.Schema, files: Sequence[Path]) -> None:
    """Write each row to the one of ``files`` (new ones, all open at once) whose number it has; -1: to none."""
    with ExitStack() as stack:
        writers = []
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            writer = pq.ParquetWriter(file, schema, compression="lz4", use_dictionary=False)
            writers.append(stack.enter_context(writer))
        for batch, number in numbered:
            for found in np.unique(number[number >= 0]):
                writers[found].write_batch(batch.filter(pa.array(number == found)))
