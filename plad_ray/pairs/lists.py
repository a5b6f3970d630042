"""Lists: every text that was drawn for a prompt, with its score, for list-wise objectives.

Rows keep the order of the prompt table; a list's texts stand teacher first, then by temperature and sample.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from functools import reduce
from operator import or_

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from plad_ray.artifacts import Artifact
from plad_ray.config import Pairs, Pick
from plad_ray.errors import PladError
from plad_ray.evaluate.texts import to_floats
from plad_ray.pairs import columns, list_stats, stats
from plad_ray.pairs.columns import flat
from plad_ray.pairs.texts import ORDER, SPLIT, candidates, draw_of, prompt_table
from plad_ray.records import list_schema
from plad_ray.slices import slices
from plad_ray.stages import Job, Outcome

logger = logging.getLogger("plad_ray")


def run(job: Job) -> Outcome:
    """Stage: one row a prompt of the distill split that has at least two different texts.

    Prompts are dropped as ``no_text``, ``none_usable``, ``fewer_than_two`` or ``over_limit``. Texts are left out as
    ``empty``, as ``duplicate`` of another of their prompt, or (``drop_truncated_chosen``) as ``truncated_best``: cut off,
    and scored above every finished one; the metrics count them.
    """
    pairs = Pairs.model_validate(job.config["pairs"])
    job.out.store.delete(job.out.file("rows"))
    dropped, left_out = Counter[str](), Counter[str]()
    facts: list[pa.Table] = []
    asked = count = 0
    for number, inputs in enumerate(slices(job.inputs, SPLIT)):
        prompts = prompt_table(inputs)
        texts = candidates(inputs, prompts, _wanted(inputs, pairs.lists))
        why = _left_out(texts, pairs.drop_truncated_chosen)
        usable = texts.filter(pc.is_null(why))
        reason = _drop_reasons(texts["place"], usable["place"], prompts.num_rows, pairs, before=count)
        keep = pc.is_null(reason)
        kept = usable.filter(keep.take(flat(usable["place"])))
        if kept.num_rows:
            job.out.write_rows(_table(prompts.filter(keep), kept, bool(job.config["chat"])), f"part-{number:05d}")
        facts.append(list_stats.facts(kept, before=asked))
        dropped.update(_counts(reason))
        left_out.update(_counts(why))
        asked += prompts.num_rows
        count += pc.sum(keep).as_py() or 0
    summary = list_stats.summary(pa.concat_tables(facts), asked, dict(dropped), dict(left_out))
    logger.log(logging.WARNING if summary["warnings"] else logging.INFO, "%s", stats.render(summary))
    if not count:
        raise PladError(
            f"lists: none of the {asked} prompts of the {SPLIT} split has two different texts; dropped "
            f"{dict(dropped) or 'none'}, texts left out {dict(left_out) or 'none'}. Raise student.draw.samples and "
            "temperatures"
        )
    return Outcome(asked, count, summary["dropped"], summary)


def _wanted(inputs: Mapping[str, Artifact], picks: tuple[Pick, ...] | None) -> dict[str, pads.Expression]:
    """By policy, which of its texts; without ``picks`` all of them."""
    if picks is None:
        return dict.fromkeys(ORDER, pads.scalar(True))
    wanted: dict[str, list[pads.Expression]] = {}
    for pick in picks:
        wanted.setdefault(pick.policy, []).append((pads.field("sample") == pick.sample) & draw_of(inputs, pick))
    return {policy: reduce(or_, expressions) for policy, expressions in wanted.items()}


def _left_out(texts: pa.Table, drop_truncated: bool) -> pa.Array:
    """Why each text is no candidate, null where it is one."""
    trimmed = flat(pc.utf8_trim_whitespace(texts["text"]))
    numbered = pa.table({"place": texts["place"], "text": trimmed, "row": pa.array(np.arange(texts.num_rows))})
    first = numbered.group_by(["place", "text"]).aggregate([("row", "min")])["row_min"].to_numpy()
    repeated = np.ones(texts.num_rows, bool)
    repeated[first] = False
    truncated = np.zeros(texts.num_rows, bool)
    if drop_truncated:
        cut = pc.equal(texts["finish_reason"], "length").to_numpy().astype(bool)
        place, score = texts["place"].to_numpy(), to_floats(texts["score"])
        best = np.full(place.max(initial=-1) + 1, -np.inf)  # score of the best finished text of each prompt
        np.fmax.at(best, place[~cut], score[~cut])
        truncated = cut & (score > best[place])  # NaN (unscored) is above nothing
    conditions = {
        "empty": pc.equal(trimmed, ""),
        "duplicate": pa.array(repeated),
        "truncated_best": pa.array(truncated),
    }
    struct = pa.StructArray.from_arrays([flat(c) for c in conditions.values()], names=list(conditions))
    return pc.case_when(struct, *(pa.scalar(name) for name in conditions), pa.scalar(None, pa.string()))


def _drop_reasons(drawn: pa.ChunkedArray, usable: pa.ChunkedArray, prompts: int, pairs: Pairs, before: int) -> pa.Array:
    """Why each prompt has no list, null where it has one, of the ``place`` of each text. ``before``: lists there are
    already, of prompts before these."""
    texts, left = (np.bincount(place.to_numpy(), minlength=prompts) for place in (drawn, usable))
    enough = left >= 2
    over = enough & (np.cumsum(enough) > (prompts if pairs.limit is None else pairs.limit - before))
    reasons = ["no_text", "none_usable", "fewer_than_two", "over_limit"]
    found = np.select([texts == 0, left == 0, ~enough, over], reasons, "")
    return pa.array([reason or None for reason in found.tolist()], pa.string())


def _table(prompts: pa.Table, kept: pa.Table, chat: bool) -> pa.Table:
    """``records.list_schema`` of the kept prompts and their candidates."""
    sizes = np.unique(kept["place"].to_numpy(), return_counts=True)[1]
    offsets = pa.array(np.r_[0, np.cumsum(sizes)], pa.int32())

    def grouped(values: pa.Array | pa.ChunkedArray) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, flat(values))

    found = {
        "prompt": columns.prompts(prompts, chat),
        "candidates": grouped(columns.answers(kept["text"], chat)),
        "scores": grouped(kept["score"]),
        "prompt_id": flat(prompts["prompt_id"]),
        "rids": grouped(kept["rid"]),
        "finish_reasons": grouped(kept["finish_reason"]),
    }
    schema = list_schema(chat)
    return pa.table([found[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def _counts(reasons: pa.Array) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(reasons.drop_null()).to_pylist()}
