"""RSO's pairs (arXiv 2309.06657, §3): statistical rejection sampling over one policy's texts, then disjoint pairs of what
was accepted, ordered by reward.

With texts y drawn from π(y|x), the accepted ones follow π(y|x)·exp(r(x, y)/β) as long as the pool is large: a finite pool
runs out of good texts, and later passes accept what earlier ones refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

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
from plad_ray.slices import slices
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
    job.out.store.delete(job.out.file("rows"))
    facts: list[pa.Table] = []
    pools: list[Pool] = []
    count = 0
    for number, inputs in enumerate(slices(job.inputs, SPLIT)):
        prompts = prompt_table(inputs)
        texts = candidates(inputs, prompts, {pairs.rejection.policy: _wanted(inputs, pairs.rejection)})
        accepted = _accepted(texts, prompts["prompt_id"].to_pylist(), pairs.rejection, job.config["seed"])
        formed = _formed(prompts, texts, accepted)
        ties = pc.equal(formed["chosen_score"], formed["rejected_score"])
        reason = build.drop_reasons(formed, pairs, {"tie": ties}, before=count)
        kept = formed.filter(pc.is_null(reason))
        if kept.num_rows:
            job.out.write_rows(build.to_trl(kept, bool(job.config["chat"])), f"part-{number:05d}")
        facts.append(stats.facts(formed, reason))
        pools.append(_pool(prompts.num_rows, texts, accepted))
        count += kept.num_rows
    formed_pairs, pool = pa.concat_tables(facts), Pool(*map(np.concatenate, zip(*pools, strict=True)))
    none = {"no_text": int((pool.sizes == 0).sum()), "one_text": int((pool.sizes == 1).sum())}
    found = {k: v for k, v in stats.summary(formed_pairs, pairs).items() if k not in SAYS_NOTHING}
    summary = found | _told(pairs.rejection, pool)
    summary["warnings"] = [*summary["warnings"], *_warnings(summary)]
    dropped = summary["dropped"] = {k: v for k, v in (Counter(none) + Counter(summary["dropped"])).items() if v}
    logger.log(logging.WARNING if summary["warnings"] else logging.INFO, "%s", stats.render(summary))
    if not count:
        raise PladError(
            f"rejection: none of the {len(pool.sizes)} prompts of the {SPLIT} split gives a pair of the "
            f"{pairs.rejection.policy}'s texts; dropped {dropped or 'none'}. Raise {pairs.rejection.policy}.draw.samples, "
            "or use a scorer that tells the texts apart"
        )
    return Outcome(formed_pairs.num_rows + sum(none.values()), count, dropped, summary)


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


class Pool(NamedTuple):
    """Numbers of the texts to choose from: how many each prompt has and its best score, [P]; the scores of all of them,
    and of those that were accepted."""

    sizes: np.ndarray
    best: np.ndarray
    scores: np.ndarray
    accepted: np.ndarray


def _pool(prompts: int, texts: pa.Table, accepted: list[np.ndarray]) -> Pool:
    place, score = texts["place"].to_numpy(), to_floats(texts["score"])
    best = np.full(prompts, -np.inf)
    np.maximum.at(best, place, score)
    rows = np.concatenate([np.empty(0, int), *accepted])
    return Pool(np.bincount(place, minlength=prompts), best, score, score[rows])


def _told(settings: Rejection, pool: Pool) -> dict[str, Any]:
    """What the summary says instead of who wins."""
    told: dict[str, Any] = {
        "kind": "rejection",
        "prompts": len(pool.sizes),
        "chosen": f"accepted text of the {settings.policy} (rejection sampling, β {settings.beta:g})",
        "rejected": "another of lower reward",
    }
    if len(pool.accepted):
        told["pool"] = {
            "texts": len(pool.scores),
            "accepted": len(pool.accepted),
            "score": float(pool.scores.mean()),
            "accepted_score": float(pool.accepted.mean()),
            "best_score": float(pool.best[np.isfinite(pool.best)].mean()),
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
