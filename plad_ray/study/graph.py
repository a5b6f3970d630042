"""Graphs that studies are made of: an experiment's arms, trained and evaluated under each seed, into one last stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from plad_ray import pipeline
from plad_ray.config import Experiment, Scorer, StudySettings
from plad_ray.data import splits
from plad_ray.errors import PladError
from plad_ray.parts.common import lazy
from plad_ray.stages import Stage
from plad_ray.study.arms import Sections, with_arms
from plad_ray.study.base import Plan, Study

EVALUATION = "evaluation/"


def evaluated(
    study: Study[Any],
    exp: Experiment,
    arms: Mapping[str, Sections],
    settings: StudySettings,
    facts: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Stage] | None = None,
    reads: tuple[str, ...] = (),
) -> Plan:
    """Every arm under every seed, all of a seed's arms on the same text.

    The last stage gets ``evaluation/<seed>``, the further ``inputs``, and of the kinds that it ``reads`` (train, pairs)
    ``<kind>/<seed>/<arm>``; ``facts`` and the names of the arms are in its configuration.
    """
    whole = with_arms(exp, arms)
    found = dict(inputs or {})
    for seed, seeded in Seeds.of(whole, settings):
        stages = pipeline.plan(seeded)
        found[f"{EVALUATION}{seed}"] = of_run(stages.stages["evaluate"], f"seed {seed}")
        for kind in reads:
            of_arms = {arm: stages.report.inputs.get(f"{kind}/{arm}") for arm in arms}
            found |= {f"{kind}/{seed}/{arm}": of_run(s, f"seed {seed}") for arm, s in of_arms.items() if s is not None}
    last = last_stage(study, whole, settings, found, {"arms": list(arms), **(facts or {})})
    return Plan(whole, [last], last)


def last_stage(
    study: Study[Any],
    exp: Experiment,
    settings: StudySettings,
    inputs: Mapping[str, Stage],
    facts: Mapping[str, Any] | None = None,
    ray: bool = False,
) -> Stage:
    """``study-<name>``. ``facts``: what the result needs to know of the plan, as JSON."""
    config = {
        "study": study.name,
        "settings": settings.model_dump(mode="json"),
        "name": exp.name,
        "experiment": exp.model_dump(mode="json", exclude={"runtime", "merge"}, exclude_defaults=True),
        "facts": dict(facts or {}),
    }
    return Stage(
        f"study-{study.name}", lazy("plad_ray.study.stage"), config, dict(inputs), version=study.version, ray=ray
    )


def of_run(stage: Stage, of: str) -> Stage:
    """``stage`` and all before it, shown as parts of the run ``of``."""
    return _labelled(stage, lambda _: of)


def of_setting(stage: Stage, name: str) -> Stage:
    """The same, of whichever run each is, as parts of the setting ``name``."""
    return _labelled(stage, lambda of: f"{name}, {of}" if of else name)


def _labelled(stage: Stage, label: Callable[[str], str]) -> Stage:
    made: dict[str, Stage] = {}

    def visit(old: Stage) -> Stage:
        if old.artifact_name not in made:
            inputs = {key: visit(s) for key, s in old.inputs.items()}
            made[old.artifact_name] = replace(old, inputs=inputs, of=label(old.of))
        return made[old.artifact_name]

    return visit(stage)


@dataclass(frozen=True)
class Seeds:
    """The experiment under each seed of a study."""

    exp: Experiment
    seeds: tuple[int, ...] = field(default=())

    @classmethod
    def of(cls, exp: Experiment, settings: StudySettings) -> Seeds:
        return cls(exp, settings.seeds or (exp.seed,))

    def __iter__(self) -> Iterator[tuple[int, Experiment]]:
        return ((seed, self.exp.model_copy(update={"seed": seed})) for seed in self.seeds)


def needs_one_split(exp: Experiment, study: str, seeds: Iterable[int]) -> None:
    """Raises PladError where a study that tunes on dev with one of ``seeds`` may read those prompts as test with another."""
    found = sorted(set(seeds))
    if len(found) > 1 and splits.seed_decides_test(exp.data):
        raise PladError(
            f"study {study} tunes on dev and reads test with seeds {', '.join(map(str, found))}, and which prompts of "
            f"data.source {exp.data.source} are dev or test depends on the seed: set data.split_seed (e.g. 0), which cuts "
            "them alike for all"
        )


def needs_scorer(exp: Experiment, study: str) -> Scorer:
    """The experiment's scorer. Raises PladError where it has none."""
    if exp.scorer is None:
        raise PladError(f"study {study} compares scores: set scorer.name (demo, rouge, classifier or module:function)")
    return exp.scorer
