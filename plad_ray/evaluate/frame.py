"""One row a (policy, temperature, prompt): the per-prompt numbers that every table and interval is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from plad_ray.artifacts import Artifact
from plad_ray.config import Evaluate
from plad_ray.errors import PladError
from plad_ray.evaluate.texts import count_words, to_floats

Cell = tuple[str, float]  # policy, temperature

METRICS = ("rouge1", "rouge2", "rougeL")
MEASURES = ("score", "reference_score", "words", "truncated", *METRICS)

#: What the evaluation artifact keeps under ``rows/``. ROUGE is F1 × 100.
ROW = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("policy", pa.string()),
        ("temperature", pa.float64()),
        ("score", pa.float64()),
        ("reference_score", pa.float64()),
        ("words", pa.float64()),
        ("truncated", pa.bool_()),
        *((metric, pa.float64()) for metric in METRICS),
    ]
)


@dataclass(frozen=True)
class Frame:
    """The rows of one run, aligned: ``cells[policy, temperature][measure]`` is float [N] over ``ids``, NaN where
    missing."""

    ids: pa.StringArray
    cells: dict[Cell, dict[str, np.ndarray]]

    @property
    def prompt_ids(self) -> list[str]:
        return self.ids.to_pylist()

    @classmethod
    def from_rows(cls, batches: Iterable[pa.RecordBatch]) -> Frame:
        """Of the evaluation artifact's rows, of which nothing but their ids and numbers is held."""
        read: dict[Cell, list[tuple[pa.StringArray, np.ndarray]]] = {}
        for batch in batches:
            for cell, rows in by_cell(pa.table(batch)):
                numbers = np.stack([to_floats(rows[measure]) for measure in MEASURES])
                read.setdefault(cell, []).append((rows["prompt_id"].combine_chunks(), numbers))
        ids, aligned = pa.array([], pa.string()), {}
        for cell in list(read):
            names, pieces = zip(*read.pop(cell), strict=True)
            own = pa.concat_arrays(names)
            ids = pc.unique(pa.concat_arrays([ids, own]))
            aligned[cell] = _scattered(pieces, pc.index_in(own, value_set=ids).to_numpy(), len(ids))
        return cls(ids, {cell: dict(zip(MEASURES, _longer(a, len(ids)), strict=True)) for cell, a in aligned.items()})


def by_cell(rows: pa.Table) -> Iterator[tuple[Cell, pa.Table]]:
    """``rows`` by policy and temperature, in the order in which these come up."""
    keys = rows.group_by(["policy", "temperature"], use_threads=False).aggregate([])
    for policy, temperature in zip(keys["policy"].to_pylist(), keys["temperature"].to_pylist(), strict=True):
        same = pc.and_(pc.equal(rows["policy"], policy), pc.equal(rows["temperature"], temperature))
        yield (policy, temperature), rows.filter(same)


def _scattered(pieces: Sequence[np.ndarray], place: np.ndarray, count: int) -> np.ndarray:
    """``pieces``, each [M, n], one after another in the columns ``place`` of [M, count]; NaN in the others."""
    found = np.full((len(MEASURES), count), np.nan)
    found[:, place] = np.concatenate(pieces, axis=1)
    return found


def _longer(values: np.ndarray, count: int) -> np.ndarray:
    missing = count - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=np.nan) if missing else values


def prompts_of(artifact: Artifact, evaluate: Evaluate) -> pa.Table:
    """The evaluated prompts, in table order. Raises PladError when there are none."""
    table = artifact.dataset().to_table(
        columns=["prompt_id", "prompt", "reference"], filter=pads.field("split") == evaluate.split
    )
    if not table.num_rows:
        raise PladError(f"evaluate.split {evaluate.split}: the prompt table {artifact.path} has no rows in it")
    return table.slice(0, evaluate.limit)


def responses_of(artifact: Artifact, evaluate: Evaluate, policies: list[str], prompts: pa.Table) -> pa.Table:
    """The first sample of ``policies`` for ``prompts``, by policy, temperature and prompt, in the order of each."""
    wanted = (
        (pads.field("split") == evaluate.split)
        & (pads.field("sample") == 0)
        & pads.field("policy").isin(pa.array(policies, pa.string()))
        & _is_one_of("temperature", evaluate.temperatures)
        & pads.field("prompt_id").isin(prompts["prompt_id"].combine_chunks())
    )
    columns = ["rid", "policy", "prompt_id", "temperature", "text", "finish_reason"]
    table = artifact.dataset().to_table(columns=columns, filter=wanted)
    orders = {
        "prompt_id": prompts["prompt_id"].combine_chunks(),
        "temperature": pa.array(evaluate.temperatures, pa.float64()),
        "policy": pa.array(policies, pa.string()),
    }
    places = [pc.index_in(table[name], value_set=order).to_numpy() for name, order in orders.items()]
    return table.take(pa.array(np.lexsort(places)))


def _is_one_of(column: str, values: tuple[float, ...]) -> pads.Expression:
    """Equality with each value: pyarrow's ``isin`` misses 0.0 where Parquet's statistics say -0.0 (26.0.1)."""
    return reduce(or_, (pads.field(column) == value for value in values))


def build_rows(responses: pa.Table, prompts: pa.Table, scores: pa.Table | None) -> pa.Table:
    """``ROW`` rows of ``responses``; ``scores`` has rid and score, None without a scorer."""
    from plad_ray.evaluate.rouge import rouge_columns  # NLTK behind it costs a plan seconds

    place = pc.index_in(responses["prompt_id"], value_set=prompts["prompt_id"].combine_chunks())
    references = prompts["reference"].combine_chunks().take(place.combine_chunks())
    rouge = rouge_columns(responses["text"].to_pylist(), references.to_pylist())
    columns: Mapping[str, pa.Array | pa.ChunkedArray] = {
        "prompt_id": responses["prompt_id"],
        "policy": responses["policy"],
        "temperature": responses["temperature"],
        "score": _lookup(scores, responses["rid"]),
        "reference_score": _lookup(scores, pc.binary_join_element_wise("reference", responses["prompt_id"], ":")),
        "words": pa.array(count_words(responses["text"])),
        "truncated": pc.equal(responses["finish_reason"], "length"),
        **{metric: pa.array(values, from_pandas=True) for metric, values in rouge.items()},
    }
    return pa.table([columns[name] for name in ROW.names], schema=ROW)


def read_scores(artifacts: list[Artifact], split: str) -> pa.Table:
    """rid and score of every scored text of ``split``; a reference scored twice comes up once."""
    tables = [a.dataset().to_table(columns=["rid", "score"], filter=pads.field("split") == split) for a in artifacts]
    return pa.concat_tables(tables)


def _lookup(scores: pa.Table | None, rids: pa.ChunkedArray) -> pa.Array:
    if scores is None:
        return pa.nulls(len(rids), pa.float64())
    place = pc.index_in(rids, value_set=scores["rid"].combine_chunks())
    place = place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place
    return scores["score"].combine_chunks().take(place)
