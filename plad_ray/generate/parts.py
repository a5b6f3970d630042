"""Part files: what an interrupted run has finished, and how the parts become the artifact's rows.

Each block of finished requests is one Parquet file under ``work/parts``, published whole (fsync and rename on a local
store, one PUT on an object store), so a killed run loses only the blocks in flight. A file can hold a request that another
holds too (Ray runs a task again whose node died after it wrote): the first one counts.

Requests are known by their number in the stage's request table, so memory here holds a byte a request at most, and the
rows of one published file.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from plad_ray import records
from plad_ray.artifacts import Artifact
from plad_ray.errors import PladError
from plad_ray.generate.responses import PART

FOLDER = "work/parts"
#: requests of a published file
ROWS_PER_FILE = 10_000


def write_part(out: Artifact, rows: list[dict[str, Any]]) -> None:
    """Publish one block of PART rows, if there are any."""
    if rows:
        out.write_rows(pa.Table.from_pylist(rows, schema=PART), uuid.uuid4().hex, FOLDER)


def files(out: Artifact) -> Iterator[tuple[str, pq.ParquetFile]]:
    """The readable part files by name, each open for its turn; a torn one is deleted and its requests run again. An object
    store has none torn, and an error there is one of reading, which must cost nothing that is finished."""
    for name in sorted(out.store.files(out.file(FOLDER))):
        if name.rpartition("/")[2].startswith("."):
            continue
        file = out.file(f"{FOLDER}/{name}")
        try:
            stream = out.store.fs.open_input_file(out.store.path(file))
            found = pq.ParquetFile(stream)
        except (pa.ArrowInvalid, OSError):
            if not out.store.local:
                raise
            out.store.delete(file)
            continue
        with stream:
            yield file, found


def tables(out: Artifact, columns: list[str]) -> Iterator[pa.Table]:
    """``columns`` of one part file after another."""
    for _, file in files(out):
        yield file.read(columns=columns)


class Numbers:
    """A set of request numbers: one byte for each up to the largest."""

    def __init__(self) -> None:
        self.there = np.zeros(0, bool)

    def __contains__(self, number: int) -> bool:
        return number < len(self.there) and bool(self.there[number])

    def count(self, start: int, stop: int) -> int:
        """How many there are from ``start`` to before ``stop``."""
        return int(self.there[start:stop].sum())

    def add(self, numbers: np.ndarray) -> None:
        if len(numbers):
            missing = int(numbers.max()) + 1 - len(self.there)
            if missing > 0:
                self.there = np.pad(self.there, (0, max(missing, len(self.there))))
            self.there[numbers] = True


def answered(out: Artifact) -> Numbers:
    """Requests that have a response; those that only have an error are tried again."""
    done = Numbers()
    for table in tables(out, ["number", "error"]):
        done.add(table.filter(pc.is_null(table["error"]))["number"].to_numpy())
    return done


def remaining(requests: Iterable[dict[str, Any]], done: Numbers, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """Number the requests of the stage, which always come in the same order, and pass on those that have no response yet;
    ``tally`` counts ``total`` on the way, over all pools."""
    for request in requests:
        number = tally["total"]
        tally["total"] += 1
        if number not in done:
            yield {**request, "number": number}


def sampled(out: Artifact, policies: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """By policy, the ``sampled`` cells of its verification requests."""
    found: dict[str, dict[str, dict[str, Any]]] = {policy: {} for policy in policies}
    for table in tables(out, ["rid", "policy", "sampled"]):
        for row in table.filter(pc.is_valid(table["sampled"])).to_pylist():
            if row["policy"] in found:
                found[row["policy"]].setdefault(row["rid"], row["sampled"])
    return {policy: [rows[rid] for rid in sorted(rows)] for policy, rows in found.items()}


def publish(out: Artifact, total: int) -> tuple[int, Counter[str], dict[str, Any]]:
    """Write ``rows/`` and ``errors/`` from the parts: every request once, in the order of the request table.

    Returns (responses, errors by message, per-policy statistics). Raises PladError when requests are missing.
    """
    for folder in ("rows", "errors"):
        out.store.delete(out.file(folder))
    names, spans = _spans(out)
    errors, statistics = Counter[str](), dict[str, Any]()
    count = 0
    for start in range(0, max(total, int(spans.max(initial=0)) + 1), ROWS_PER_FILE):
        rows = _first_of_each(_between(out, names, spans, start, start + ROWS_PER_FILE))
        failed = pc.is_valid(rows["error"])
        name = f"part-{start // ROWS_PER_FILE:05d}"
        responses, lost = rows.filter(pc.invert(failed)), rows.filter(failed)
        out.write_rows(responses.select(records.RESPONSE.names), name)
        if lost.num_rows or start == 0:
            out.write_rows(lost.select(records.ERROR.names), name, "errors")
        count += responses.num_rows
        errors.update(lost["error"].to_pylist())
        for policy in pc.unique(responses["policy"]).to_pylist():
            _add_statistics(statistics, policy, responses.filter(pc.equal(responses["policy"], policy)))
    if count + sum(errors.values()) != total:
        raise PladError(
            f"{out.name}: {total} requests, but {count} responses and {sum(errors.values())} errors came back"
        )
    return count, errors, statistics


def _spans(out: Artifact) -> tuple[list[str], np.ndarray]:
    """Names of the part files, and [F, 2] the smallest and largest request number of each, from its footer: a block holds
    requests that follow one another, so few files overlap."""
    names, spans = [], []
    for name, file in files(out):
        groups = [file.metadata.row_group(g).column(PART.names.index("number")) for g in range(file.num_row_groups)]
        names.append(name)
        spans.append((min(g.statistics.min for g in groups), max(g.statistics.max for g in groups)))
    return names, np.array(spans, np.int64).reshape(-1, 2)


def _between(out: Artifact, names: list[str], spans: np.ndarray, start: int, stop: int) -> pa.Table:
    """PART rows of the requests from ``start`` to before ``stop``."""
    found = [PART.empty_table()]
    for place in np.flatnonzero((spans[:, 1] >= start) & (spans[:, 0] < stop)):
        table = pq.read_table(out.store.path(names[place]), filesystem=out.store.fs, schema=PART)
        number = table["number"]
        found.append(table.filter(pc.and_(pc.greater_equal(number, start), pc.less(number, stop))))
    return pa.concat_tables(found)


def _first_of_each(table: pa.Table) -> pa.Table:
    """One row a request, by number: its first response, or where it has none its first error."""
    failed = pc.is_valid(table["error"]).to_numpy()
    order = np.lexsort((np.arange(table.num_rows), failed, table["number"].to_numpy()))
    numbers = table["number"].to_numpy()[order]
    return table.take(pa.array(order[np.diff(numbers, prepend=-1) != 0]))


def _add_statistics(statistics: dict[str, Any], policy: str, table: pa.Table) -> None:
    entry = statistics.setdefault(policy, {"rows": 0, "tokens": 0, "prompt_tokens": 0, "truncated": 0})
    entry["rows"] += table.num_rows
    entry["tokens"] += (pc.sum(table["num_tokens"]).as_py() or 0) + (pc.sum(table["num_reasoning_tokens"]).as_py() or 0)
    entry["prompt_tokens"] += pc.sum(table["num_prompt_tokens"]).as_py() or 0
    entry["truncated"] += pc.sum(pc.equal(table["finish_reason"], "length")).as_py() or 0


def usage(out: Artifact, policy: str) -> dict[str, int]:
    """What a policy's answers have cost in tokens over all runs, as far as answers came back: answers that were asked for
    twice count twice. ``unreported``: answers whose endpoint reported no counts."""
    total = {"input_tokens": 0, "output_tokens": 0, "unreported": 0}
    columns = ["num_prompt_tokens", "num_tokens", "num_reasoning_tokens", "error"]
    for every in tables(out, [*columns, "policy"]):
        table = every.filter(pc.equal(every["policy"], policy))
        total["input_tokens"] += pc.sum(table["num_prompt_tokens"]).as_py() or 0
        total["output_tokens"] += sum(pc.sum(table[name]).as_py() or 0 for name in columns[1:3])
        unknown = pc.and_(pc.equal(table["num_prompt_tokens"], 0), pc.is_null(table["error"]))
        total["unreported"] += pc.sum(unknown).as_py() or 0
    return total
