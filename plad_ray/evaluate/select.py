"""Keep the candidate with the best win rate on the dev prompts (PLaD §4.3)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plad_ray.artifacts import Artifact
from plad_ray.errors import PladError
from plad_ray.evaluate.table import mean
from plad_ray.evaluate.texts import to_floats
from plad_ray.evaluate.winrate import wins
from plad_ray.stages import Job, Outcome

logger = logging.getLogger("plad_ray")


def run(job: Job) -> Outcome:
    """Stage: copy the files of the best of ``adapter/<candidate>``. Inputs: ``scores`` of the dev responses."""
    scores = job.inputs["scores"].table(["rid", "policy", "prompt_id", "temperature", "score"])
    found = {name: win_rates(scores, name) for name in job.config["candidates"]}
    best = max(found, key=lambda name: found[name]["win_rate"])  # the first of equals, by name
    logger.info("selected %s: %s", best, ", ".join(f"{n} {f['win_rate']:.1%}" for n, f in found.items()))
    _copy(job.inputs[f"adapter/{best}"], job.out)
    return Outcome(metrics={"selected": best, "candidates": found})


def win_rates(scores: pa.Table, policy: str) -> dict[str, Any]:
    """Win rate of ``policy`` against the references, at each temperature and over all; ties count half."""
    ours, won, _ = _compared(scores, policy)
    temperatures = np.asarray(ours["temperature"].to_numpy())
    rate = mean(won)
    if rate is None:
        raise PladError(f"distill.select_on_dev: {policy} has no score beside a scored reference on the dev prompts")
    return {
        "win_rate": rate,
        "by_temperature": {f"{t:g}": mean(won[temperatures == t]) for t in np.unique(temperatures)},
    }


def prompt_wins(scores: pa.Table, policies: list[str]) -> np.ndarray:
    """How often each of M ``policies`` wins against the reference of each of N prompts, over its temperatures: [M, N], NaN
    where it has no scored text."""
    prompts = pc.sum(pc.equal(scores["policy"], "reference")).as_py() or 0
    found = np.full((len(policies), prompts), np.nan)
    for row, policy in enumerate(policies):
        _, won, place = _compared(scores, policy)
        known = ~np.isnan(won)
        counts = np.bincount(place[known], minlength=prompts)
        sums = np.bincount(place[known], won[known], minlength=prompts)
        found[row] = np.divide(sums, counts, out=np.full(prompts, np.nan), where=counts > 0)
    return found


def _compared(scores: pa.Table, policy: str) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Rows of ``policy``; of each, its win against the reference of its prompt (ties half, NaN: not scored), and which of
    the references that is (0 where there is none)."""
    ours = scores.filter(pc.equal(scores["policy"], policy))
    references = scores.filter(pc.equal(scores["policy"], "reference"))
    place = pc.index_in(ours["prompt_id"], value_set=references["prompt_id"].combine_chunks()).combine_chunks()
    won = wins(to_floats(ours["score"]), to_floats(references["score"].combine_chunks().take(place)))
    return ours, won, np.asarray(pc.fill_null(place, 0))


def _copy(source: Artifact, target: Artifact) -> None:
    target.store.delete(target.file("files"))
    for name in source.store.files(source.file("files")):
        target.store.write_bytes(target.file(f"files/{name}"), source.store.read_bytes(source.file(f"files/{name}")))
