"""The prompts stage: read a source, give every row an id and a split, write prompt rows.

Rows of a split stand in hash order, so its first n are the same n in every run and within its first n + 1.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plad_ray.artifacts import fingerprint
from plad_ray.config import SPLITS, Data, SplitName
from plad_ray.data import splits
from plad_ray.data.pools import Rows, pools
from plad_ray.data.rows import Row, short_hash
from plad_ray.data.sources import hh
from plad_ray.errors import PladError
from plad_ray.records import PROMPT
from plad_ray.slices import scatter, slice_size
from plad_ray.stages import Job, Outcome

BATCH = 4096  # rows a record batch while reading
PART = 20_000  # rows a Parquet file, which are held while it is written


@dataclass
class Held:
    """The rows kept so far: their texts in a file, what splitting needs of each in memory."""

    texts: pq.ParquetWriter
    buffer: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    pools: list[SplitName] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)  # where each id came from
    pool_of_group: dict[str, SplitName] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    rows_in: int = 0

    def flush(self) -> None:
        if self.buffer:
            self.texts.write_batch(pa.RecordBatch.from_pylist(self.buffer, PROMPT))
            self.buffer.clear()


def run(job: Job) -> Outcome:
    """Config ``data`` (section), ``seed``, ``source`` (its identity) -> PROMPT rows.

    Dropped by reason: ``duplicate`` (same prompt and reference as an earlier row), ``prompt_too_long`` (over
    ``max_prompt_chars``), ``group_in_other_split`` (a published split holds the group too), ``over_limit`` (``sizes``,
    ``limit``), and the source's own reasons. Raises PladError naming file, line and column for bad input.
    """
    data, seed = Data.model_validate(job.config["data"]), int(job.config["seed"])
    with tempfile.TemporaryDirectory(prefix="plad-rows-") as folder:
        texts = Path(folder) / "kept.parquet"
        with pq.ParquetWriter(texts, PROMPT, compression="lz4", use_dictionary=False) as writer:
            held = _read(job, data, seed, Held(writer))
        assigned = _split(held, data, seed if data.split_seed is None else data.split_seed)
        order = splits.ranks(held.ids, seed)
        chosen: dict[SplitName, list[int]] = {}
        for split in SPLITS:
            rows = [i for i in order if assigned[i] == split]
            cap = min(data.sizes.get(split, len(rows)), data.limit or len(rows))
            held.dropped["over_limit"] += max(0, len(rows) - cap)
            chosen[split] = rows[:cap]
        _write(job, texts, chosen)
    written = {split: len(rows) for split, rows in chosen.items()}
    metrics = {
        "splits": written,
        "groups": len(set(held.groups)),
        "template_hash": fingerprint([data.source, data.prompt_format, data.reference_format])[:16],
    }
    dropped = {reason: n for reason, n in sorted(held.dropped.items()) if n}
    return Outcome(held.rows_in, sum(written.values()), dropped, metrics)


def _read(job: Job, data: Data, seed: int, held: Held) -> Held:
    found = pools(data, seed, job.config["source"])
    for pool in splits.ORDER:
        if pool in found:
            _read_pool(job, data, held, pool, found[pool])
            if pool not in held.pools:
                raise PladError(
                    f"data: no row of {pool} is left of those read; dropped: {dict(held.dropped)}"
                    + ("; set data.group_split: false to allow it" if held.dropped["group_in_other_split"] else "")
                )
    held.flush()
    return held


def _read_pool(job: Job, data: Data, held: Held, pool: SplitName, rows: Rows) -> None:
    for row, where in rows:
        held.rows_in += 1
        if held.rows_in % BATCH == 0:
            job.progress(held.rows_in, held.rows_in, "rows")
        reason = row if isinstance(row, str) else _add(data, held, pool, row, where)
        if reason:
            held.dropped[reason] += 1


def _add(data: Data, held: Held, pool: SplitName, row: Row, where: str) -> str | None:
    """Keep ``row``, or say why not."""
    if data.max_prompt_chars is not None and len(row.prompt) > data.max_prompt_chars:
        return "prompt_too_long"
    prompt_id = row.prompt_id or short_hash(row.prompt, row.messages, row.reference)
    if prompt_id in held.places:
        if row.prompt_id is None:
            return "duplicate"
        raise PladError(
            f"{where}: {data.columns.prompt_id} {prompt_id!r} was seen before at {held.places[prompt_id]}; ids must be "
            "unique over all splits (without data.columns.prompt_id they are made from the content)"
        )
    first = held.pool_of_group.setdefault(row.group, pool)
    if first != pool and data.group_split and not _resplit(data):
        return "group_in_other_split"
    held.places[prompt_id] = where if row.prompt_id else ""
    held.ids.append(prompt_id)
    held.groups.append(row.group)
    held.pools.append(pool)
    held.buffer.append({"prompt_id": prompt_id, "group": row.group, "prompt": row.prompt, "messages": row.messages,
                        "reference": row.reference, "split": None})  # fmt: skip
    if len(held.buffer) >= BATCH:
        held.flush()
    return None


def _resplit(data: Data) -> bool:
    """HH's published splits tear dialogues apart (METHODS §7.3), so grouped splitting keeps only their sizes."""
    return data.source == "hh" and data.group_split


