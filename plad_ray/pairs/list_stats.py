"""What a table of lists looks like, printed before training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.evaluate.texts import to_floats
from plad_ray.pairs.histogram import histogram, sparkline
from plad_ray.pairs.texts import ORDER


def facts(kept: pa.Table, before: int) -> pa.Table:
    """What a summary needs to know of kept candidates (see ``texts.candidates``), whose prompts come after ``before``
    others: ``place``, ``score`` and ``policy``, a place in ``ORDER``."""
    place = pc.add(pc.cast(kept["place"], pa.int64()), before)
    policy = pc.index_in(kept["policy"], value_set=pa.array(ORDER))
    return pa.table({"place": place, "score": kept["score"], "policy": pc.cast(policy, pa.int8())})


def summary(kept: pa.Table, prompts: int, dropped: dict[str, int], left_out: dict[str, int]) -> dict[str, Any]:
    """JSON summary of the ``facts`` of kept candidates, ordered by ``place``, at least two a place.

    ``left_out``: texts that are no candidates, by reason. ``best``: share of lists whose best text by the scorer is of
    that policy, the first of equals.
    """
    place, score = kept["place"].to_numpy(), to_floats(kept["score"])
    starts = np.flatnonzero(np.r_[True, place[1:] != place[:-1]]) if len(place) else np.array([], int)
    sizes = np.diff(np.r_[starts, len(place)])
    policy = kept["policy"].to_numpy()
    found: dict[str, Any] = {
        "kind": "lists",
        "lists": len(starts),
        "prompts": prompts,
        "dropped": dropped,
        "texts": len(place),
        "left_out": left_out,
        "by_policy": {
            ORDER[place]: int(count) for place, count in zip(*np.unique(policy, return_counts=True), strict=True)
        },
        "candidates": {
            "mean": float(sizes.mean()) if len(sizes) else None,
            "histogram": histogram(sizes.astype(float)),
        },
    }
    if len(starts) and not np.isnan(score).any():
        spread = np.maximum.reduceat(score, starts) - np.minimum.reduceat(score, starts)
        best = Counter(
            ORDER[policy[start + int(score[start : start + size].argmax())]]
            for start, size in zip(starts, sizes, strict=True)
        )
        found["score_spread"] = {"mean": float(spread.mean()), "histogram": histogram(spread)}
        found["equal_scores"] = float((spread == 0).mean())
        found["best"] = {policy: count / len(starts) for policy, count in best.items()}
    found["warnings"] = _warnings(found)
    return found


def _warnings(found: dict[str, Any]) -> list[str]:
    warnings = []
    same, texts = found["left_out"].get("duplicate", 0), found["texts"] + sum(found["left_out"].values())
    if same > 0.5 * texts:
        warnings.append(f"{same} of {texts} texts repeat another of their prompt; raise draw.temperatures")
    if found.get("equal_scores", 0) > 0.5:
        warnings.append(
            f"in {found['equal_scores']:.1%} of the lists every text has the same score: they teach no order"
        )
    return warnings


def lines(found: dict[str, Any]) -> list[str]:
    """The summary as plain text, warnings apart."""
    by_policy = ", ".join(f"{policy} {count}" for policy, count in found["by_policy"].items()) or "none"
    told = [
        f"{found['lists']} lists from {found['prompts']} prompts: {found['texts']} texts ({by_policy})",
        f"  dropped     prompts: {_counts(found['dropped'])}; texts: {_counts(found['left_out'])}",
    ]
    for key, name in (("candidates", "texts each"), ("score_spread", "best−worst")):
        if found.get(key) and found[key]["histogram"]:
            told.append(f"  {name:<11} {found[key]['mean']:.3g}  {sparkline(found[key]['histogram'])}")
    if "best" in found:
        best = ", ".join(f"{policy} {share:.1%}" for policy, share in sorted(found["best"].items()))
        told.append(f"  best text   {best}, by the scorer; all scores equal in {found['equal_scores']:.1%}")
    return told


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())) or "none"
