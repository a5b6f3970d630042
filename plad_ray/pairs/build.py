"""Preference pairs (PLaD, arXiv 2406.02886): the teacher's text is taken as preferred (pseudo pairs, Algorithm 1), or, in
a share of the pairs, the text that the scorer prefers ("real" pairs, §5.3).

Rows keep the order of the prompt table, so the same prompts always give the same table and ``limit`` is nested.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from plad_ray.artifacts import Artifact
from plad_ray.config import Pairs, Pick
from plad_ray.errors import PladError
from plad_ray.pairs import columns, filters, stats
from plad_ray.pairs.columns import flat
from plad_ray.pairs.texts import FIELDS, SPLIT, draw_of, prompt_hash, prompt_table, responses, source
from plad_ray.records import pair_schema
from plad_ray.slices import slices
from plad_ray.stages import Job, Outcome

logger = logging.getLogger("plad_ray")
SIDES = ("chosen", "rejected")


def run(job: Job) -> Outcome:
    """Stage: one row a prompt of the distill split, both sides joined by ``prompt_id``, bad pairs dropped by reason."""
    pairs = Pairs.model_validate(job.config["pairs"])
    joined = (filters.measured(join(inputs, pairs), inputs, pairs) for inputs in slices(job.inputs, SPLIT))
    ordered = (reorder(table, pairs.reward_share, job.config["seed"]) for table in joined)
    summary = write(job.out, ordered, pairs, bool(job.config["chat"]))
    rows, count, dropped = summary["prompts"], summary["pairs"], summary["dropped"]
    logger.log(logging.WARNING if summary["warnings"] else logging.INFO, "%s", stats.render(summary))
    if not count:
        raise PladError(_nothing_left(pairs, rows, dropped))
    return Outcome(rows_in=rows, rows_out=count, dropped=dropped, metrics=summary)


def write(out: Artifact, tables: Iterable[pa.Table], pairs: Pairs, chat: bool) -> dict[str, Any]:
    """Write what is left of joined rows, a part a table; what ``stats.summary`` says of all of them."""
    out.store.delete(out.file("rows"))
    facts: list[pa.Table] = []
    count = 0
    for number, joined in enumerate(tables):
        reason = drop_reasons(joined, pairs, filters.reasons(joined, pairs), before=count)
        kept = joined.filter(pc.is_null(reason))
        if kept.num_rows:
            out.write_rows(to_trl(kept, chat), f"part-{number:05d}")
        facts.append(stats.facts(joined, reason))
        count += kept.num_rows
    return stats.summary(pa.concat_tables(facts), pairs)


def join(inputs: Mapping[str, Artifact], pairs: Pairs) -> pa.Table:
    """Prompts of the distill split with ``<side>_{rid,text,finish_reason,score}``; null where a side is missing."""
    table = prompt_table(inputs)
    for side in SIDES:
        texts = _picked(inputs, getattr(pairs, side))
        place = pc.index_in(table["prompt_id"], value_set=flat(texts["prompt_id"]))
        for field in (*FIELDS, "score"):
            table = table.append_column(f"{side}_{field}", flat(texts[field]).take(place))
    return table


def _picked(inputs: Mapping[str, Artifact], pick: Pick) -> pa.Table:
    """The responses a side is picked from, one a prompt."""
    table = responses(inputs, pick.policy, (pads.field("sample") == pick.sample) & draw_of(inputs, pick))
    distinct = pc.count_distinct(table["prompt_id"]).as_py()
    if distinct != table.num_rows:
        raise PladError(
            f"artifact {source(inputs, pick.policy).path}: {table.num_rows} responses of {stats.describe(pick)} for "
            f"{distinct} prompts; a pair needs one response a prompt"
        )
    return table


def reorder(joined: pa.Table, share: float, seed: int) -> pa.Table:
    """``joined`` with ``order`` (pseudo, or reward in a ``share`` of the prompts) and ``swapped``: where the reward orders
    and is higher for the rejected text, the sides change places.

    Which prompts depends on ``seed`` and the prompt_id alone, and those of a smaller share are among those of a larger
    one. Raises PladError for a pair of that share without scores.
    """
    drawn = [prompt_hash("reward-order", seed, i) / 2**64 < share for i in joined["prompt_id"].to_pylist()]
    by_reward = pa.array(drawn, pa.bool_())
    complete = pc.and_(pc.is_valid(joined["chosen_text"]), pc.is_valid(joined["rejected_text"]))
    scored = pc.and_(pc.is_valid(joined["chosen_score"]), pc.is_valid(joined["rejected_score"]))
    unscored = joined.filter(pc.and_(pc.and_(flat(complete), by_reward), pc.invert(flat(scored))))
    if unscored.num_rows:
        raise PladError(
            f"pairs.reward_share {share:g}: the pair of prompt {unscored['prompt_id'][0]} has no scores to be ordered by; "
            "set scorer.name"
        )
    higher = pc.fill_null(pc.greater(joined["rejected_score"], joined["chosen_score"]), False)
    swapped = pc.and_(flat(higher), by_reward)
    table = joined
    for field in (*FIELDS, "score"):
        sides = [flat(joined[f"{side}_{field}"]) for side in SIDES]
        for side, column in zip(SIDES, (pc.if_else(swapped, *sides[::-1]), pc.if_else(swapped, *sides)), strict=True):
            table = table.set_column(table.schema.get_field_index(f"{side}_{field}"), f"{side}_{field}", column)
    order = pc.if_else(by_reward, "reward", "pseudo")
    return table.append_column("order", order).append_column("swapped", swapped)


def drop_reasons(
    joined: pa.Table, pairs: Pairs, further: Mapping[str, pa.Array] | None = None, before: int = 0
) -> pa.Array:
    """Why each row cannot be a pair (the first reason that holds, ``further`` ones last), null where it can. ``before``:
    pairs there are already, of rows before these."""
    chosen, rejected = (pc.utf8_trim_whitespace(joined[f"{side}_text"]) for side in SIDES)
    cut = pc.and_(pc.equal(joined["chosen_finish_reason"], "length"), pa.scalar(pairs.drop_truncated_chosen))
    checks = {
        "missing_chosen": pc.is_null(joined["chosen_text"]),
        "missing_rejected": pc.is_null(joined["rejected_text"]),
        "empty_chosen": pc.equal(chosen, ""),
        "empty_rejected": pc.equal(rejected, ""),
        "truncated_chosen": cut,
        "identical": pc.equal(chosen, rejected),
        **(further or {}),
    }
    conditions = pa.StructArray.from_arrays(
        [pc.fill_null(flat(check), False) for check in checks.values()], names=list(checks)
    )
    reason = pc.case_when(conditions, *(pa.scalar(name) for name in checks), pa.scalar(None, pa.string()))
    if pairs.limit is None:
        return reason
    usable = pc.is_null(reason)
    place = pc.cumulative_sum(pc.cast(usable, pa.int64()))
    return pc.if_else(pc.and_(usable, pc.greater(place, pairs.limit - before)), "over_limit", reason)


def to_trl(kept: pa.Table, chat: bool) -> pa.Table:
    """TRL's preference columns (see ``records.pair_schema``); with ``chat`` each text is a list of messages."""
    found = {
        "prompt": columns.prompts(kept, chat),
        **{side: columns.answers(kept[f"{side}_text"], chat) for side in SIDES},
        **{f"{side}_score": kept[f"{side}_score"] for side in SIDES},
        "score_gap": pc.subtract(kept["chosen_score"], kept["rejected_score"]),
        "order": kept["order"],
        "prompt_id": kept["prompt_id"],
        **{f"{side}_{field}": kept[f"{side}_{field}"] for side in SIDES for field in ("rid", "finish_reason")},
    }
    schema = pair_schema(chat)
    return pa.table([flat(found[name]).cast(schema.field(name).type) for name in schema.names], schema=schema)


def _nothing_left(pairs: Pairs, rows: int, dropped: dict[str, int]) -> str:
    counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items(), key=lambda i: -i[1])) or "none"
    message = (
        f"pairs: none of the {rows} prompts of the {SPLIT} split gives a pair of {stats.describe(pairs.chosen)} "
        f"(chosen) and {stats.describe(pairs.rejected)} (rejected); dropped {counts}."
    )
    if dropped.get("identical", 0) > rows / 2:
        message += (
            " The two sides are the same text: raise pairs.rejected.temperature (and student.draw.temperatures), "
            "or use a weaker student"
        )
    elif dropped.get("truncated_chosen", 0) > rows / 2:
        message += (
            " The chosen text hits the token limit: raise generate.max_tokens, or set pairs.drop_truncated_chosen=false"
        )
    elif name := next((n for n in filters.MEASURES if dropped.get(f"low_{n}", 0) > rows / 2), None):
        message += f" Most prompts are below pairs.min_{name}: lower it"
    elif not rows:
        message += f" The {SPLIT} split is empty: check data.sizes, data.fractions or data.hub_splits"
    else:
        message += " Look at them with `plad inspect`"
    return message
