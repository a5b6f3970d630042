"""What the pairs look like, printed before training: length and score gaps, identical share, does the teacher win."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.config import Pairs, Pick
from plad_ray.evaluate.texts import count_words, to_floats
from plad_ray.pairs import list_stats
from plad_ray.pairs.histogram import histogram, sparkline


def facts(joined: pa.Table, reason: pa.Array) -> pa.Table:
    """What a summary needs to know of joined rows (see ``build.join``) and their drop reasons: a few numbers a row."""
    scores = [to_floats(joined[f"{side}_score"]) for side in ("chosen", "rejected")]
    swapped = joined["swapped"].to_numpy() if "swapped" in joined.column_names else np.zeros(len(reason), bool)
    columns = {
        "reason": reason.dictionary_encode(),
        **{f"{side}_words": count_words(joined[f"{side}_text"]) for side in ("chosen", "rejected")},
        "rejected_cut": pc.fill_null(pc.equal(joined["rejected_finish_reason"], "length"), False),
        "score_gap": scores[0] - scores[1],
        "by_reward": pc.equal(joined["order"], "reward"),
        "swapped": swapped,
    }
    return pa.table(columns)


def summary(facts: pa.Table, pairs: Pairs) -> dict[str, Any]:
    """JSON summary of ``facts``.

    Lengths and gaps are over the kept pairs, in words. ``chosen_wins`` is over every prompt whose two texts were
    scored, identical ones included (they tie; a tie counts half), so that dropping them does not flatter the teacher, and
    before the reward ordered any (column ``swapped``).
    """
    reasons = pc.value_counts(facts["reason"].drop_null()).to_pylist()
    dropped = {item["values"]: item["counts"] for item in reasons}
    kept, swapped, by_reward = (
        np.asarray(column.to_numpy(), dtype=bool)
        for column in (pc.is_null(facts["reason"]), facts["swapped"], facts["by_reward"])
    )
    words = {side: facts[f"{side}_words"].to_numpy() for side in ("chosen", "rejected")}
    gap = (words["chosen"] - words["rejected"])[kept]
    both = ~(np.isnan(words["chosen"]) | np.isnan(words["rejected"]))
    found: dict[str, Any] = {
        "pairs": int(kept.sum()),
        "prompts": facts.num_rows,
        "chosen": describe(pairs.chosen),
        "rejected": describe(pairs.rejected),
        "dropped": dropped,
        "identical_share": dropped.get("identical", 0) / max(int(both.sum()), 1),
        "words": {side: _mean(values[kept]) for side, values in words.items()},
        "length_gap": {"mean": _mean(gap), "histogram": histogram(gap)},
        "truncated_rejected": _mean(to_floats(facts["rejected_cut"])[kept]),
    }
    difference = facts["score_gap"].to_numpy()
    if not np.isnan(difference).all():
        found |= _score_part(difference, kept, swapped)
    found |= {"by_reward": int((by_reward & kept).sum()), "swapped": int((swapped & kept).sum())}
    found["warnings"] = _warnings(found, pairs)
    return found


def _score_part(difference: np.ndarray, kept: np.ndarray, swapped: np.ndarray) -> dict[str, Any]:
    scored = np.where(swapped, -difference, difference)[~np.isnan(difference)]
    gap = difference[kept & ~np.isnan(difference)]
    return {
        "score_gap": {"mean": _mean(gap), "histogram": histogram(gap)},
        "chosen_wins": float((scored > 0).mean() + 0.5 * (scored == 0).mean()),
        "ties": float((scored == 0).mean()),
        "scored": len(scored),
        "wrong_order": float((gap < 0).mean()) if len(gap) else None,
    }


def _warnings(found: dict[str, Any], pairs: Pairs) -> list[str]:
    warnings = []
    wins = found.get("chosen_wins")
    if wins is not None and wins < 0.5 and pairs.reward_share < 1:
        who = "teacher" if (pairs.chosen.policy, pairs.rejected.policy) == ("teacher", "student") else "chosen side"
        warnings.append(
            f"the {who} wins only {wins:.1%} of prompts by the scorer: PLaD assumes that the preferred text is better, "
            "and below a half the student learns the wrong order. A stronger or greedier teacher is what would be right"
        )
    if found["identical_share"] > 0.5:
        warnings.append(f"{found['identical_share']:.1%} of pairs were identical texts and teach nothing")
    cut = found["dropped"].get("truncated_chosen", 0)
    if cut > 0.05 * found["prompts"]:
        warnings.append(
            f"{cut} chosen texts ({cut / found['prompts']:.1%}) hit the token limit; raise generate.max_tokens"
        )
    return warnings


def render(found: dict[str, Any]) -> str:
    """The summary of a table of pairs or lists as a few lines of plain text."""
    lines = list_stats.lines(found) if found.get("kind") == "lists" else _pair_lines(found)
    return "\n".join([*lines, *(f"  WARNING: {warning}" for warning in found["warnings"])])


def _pair_lines(found: dict[str, Any]) -> list[str]:
    words, gap = found["words"], found["length_gap"]
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(found["dropped"].items())) or "none"
    lines = [
        f"{found['pairs']} pairs from {found['prompts']} prompts: {found['chosen']} preferred over {found['rejected']}",
        f"  dropped     {dropped}; identical {found['identical_share']:.1%}",
    ]
    if found["pairs"]:
        lines.append(
            f"  words       chosen {words['chosen']:.1f}, rejected {words['rejected']:.1f}, gap {gap['mean']:+.1f}  "
            f"{sparkline(gap['histogram'])}"
        )
    if found.get("score_gap") and found["score_gap"]["histogram"]:
        lines.append(f"  score gap   {found['score_gap']['mean']:+.3f}  {sparkline(found['score_gap']['histogram'])}")
    if "chosen_wins" in found:
        lines.append(
            f"  chosen wins {found['chosen_wins']:.1%} of {found['scored']} prompts, "
            f"ties {found['ties']:.1%} (counted half)"
        )
    if found.get("by_reward"):
        lines.append(f"  order       {found['by_reward']} pairs by reward, {found['swapped']} of them swapped")
    if "pool" in found:
        lines.append(_pool_line(found["pool"]))
    if found.get("wrong_order") is not None:
        lines.append(f"  wrong order {found['wrong_order']:.1%} of the pairs, by the scorer")
    return lines


def _pool_line(pool: dict[str, Any]) -> str:
    return (
        f"  accepted    {pool['accepted']} of {pool['texts']} texts; mean score {pool['accepted_score']:.3f} against "
        f"{pool['score']:.3f} of the pool and {pool['best_score']:.3f} of each prompt's best"
    )


def describe(pick: Pick) -> str:
    """E.g. ``student greedy`` or ``teacher at temperature 0.7``."""
    how = "greedy" if pick.temperature == 0 else f"at temperature {pick.temperature:g}"
    return f"{pick.policy} {how}" + (f", sample {pick.sample}" if pick.sample else "")


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
