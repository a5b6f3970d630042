"""RSO's pairs (arXiv 2309.06657, §3): statistical rejection sampling over one policy's texts, then disjoint pairs of what
was accepted, ordered by reward.

With texts y drawn from π(y|x), the accepted ones follow π(y|x)·exp(r(x, y)/β) as long as the pool is large: a finite pool
runs out of good texts, and later passes accept what earlier ones refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from plad_ray.artifacts import Artifact
from plad_ray.config import Pairs, Rejection
from plad_ray.errors import PladError
from plad_ray.evaluate.texts import to_floats
from plad_ray.pairs import build, stats
from plad_ray.pairs.texts import FIELDS, SPLIT, candidates, is_imported, prompt_hash, prompt_table
from plad_ray.stages import Job, Outcome

logger = logging.getLogger("plad_ray")
#: of a pair's summary, where every pair is ordered by the scorer
SAYS_NOTHING = ("chosen_wins", "ties", "scored", "wrong_order", "by_reward", "swapped")


def run(job: Job) -> Outcome:
    """Stage: up to ``keep`` / 2 pairs a prompt of the distill split.

    Rows in are the pairs that were formed, and the prompts that gave none (``no_text``, ``one_text``). Pairs are dropped
    as ``tie`` (of equal reward), ``identical``, ``empty_*``, ``truncated_chosen`` and ``over_limit``. Equal texts count in
    the pool as often as they were drawn: that is how likely they are.
    """
    pairs = Pairs.model_validate(job.config["pairs"])
    prompts = prompt_table(job.inputs)
    pool = candidates(job.inputs, prompts, {pairs.rejection.policy: _wanted(job.inputs, pairs.rejection)})
    accepted = _accepted(pool, prompts["prompt_id"].to_pylist(), pairs.rejection, job.config["seed"])
    formed = _formed(prompts, pool, accepted)
    ties = pc.equal(formed["chosen_score"], formed["rejected_score"])
    reason = build.drop_reasons(formed, pairs, {"tie": ties})
    kept = formed.filter(pc.is_null(reason))
    sizes = np.bincount(pool["place"].to_numpy(), minlength=prompts.num_rows)
    none = {"no_text": int((sizes == 0).sum()), "one_text": int((sizes == 1).sum())}
    found = {k: v for k, v in stats.summary(stats.facts(formed, reason), pairs).items() if k not in SAYS_NOTHING}
    summary = found | _told(pairs.rejection, prompts.num_rows, pool, accepted)
    summary["warnings"] = [*summary["warnings"], *_warnings(summary)]
    dropped = summary["dropped"] = {k: v for k, v in (Counter(none) + Counter(summary["dropped"])).items() if v}
    logger.log(logging.WARNING if summary["warnings"] else logging.INFO, "%s", stats.render(summary))
    if not kept.num_rows:
        raise PladError(
            f"rejection: none of the {prompts.num_rows} prompts of the {SPLIT} split gives a pair of the "
            f"{pairs.rejection.policy}'s texts; dropped {dropped or 'none'}. Raise {pairs.rejection.policy}.draw.samples, "
            "or use a scorer that tells the texts apart"
        )
    job.out.store.delete(job.out.file("rows"))
    job.out.write_rows(build.to_trl(kept, bool(job.config["chat"])))
    return Outcome(formed.num_rows + sum(none.values()), kept.num_rows, dropped, summary)


def accept(scores: np.ndarray, keep: int, beta: float, rng: np.random.Generator) -> np.ndarray:
    """Places in ``scores`` (the rewards of a prompt's texts) of those accepted, in order of acceptance (RSO, App. A.1).

    Pass after pass over the texts left, each is accepted with probability exp((r − max r)/β), until ``keep`` are, or none
    is left. β → ∞ keeps the first ones, β → 0 the best.
    """
    accepted = np.empty(0, int)
    left = np.arange(len(scores))
    while len(left) and len(accepted) < keep:
        chance = np.exp((scores[left] - scores[left].max()) / beta)
        taken = rng.random(len(left)) < chance
        accepted = np.r_[accepted, left[taken]]
        left = left[~taken]
    return accepted[:keep]


def _wanted(inputs: Mapping[str, Artifact], settings: Rejection) -> pads.Expression:
    """Which texts are the pool: samples, so greedy ones are only if they are asked for."""
    if is_imported(inputs, settings.policy):
        return pads.scalar(True)
    if settings.temperatures is None:
        return pads.field("temperature") > 0
    return pads.field("temperature").isin(settings.temperatures)


def _accepted(pool: pa.Table, prompt_ids: list[str], settings: Rejection, seed: int) -> list[np.ndarray]:
    """Rows of ``pool`` that are accepted for each prompt that has any, in random order.

    The random numbers of a prompt depend on ``seed`` and its id alone. Raises PladError for a text without a score.
    """
    unscored = pool.filter(pc.is_null(pool["score"]))
    if unscored.num_rows:
        raise PladError(f"rejection: text {unscored['rid'][0]} has no score to be accepted by; set scorer.name")
    place, score = pool["place"].to_numpy(), to_floats(pool["score"])
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    found = []
    for start, stop in zip(starts, np.r_[starts[1:], len(place)], strict=True):
        rng = np.random.default_rng(prompt_hash("rejection", seed, prompt_ids[place[start]]))
        found.append(start + rng.permutation(accept(score[start:stop], settings.keep, settings.beta, rng)))
    return found


def _formed(prompts: pa.Table, pool: pa.Table, accepted: list[np.ndarray]) -> pa.Table:
    """First-round pairs: the accepted texts two by two, the one of higher reward chosen. Columns as ``build.join``'s."""
    twos = [rows[: len(rows) // 2 * 2].reshape(-1, 2) for rows in accepted]
    sides = np.concatenate([np.empty((0, 2), int), *twos])
    score = to_floats(pool["score"])[sides]
    sides = np.where((score[:, 1] > score[:, 0])[:, None], sides[:, ::-1], sides)
    table = prompts.take(pool["place"].take(pa.array(sides[:, 0])))
    for column, side in zip(sides.T, build.SIDES, strict=True):
        for field in (*FIELDS, "score"):
            table = table.append_column(f"{side}_{field}", pool[field].take(pa.array(column)))
    return table.append_column("order", pa.array(["reward"] * len(sides), pa.string()))


def _told(settings: Rejection, prompts: int, pool: pa.Table, accepted: list[np.ndarray]) -> dict[str, Any]:
    """What the summary says instead of who wins."""
    score = to_floats(pool["score"])
    rows = np.concatenate([np.empty(0, int), *accepted])
    best = np.full(prompts, -np.inf)
    np.maximum.at(best, pool["place"].to_numpy(), score)
    told: dict[str, Any] = {
        "kind": "rejection",
        "prompts": prompts,
        "chosen": f"accepted text of the {settings.policy} (rejection sampling, β {settings.beta:g})",
        "rejected": "another of lower reward",
    }
    if len(rows):
        told["pool"] = {
            "texts": len(score),
            "accepted": len(rows),
            "score": float(score.mean()),
            "accepted_score": float(score[rows].mean()),
            "best_score": float(best[np.isfinite(best)].mean()),
        }
    return told


def _warnings(summary: dict[str, Any]) -> list[str]:
    pool = summary.get("pool")
    if pool and pool["accepted"] == pool["texts"]:
        return [
            "every text was accepted, so nothing was selected: no prompt has more texts than pairs.rejection.keep; raise "
            "draw.samples (the paper draws 64 and keeps 8)"
        ]
    return []
