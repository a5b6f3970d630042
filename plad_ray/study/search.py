"""Which of its candidates each arm does best with on the dev prompts, over several seeds: every candidate of every arm is
trained, all of them answer in one generation, and the same number is tried for each arm."""

from __future__ import annotations

from typing import Any

import numpy as np

from plad_ray import parts
from plad_ray.artifacts import Artifact
from plad_ray.config import Experiment
from plad_ray.config.search import Search
from plad_ray.evaluate.select import win_rates
from plad_ray.parts.common import lazy
from plad_ray.pipeline import before_distillation
from plad_ray.stages import Job, Outcome, Stage
from plad_ray.study.arms import MAIN, Sections, vary_arm, with_arms
from plad_ray.study.graph import of_run


def plan(
    exp: Experiment, search: Search, arms: dict[str, Sections], seeds: tuple[int, ...]
) -> tuple[Experiment, Stage]:
    """The experiment whose arms are all candidates, and the stage that chooses among them."""
    trials = {
        arm: {f"{arm}-try{i}": changes for i, changes in enumerate(tried)}
        for arm, tried in search.candidates(list(arms)).items()
    }
    candidates = {
        name: vary_arm(arms[arm], changes, f"study.search, arm {arm}")
        for arm, tried in trials.items()
        for name, changes in tried.items()
    }
    whole = with_arms(exp, candidates)
    scores = {}
    for seed in search.seeds or seeds:
        seeded = whole.model_copy(update={"seed": seed})
        sections = {name: section for name, section in seeded.arms().items() if name != MAIN}
        made = before_distillation(seeded)
        adapters = parts.adapters(seeded, sections, made, parts.tables(seeded, sections, made))
        texts = parts.generate_arms(seeded, "dev-responses", adapters, made.prompts, made.initial, "dev")
        scored = parts.score(seeded, "dev-scores", made.prompts, texts)
        assert scored is not None, "a study that searches has a scorer"
        scores[f"scores/{seed}"] = of_run(scored, f"search, seed {seed}")
    return whole, Stage("search", lazy("plad_ray.study.search"), {"trials": trials}, scores, ray=False)


def run(job: Job) -> Outcome:
    """Stage: ``files/choice.json``: by arm, the best candidate's ``changes`` and ``win_rate``, and all that were tried.

    A candidate's win rate is the mean over the seeds of its dev win rate against the references; the first of equals wins.
    """
    tables = {key.removeprefix("scores/"): artifact.table() for key, artifact in job.inputs.items()}
    chosen = {}
    for arm, trials in job.config["trials"].items():
        found = {}
        for name, changes in trials.items():
            by_seed = {seed: win_rates(table, name)["win_rate"] for seed, table in tables.items()}
            found[name] = {"changes": changes, "win_rate": float(np.mean(list(by_seed.values()))), "seeds": by_seed}
        best = max(found, key=lambda name: found[name]["win_rate"])
        chosen[arm] = {**found[best], "candidate": best, "trials": found}
    job.out.store.write_json(job.out.file("files/choice.json"), chosen)
    return Outcome(metrics={arm: {"candidate": c["candidate"], "win_rate": c["win_rate"]} for arm, c in chosen.items()})


def choice(artifact: Artifact) -> dict[str, Any]:
    """What a finished search chose, by arm."""
    found: dict[str, Any] = artifact.store.read_json(artifact.file("files/choice.json"))
    return found
