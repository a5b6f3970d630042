"""Part files: what an interrupted run has finished, and how the parts become the artifact's rows.

Each block of finished requests is one Parquet file under ``work/parts``, published whole (fsync and rename on a local
store, one PUT on an object store), so a killed run loses only the blocks in flight. A file can hold a request that another
holds too (Ray runs a task again whose node died after it wrote): the first one counts.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from plad_ray import records
from plad_ray.artifacts import Artifact
from plad_ray.errors import PladError
from plad_ray.generate.responses import PART

FOLDER = "work/parts"
#: rows of a published file
ROWS_PER_FILE = 50_000


def write_part(out: Artifact, rows: list[dict[str, Any]]) -> None:
    """Publish one block of PART rows, if there are any."""
    if rows:
        out.write_rows(pa.Table.from_pylist(rows, schema=PART), uuid.uuid4().hex, FOLDER)


def sound_files(out: Artifact) -> list[str]:
    """Paths of the readable part files; a torn one is deleted and its requests run again. An object store has none torn,
    and an error there is one of reading, which must cost nothing that is finished."""
    store, sound = out.store, []
    if not store.local:
        return [store.path(out.file(f"{FOLDER}/{name}")) for name in sorted(store.files(out.file(FOLDER)))]
    for name in sorted(store.files(out.file(FOLDER))):
        if name.rpartition("/")[2].startswith("."):
            continue
        file = out.file(f"{FOLDER}/{name}")
        try:
            with store.fs.open_input_file(store.path(file)) as stream:
                pq.read_metadata(stream)
            sound.append(store.path(file))
        except (pa.ArrowInvalid, OSError):
            store.delete(file)
    return sound


def dataset(out: Artifact) -> pads.Dataset:
    """All sound part files."""
    return pads.dataset(sound_files(out), format="parquet", filesystem=out.store.fs, schema=PART)


def succeeded(out: Artifact) -> set[str]:
    """rids that have a response; those that only have an error are tried again."""
    done: set[str] = set()
    for batch in dataset(out).to_batches(columns=["rid"], filter=pc.field("error").is_null()):
        done.update(batch.column("rid").to_pylist())
    return done


def sampled(out: Artifact, policies: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """By policy, the ``sampled`` cells of its verification requests."""
    found: dict[str, dict[str, dict[str, Any]]] = {policy: {} for policy in policies}
    wanted = pc.field("sampled").is_valid() & pc.field("policy").isin(pa.array(list(found), pa.string()))
    for batch in dataset(out).to_batches(columns=["rid", "policy", "sampled"], filter=wanted):
        for row in batch.to_pylist():
            found[row["policy"]].setdefault(row["rid"], row["sampled"])
    return {policy: [rows[rid] for rid in sorted(rows)] for policy, rows in found.items()}


def publish(out: Artifact, total: int) -> tuple[int, Counter[str], dict[str, Any]]:
    """Write ``rows/`` and ``errors/`` from the parts: every request once, sorted, in files of moderate size.

    Returns (responses, errors by message, per-policy statistics). Memory holds one policy's split at a time. Raises
    PladError when requests are missing.
    """
    for folder in ("rows", "errors"):
        out.store.delete(out.file(folder))
    parts = dataset(out)
    groups = sorted(
        {(r["policy"], r["split"]) for b in parts.to_batches(columns=["policy", "split"]) for r in _unique(b)}
    )
    done: set[str] = set()
    statistics: dict[str, Any] = {}
    for number, (policy, split) in enumerate(groups):
        wanted = (pc.field("policy") == policy) & (pc.field("split") == split) & pc.field("error").is_null()
        table = _first_of_each(parts.to_table(columns=records.RESPONSE.names, filter=wanted))
        done.update(table.column("rid").to_pylist())
        for start in range(0, table.num_rows, ROWS_PER_FILE):
            out.write_rows(table.slice(start, ROWS_PER_FILE), f"part-{number:03d}-{start // ROWS_PER_FILE:05d}")
        _add_statistics(statistics, policy, table)
    if not done:
        out.write_rows(records.RESPONSE.empty_table(), "part-000-00000")
    errors = _errors(parts, done)
    out.write_rows(pa.Table.from_pylist(list(errors.values()), schema=records.ERROR), folder="errors")
    if len(done) + len(errors) != total:
        raise PladError(f"{out.name}: {total} requests, but {len(done)} responses and {len(errors)} errors came back")
    return len(done), Counter(row["error"] for row in errors.values()), statistics


def _unique(batch: pa.RecordBatch) -> list[dict[str, str]]:
    return pa.Table.from_batches([batch]).group_by(batch.schema.names).aggregate([]).to_pylist()


def _first_of_each(table: pa.Table) -> pa.Table:
    """Rows with distinct rid, sorted by prompt, temperature and sample."""
    numbered = table.append_column("__at", pa.array(range(table.num_rows), pa.int64()))
    first = numbered.group_by("rid").aggregate([("__at", "min")]).column("__at_min")
    keys = [("prompt_id", "ascending"), ("temperature", "ascending"), ("sample", "ascending")]
    return table.take(first).sort_by(keys).cast(records.RESPONSE)


def _errors(parts: pads.Dataset, done: set[str]) -> dict[str, dict[str, str]]:
    """The error of every request that never succeeded."""
    found: dict[str, dict[str, str]] = {}
    for batch in parts.to_batches(columns=records.ERROR.names, filter=pc.field("error").is_valid()):
        for row in batch.to_pylist():
            if row["rid"] not in done:
                found.setdefault(row["rid"], row)
    return found


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
    for batch in dataset(out).to_batches(columns=columns, filter=pc.field("policy") == policy):
        total["input_tokens"] += pc.sum(batch["num_prompt_tokens"]).as_py() or 0
        total["output_tokens"] += sum(pc.sum(batch[name]).as_py() or 0 for name in columns[1:3])
        unknown = pc.and_(pc.equal(batch["num_prompt_tokens"], 0), pc.is_null(batch["error"]))
        total["unreported"] += pc.sum(unknown).as_py() or 0
    return total


def remaining(requests: Iterable[dict[str, Any]], done: set[str], tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """The requests that have no response yet; ``tally`` counts ``total`` on the way."""
    for request in requests:
        tally["total"] += 1
        if request["rid"] not in done:
            yield request
