"""Where the texts of the distill prompts are found, and their scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from plad_ray.artifacts import Artifact
from plad_ray.config import Pick
from plad_ray.pairs.columns import flat

SPLIT = "distill"
FIELDS = ("rid", "text", "finish_reason")
KEYS = ("prompt_id", "policy", "temperature", "sample")
#: a prompt's texts stand in this order
ORDER = ("teacher", "student")


def prompt_table(inputs: Mapping[str, Artifact]) -> pa.Table:
    """``prompt_id, prompt, messages`` of the distill split, in the order of the prompt table."""
    columns = ["prompt_id", "prompt", "messages"]
    return inputs["prompts"].dataset().to_table(columns=columns, filter=pads.field("split") == SPLIT)


def is_imported(inputs: Mapping[str, Artifact], policy: str) -> bool:
    """Whether the policy's texts were made elsewhere: those have no temperature to choose by."""
    return policy == "teacher" and "imported" in inputs


def source(inputs: Mapping[str, Artifact], policy: str) -> Artifact:
    """Responses of ``policy``: imported ones, the newest of a later round, else those made before distillation."""
    if is_imported(inputs, policy):
        return inputs["imported"]
    return inputs.get(f"responses/{policy}", inputs["responses"])


def draw_of(inputs: Mapping[str, Artifact], pick: Pick) -> pads.Expression:
    """Which of its policy's responses are samples of the draw that ``pick`` is one of: those of its temperature."""
    if is_imported(inputs, pick.policy):
        return pads.scalar(True)
    return pads.field("temperature") == pick.temperature


def responses(inputs: Mapping[str, Artifact], policy: str, wanted: pads.Expression) -> pa.Table:
    """The responses of ``policy`` to distill prompts that ``wanted`` holds for, with their ``score`` (null: unscored)."""
    wanted = (pads.field("policy") == policy) & (pads.field("split") == SPLIT) & wanted
    table = source(inputs, policy).dataset().to_table(columns=[*KEYS, *FIELDS], filter=wanted)
    artifact = inputs.get(f"scores/{policy}", inputs.get("scores"))
    if artifact is None:
        return table.append_column("score", pa.nulls(table.num_rows, pa.float64()))
    known = artifact.dataset().to_table(columns=["rid", "score"], filter=pads.field("split") == SPLIT)
    place = pc.index_in(flat(table["rid"]), value_set=flat(known["rid"]))
    return table.append_column("score", flat(known["score"]).take(place))


def candidates(inputs: Mapping[str, Artifact], prompts: pa.Table, wanted: Mapping[str, pads.Expression]) -> pa.Table:
    """Every text of the policies of ``wanted``, those of a prompt together, and ``place``, the prompt's row."""
    tables = []
    for rank, policy in enumerate(p for p in ORDER if p in wanted):
        table = responses(inputs, policy, wanted[policy])
        tables.append(table.append_column("rank", pa.array([rank] * table.num_rows, pa.int8())))
    table = pa.concat_tables(tables)
    place = pc.index_in(flat(table["prompt_id"]), value_set=flat(prompts["prompt_id"]))
    keys = ("place", "rank", "temperature", "sample")
    return table.append_column("place", place).sort_by([(key, "ascending") for key in keys]).combine_chunks()


def prompt_hash(purpose: str, seed: int, prompt_id: str) -> int:
    """A number in [0, 2⁶⁴) that depends on nothing but its arguments, on every machine and in every version."""
    return int.from_bytes(hashlib.sha256(f"{purpose}|{seed}|{prompt_id}".encode()).digest()[:8], "big")
