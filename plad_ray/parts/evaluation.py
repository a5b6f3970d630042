"""From scores to the page: selection on dev, evaluation, report."""

from __future__ import annotations

from collections.abc import Iterable

from plad_ray.config import Experiment
from plad_ray.parts.common import lazy, present
from plad_ray.stages import Stage


def select(arm: str, trained: dict[str, Stage], scores: Stage | None) -> Stage:
    """The best of ``trained`` on dev."""
    inputs = present({"scores": scores, **{f"adapter/{name}": stage for name, stage in trained.items()}})
    return Stage(f"select-{arm}", lazy("plad_ray.evaluate.select"), {"candidates": sorted(trained)}, inputs)


def evaluate(
    exp: Experiment,
    prompts: Stage,
    responses: Stage,
    scores: Stage | None,
    eval_responses: Stage,
    eval_scores: Stage | None,
    arms: Iterable[str] | None = None,
) -> Stage:
    """``arms``: the policies of ``eval_responses``; None: the experiment's own."""
    config = {
        "evaluate": exp.evaluate.model_dump(mode="json"),
        "arms": {arm: arm for arm in (exp.arms() if arms is None else arms)},
        "scorer": exp.scorer is not None,
        "seed": exp.seed,
    }
    inputs = {"prompts": prompts, "responses": responses, "scores": scores}
    inputs |= {"eval_responses": eval_responses, "eval_scores": eval_scores}
    return Stage("evaluate", lazy("plad_ray.evaluate.run"), config, present(inputs))


def report(
    exp: Experiment,
    prompts: Stage,
    teacher: Stage | None,
    student: Stage | None,
    responses: Stage,
    scores: Stage | None,
    pairs: dict[str, Stage],
    adapters: dict[str, Stage],
    eval_responses: Stage,
    evaluation: Stage,
) -> Stage:
    config = {
        "name": exp.name,
        "experiment": exp.model_dump(mode="json", exclude={"runtime", "merge"}, exclude_defaults=True),
        "arms": {arm: distill.objective.model_dump(mode="json") for arm, (_, distill) in exp.arms().items()},
        "scorer": exp.scorer.name if exp.scorer else None,
    }
    inputs = {"prompts": prompts, "sft/teacher": teacher, "sft/student": student, "responses": responses}
    inputs |= {"scores": scores, "eval_responses": eval_responses, "evaluation": evaluation}
    inputs |= {f"pairs/{arm}": stage for arm, stage in pairs.items()}
    inputs |= {f"train/{arm}": stage for arm, stage in adapters.items()}
    inputs["eval_scores"] = evaluation.inputs.get("eval_scores")
    return Stage("report", lazy("plad_ray.report.run"), config, present(inputs), version=3)
