"""What tells a pair whose difference is noise: how far the chosen side's policy agrees with itself over its samples, and in
how many combinations of both sides' samples its text is the better one.

That samples which agree are the more reliable ones is self-consistency (Wang et al. 2022, arXiv 2203.11171), which votes
among final answers; both quantities here, for texts without such an answer, are this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.artifacts import Artifact
from plad_ray.config import Pairs, Pick
from plad_ray.errors import PladError
from plad_ray.evaluate.winrate import wins
from plad_ray.pairs.columns import flat
from plad_ray.pairs.texts import draw_of, responses

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

#: what ``pairs.min_<name>`` is a least value of
MEASURES = ("self_consistency", "agreement")


def measured(joined: pa.Table, inputs: Mapping[str, Artifact], pairs: Pairs) -> pa.Table:
    """``joined`` (see ``build.join``) with a column for each of MEASURES that ``pairs`` sets a least value of; null for
    prompts with too few samples to tell."""
    if pairs.min_self_consistency is not None:
        joined = joined.append_column("self_consistency", _self_consistency(joined["prompt_id"], inputs, pairs.chosen))
    if pairs.min_agreement is not None:
        joined = joined.append_column("agreement", _agreement(joined["prompt_id"], inputs, pairs))
    return joined


def reasons(joined: pa.Table, pairs: Pairs) -> dict[str, pa.ChunkedArray]:
    """Further reasons for ``build.drop_reasons``: ``too_few_samples``, and ``low_<name>`` of each of MEASURES in use."""
    least = {name: value for name in MEASURES if (value := getattr(pairs, f"min_{name}")) is not None}
    if not least:
        return {}
    unknown = reduce(pc.or_, (pc.is_null(joined[name]) for name in least))
    low = {f"low_{name}": pc.less(joined[name], value) for name, value in least.items()}
    return {"too_few_samples": unknown, **low}


def self_consistency(texts: Sequence[str], rouge: RougeScorer) -> float | None:
    """Mean ROUGE-L F1 (0 to 1) over all pairs of ``texts``, a policy's samples for one prompt; None for fewer than two."""
    if len(texts) < 2:
        return None
    return fmean(rouge.score(one, other)["rougeL"].fmeasure for one, other in combinations(texts, 2))


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Share of all combinations of ``ours`` [n] and ``theirs`` [m], the scores of two policies' samples for one prompt, in
    which ours is higher, ties counting half; None for fewer than two combinations."""
    if len(ours) * len(theirs) < 2:
        return None
    return float(wins(ours[:, None], theirs[None, :]).mean())


def _self_consistency(prompt_ids: pa.ChunkedArray, inputs: Mapping[str, Artifact], pick: Pick) -> pa.Array:
    from plad_ray.evaluate.rouge import rouge_scorer  # NLTK behind it costs a plan seconds

    rouge = rouge_scorer(("rougeL",))
    table = responses(inputs, pick.policy, draw_of(inputs, pick))
    samples = _by_prompt(prompt_ids, table["prompt_id"], table["text"])
    return pa.array([self_consistency(texts.tolist(), rouge) for texts in samples], pa.float64())


def _agreement(prompt_ids: pa.ChunkedArray, inputs: Mapping[str, Artifact], pairs: Pairs) -> pa.Array:
    ours, theirs = (_scores(prompt_ids, inputs, pick) for pick in (pairs.chosen, pairs.rejected))
    return pa.array([agreement(*of_prompt) for of_prompt in zip(ours, theirs, strict=True)], pa.float64())


def _scores(prompt_ids: pa.ChunkedArray, inputs: Mapping[str, Artifact], pick: Pick) -> list[np.ndarray]:
    """The scores of a draw's samples, by prompt. Raises PladError for a text without one."""
    table = responses(inputs, pick.policy, draw_of(inputs, pick))
    unscored = table.filter(pc.is_null(table["score"]))
    if unscored.num_rows:
        raise PladError(
            f"pairs.min_agreement: text {unscored['rid'][0]} has no score to be compared by; set scorer.name"
        )
    return _by_prompt(prompt_ids, table["prompt_id"], table["score"])


def _by_prompt(prompt_ids: pa.ChunkedArray, of: pa.ChunkedArray, values: pa.ChunkedArray) -> list[np.ndarray]:
    """``values``, which belong to the prompts ``of``, as one array for each of ``prompt_ids``."""
    place = pc.index_in(flat(of), value_set=flat(prompt_ids)).to_numpy()
    ends = np.cumsum(np.bincount(place, minlength=len(prompt_ids)))
    return np.split(values.to_numpy()[np.argsort(place, kind="stable")], ends)[: len(prompt_ids)]
