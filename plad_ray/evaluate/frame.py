"""One row a (policy, temperature, prompt): the per-prompt numbers that every table and interval is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """The rows of one run, aligned: ``cells[policy, temperature][measure]`` is float [N] over ``prompt_ids``, NaN where
    missing."""

    prompt_ids: list[str]
    cells: dict[tuple[str, float], dict[str, np.ndarray]]

    @classmethod
    def from_rows(cls, rows: pa.Table) -> Frame:
        ids = pc.unique(rows["prompt_id"])
        cells = {}
        keys = rows.group_by(["policy", "temperature"], use_threads=False).aggregate([]).to_pylist()
        for key in keys:
            same = pc.and_(pc.equal(rows["policy"], key["policy"]), pc.equal(rows["temperature"], key["temperature"]))
            part = rows.filter(same)
            place = pc.index_in(part["prompt_id"], value_set=ids).to_numpy(zero_copy_only=False)
            cell = {}
            for measure in MEASURES:
                cell[measure] = np.full(len(ids), np.nan)
                cell[measure][place] = to_floats(part[measure])
            cells[key["policy"], key["temperature"]] = cell
        return cls(ids.to_pylist(), cells)


def prompts_of(artifact: Artifact, evaluate: Evaluate) -> pa.Table:
    """The evaluated prompts, in table order. Raises PladError when there are none."""
    table = artifact.dataset().to_table(
        columns=["prompt_id", "prompt", "reference"], filter=pads.field("split") == evaluate.split
    )
    if not table.num_rows:
        raise PladError(f"evaluate.split {evaluate.split}: the prompt table {artifact.path} has no rows in it")
    return table.slice(0, evaluate.limit)


def responses_of(artifact: Artifact, evaluate: Evaluate, policies: list[str], prompts: pa.Table) -> pa.Table:
    """The first sample of ``policies`` for ``prompts``, ordered by policy, temperature and prompt."""
    wanted = (
        (pads.field("split") == evaluate.split)
        & (pads.field("sample") == 0)
        & pads.field("policy").isin(policies)
        & _is_one_of("temperature", evaluate.temperatures)
        & pads.field("prompt_id").isin(prompts["prompt_id"].combine_chunks())
    )
    columns = ["rid", "policy", "prompt_id", "temperature", "text", "finish_reason"]
    table = artifact.dataset().to_table(columns=columns, filter=wanted)
    return ordered(table, policies, evaluate.temperatures, prompts["prompt_id"].combine_chunks())


def ordered(
    table: pa.Table, policies: Sequence[str], temperatures: Sequence[float], prompt_ids: pa.Array | None = None
) -> pa.Table:
    """``table`` by policy, temperature and prompt; without ``prompt_ids`` the prompts of a cell stay in their order."""
    orders = {} if prompt_ids is None else {"prompt_id": prompt_ids}
    orders |= {"temperature": pa.array(temperatures, pa.float64()), "policy": pa.array(policies, pa.string())}
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
