"""Pseudo-preference pairs (PLaD, arXiv 2406.02886, Algorithm 1): the teacher's text is taken as preferred.

Rows keep the order of the prompt table, so the same prompts always give the same table and ``limit`` is nested.
"""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from plad_ray.artifacts import Artifact
from plad_ray.config import Pairs, Pick
from plad_ray.errors import PladError
from plad_ray.pairs import stats
from plad_ray.records import MESSAGES, pair_schema
from plad_ray.stages import Job, Outcome

logger = logging.getLogger("plad_ray")
SPLIT = "distill"
SIDES = ("chosen", "rejected")
FIELDS = ("rid", "text", "finish_reason")


def run(job: Job) -> Outcome:
    """Stage: one row a prompt of the distill split, both sides joined by ``prompt_id``, bad pairs dropped by reason."""
    pairs = Pairs.model_validate(job.config["pairs"])
    joined = join(job.inputs, pairs)
    reason = drop_reasons(joined, pairs)
    kept = joined.filter(pc.is_null(reason))
    dropped = {item["values"]: item["counts"] for item in pc.value_counts(reason.drop_null()).to_pylist()}
    summary = stats.summary(joined, reason, pairs)
    logger.log(logging.WARNING if summary["warnings"] else logging.INFO, "%s", stats.render(summary))
    if not kept.num_rows:
        raise PladError(_nothing_left(pairs, joined.num_rows, dropped))
    job.out.store.delete(job.out.file("rows"))
    job.out.write_rows(to_trl(kept, bool(job.config["chat"])))
    return Outcome(rows_in=joined.num_rows, rows_out=kept.num_rows, dropped=dropped, metrics=summary)


def join(inputs: dict[str, Artifact], pairs: Pairs) -> pa.Table:
    """Prompts of the distill split with ``<side>_{rid,text,finish_reason,score}``; null where a side is missing."""
    table = (
        inputs["prompts"]
        .dataset()
        .to_table(columns=["prompt_id", "prompt", "messages"], filter=pads.field("split") == SPLIT)
    )
    for side in SIDES:
        pick: Pick = getattr(pairs, side)
        responses, scores = _responses(inputs, pick), _scores(inputs.get(_newest("scores", pick.policy, inputs)))
        place = pc.index_in(table["prompt_id"], value_set=responses["prompt_id"].combine_chunks())
        for field in FIELDS:
            table = table.append_column(f"{side}_{field}", responses[field].combine_chunks().take(place))
        place = pc.index_in(table[f"{side}_rid"], value_set=scores["rid"].combine_chunks(), skip_nulls=True)
        table = table.append_column(f"{side}_score", scores["score"].combine_chunks().take(place))
    return table


def _responses(inputs: dict[str, Artifact], pick: Pick) -> pa.Table:
    """The responses a side is picked from, one a prompt. Imported teacher text has no temperature to choose by."""
    imported = pick.policy == "teacher" and "imported" in inputs
    source = inputs["imported" if imported else _newest("responses", pick.policy, inputs)]
    wanted = (
        (pads.field("policy") == pick.policy) & (pads.field("split") == SPLIT) & (pads.field("sample") == pick.sample)
    )
    if not imported:
        wanted &= pads.field("temperature") == pick.temperature
    table = source.dataset().to_table(columns=["prompt_id", *FIELDS], filter=wanted)
    distinct = pc.count_distinct(table["prompt_id"]).as_py()
    if distinct != table.num_rows:
        raise PladError(
            f"artifact {source.path}: {table.num_rows} responses of {stats.describe(pick)} for {distinct} prompts; "
            "a pair needs one response a prompt"
        )
    return table


def _newest(kind: str, policy: str, inputs: dict[str, Artifact]) -> str:
    """A later round has the policy's own artifact; the first one's rows have the same rids."""
    own = f"{kind}/{policy}"
    return own if own in inputs else kind


def _scores(artifact: Artifact | None) -> pa.Table:
    if artifact is None:
        return pa.table({"rid": pa.array([], pa.string()), "score": pa.array([], pa.float64())})
    return artifact.dataset().to_table(columns=["rid", "score"], filter=pads.field("split") == SPLIT)


def drop_reasons(joined: pa.Table, pairs: Pairs) -> pa.Array:
    """Why each row cannot be a pair (the first reason that holds), null where it can."""
    chosen, rejected = (pc.utf8_trim_whitespace(joined[f"{side}_text"]) for side in SIDES)
    cut = pc.and_(pc.equal(joined["chosen_finish_reason"], "length"), pa.scalar(pairs.drop_truncated_chosen))
    checks = {
        "missing_chosen": pc.is_null(joined["chosen_text"]),
        "missing_rejected": pc.is_null(joined["rejected_text"]),
        "empty_chosen": pc.equal(chosen, ""),
        "empty_rejected": pc.equal(rejected, ""),
        "truncated_chosen": cut,
        "identical": pc.equal(chosen, rejected),
    }
    conditions = pa.StructArray.from_arrays(
        [pc.fill_null(_flat(check), False) for check in checks.values()], names=list(checks)
    )
    reason = pc.case_when(conditions, *(pa.scalar(name) for name in checks), pa.scalar(None, pa.string()))
    if pairs.limit is None:
        return reason
    usable = pc.is_null(reason)
    place = pc.cumulative_sum(pc.cast(usable, pa.int64()))
    return pc.if_else(pc.and_(usable, pc.greater(place, pairs.limit)), "over_limit", reason)


def to_trl(kept: pa.Table, chat: bool) -> pa.Table:
    """TRL's preference columns (see ``records.pair_schema``); with ``chat`` each text is a list of messages."""
    columns = {
        "prompt": _prompt_messages(kept) if chat else kept["prompt"],
        **{side: _assistant(kept[f"{side}_text"]) if chat else kept[f"{side}_text"] for side in SIDES},
        **{f"{side}_score": kept[f"{side}_score"] for side in SIDES},
        "score_gap": pc.subtract(kept["chosen_score"], kept["rejected_score"]),
        "order": pa.array(["pseudo"] * kept.num_rows, pa.string()),
        "prompt_id": kept["prompt_id"],
        **{f"{side}_{field}": kept[f"{side}_{field}"] for side in SIDES for field in ("rid", "finish_reason")},
    }
    schema = pair_schema(chat)
    return pa.table([_flat(columns[name]).cast(schema.field(name).type) for name in schema.names], schema=schema)


def _prompt_messages(kept: pa.Table) -> pa.Array:
    """The prompt's messages; a prompt that is plain text is one user message."""
    messages, texts = kept["messages"].combine_chunks(), kept["prompt"]
    return pc.if_else(pc.is_null(messages), _message("user", texts), messages)


def _assistant(texts: pa.ChunkedArray) -> pa.Array:
    return _message("assistant", texts)


def _message(role: str, texts: pa.ChunkedArray) -> pa.Array:
    """A list of one message for each text."""
    content = _flat(texts)
    items = pa.StructArray.from_arrays(
        [pa.array([role] * len(content), pa.string()), content], fields=list(MESSAGES.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(range(len(content) + 1), pa.int32()), items)


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


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
    elif not rows:
        message += f" The {SPLIT} split is empty: check data.sizes, data.fractions or data.hub_splits"
    else:
        message += " Look at them with `plad inspect`"
    return message