def _split(held: Held, data: Data, seed: int) -> list[SplitName]:
    counts = Counter(held.pools)
    dev = data.sizes.get("dev", hh.DEV_ROWS) if data.source == "hh" else None
    quotas = {pool: splits.shares(pool, n, counts, data.fractions, dev) for pool, n in counts.items()}
    keys = held.groups if data.group_split else held.ids
    if _resplit(data):
        return splits.assign(keys, _added(quotas), seed)
    assigned: list[SplitName] = list(held.pools)
    for pool, shares in quotas.items():
        if list(shares) != [pool]:
            rows = [i for i, p in enumerate(held.pools) if p == pool]
            for i, split in zip(rows, splits.assign([keys[i] for i in rows], shares, seed), strict=True):
                assigned[i] = split
    return assigned


def _added(quotas: Mapping[SplitName, Mapping[SplitName, float]]) -> dict[SplitName, float]:
    total: Counter[SplitName] = Counter()
    for shares in quotas.values():
        total.update(shares)
    return dict(total)


def _write(job: Job, texts: Path, chosen: Mapping[SplitName, list[int]]) -> None:
    """Write each split from ``texts``, whose rows ``chosen`` numbers in their order, holding a part at a time."""
    size = slice_size(sum(map(len, chosen.values())), PART)
    parts = {
        (split, start // size): rows[start : start + size]
        for split, rows in chosen.items()
        for start in range(0, len(rows), size)
    }
    files = [texts.parent / f"{split}-{number}.parquet" for split, number in parts]
    scatter(_numbered(texts, list(parts.values())), PROMPT, files)
    job.out.store.delete(job.out.file("rows"))  # what a killed run may have left
    for ((split, number), rows), file in zip(parts.items(), files, strict=True):
        part = pq.read_table(file, schema=PROMPT).take(np.argsort(np.argsort(rows)))
        part = part.set_column(PROMPT.get_field_index("split"), "split", pa.array([split] * len(part)))
        job.out.write_rows(part, f"{split}-{number:05d}")


def _numbered(texts: Path, parts: list[list[int]]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Rows of ``texts`` with the number of the part that each belongs to, -1: none."""
    file = pq.ParquetFile(texts)
    part_of = np.full(file.metadata.num_rows, -1)
    for number, rows in enumerate(parts):
        part_of[rows] = number
    start = 0
    for batch in file.iter_batches(BATCH):
        yield batch, part_of[start : start + batch.num_rows]
        start += batch.num_rows
