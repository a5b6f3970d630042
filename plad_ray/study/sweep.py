"""A sweep over margin and temperature, or any keys of the recipe (PLaD, Table 5), by Ray Tune.

The text of every temperature is made once, before the first trial; trials train only; then all finished ones answer the
dev prompts in one generation, and the best is written as an experiment.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from typing import Any

import yaml
from pydantic import Field

from plad_ray import parts
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Draw, Experiment, StudySettings, parse
from plad_ray.config.search import Grid
from plad_ray.config.sweep import Tuning
from plad_ray.errors import PladError
from plad_ray.evaluate.bootstrap import estimate
from plad_ray.evaluate.select import prompt_wins
from plad_ray.pipeline import before_distillation
from plad_ray.reward.base import check_wins
from plad_ray.stages import Job, Stage
from plad_ray.study import trials
from plad_ray.study.arms import MAIN, Sections, vary_arm, with_arms
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import last_stage, needs_scorer
from plad_ray.study.pieces import points
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Table

TEMPERATURE = "temperature"


class Settings(StudySettings):
    grid: Grid = Field(
        {"distill.objective.margin": (0.5, 1.0, 2.0), TEMPERATURE: (0.3, 0.7, 1.0)},
        description="keys of the recipe (distill.…, pairs.…) and values; temperature: of both sides of the pairs",
    )
    tuning: Tuning = Tuning()


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    check_wins(needs_scorer(exp, STUDY.name), f"study {STUDY.name}")
    if settings.seeds is not None:
        raise PladError("study.seeds: a sweep looks at dev with one seed, the experiment's; set seed")
    if settings.tuning.algorithm == "optuna" and find_spec("optuna") is None:
        raise PladError("study.tuning.algorithm optuna needs the optuna package: pip install 'plad-ray[optuna]'")
    candidates, whole = candidates_of(exp, settings.grid)
    made = before_distillation(whole)
    arms = {name: sections for name, sections in whole.arms().items() if name in candidates}
    trained = parts.adapters(whole, arms, made, parts.tables(whole, arms, made))
    swept = trials.stage(candidates, trained, settings.tuning)
    if not swept.artifact(store).finished:
        return Plan(whole, [swept], then="the finished trials answer the dev prompts", dashboard=True)
    found = results_of(swept.artifact(store))
    finished = {name: stage for name, stage in trained.items() if found[name]["status"] == "finished"}
    if not finished:
        raise PladError("sweep: every trial was stopped early; raise study.tuning.grace_steps")
    texts = parts.generate_arms(whole, "dev-responses", finished, made.prompts, made.initial, "dev")
    scores = parts.score(whole, "dev-scores", made.prompts, texts)
    assert scores is not None, "a sweep has a scorer"
    inputs: dict[str, Stage] = {"sweep": swept, "scores": scores}
    facts: dict[str, Any] = {"candidates": candidates}
    if exp.merge is not None:
        facts["merge"] = exp.merge.model_dump(mode="json", exclude_defaults=True)
    last = last_stage(STUDY, exp, settings, inputs, facts)
    return Plan(whole, [last], last)


def candidates_of(exp: Experiment, grid: Grid) -> tuple[dict[str, dict[str, Any]], Experiment]:
    """The changes of each candidate by name, and the experiment that has them all as arms and draws what they need."""
    tried = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    candidates = {f"try{i}": changes for i, changes in enumerate(tried)}
    arms = {name: changed(exp, changes) for name, changes in candidates.items()}
    return candidates, with_arms(drawing(exp, arms), arms)


def changed(exp: Experiment, changes: dict[str, Any]) -> Sections:
    """The recipe with ``changes``, of which ``temperature`` is that of both sides of a pair."""
    plain = {key: value for key, value in changes.items() if key != TEMPERATURE}
    if TEMPERATURE in changes:
        plain |= {f"pairs.{side}.temperature": changes[TEMPERATURE] for side in ("chosen", "rejected")}
    return vary_arm((exp.pairs, exp.distill), plain, "study.grid")


def drawing(exp: Experiment, arms: dict[str, Sections]) -> Experiment:
    """``exp`` with every temperature drawn that a side of some arm's pairs asks for."""
    update: dict[str, Any] = {}
    for name in ("teacher", "student"):
        role = getattr(exp, name)
        if role is None:
            continue
        asked = [side.temperature for pairs, _ in arms.values() for side in (pairs.chosen, pairs.rejected)
                 if side.policy == name]  # fmt: skip
        temperatures = tuple(dict.fromkeys((*role.draw.temperatures, *asked)))
        update[name] = role.model_copy(update={"draw": Draw(temperatures=temperatures, samples=role.draw.samples)})
    return exp.model_copy(update=update)


def best_yaml(exp: Experiment, changes: dict[str, Any]) -> str:
    """The experiment with ``changes`` as a file that ``plad run`` takes; its other arms stay."""
    arms = {**exp.arms(), MAIN: changed(exp, changes)}
    best = with_arms(drawing(exp, arms), arms).model_copy(update={"name": f"{exp.name}-best"})
    raw = best.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def results_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = artifact.store.read_json(artifact.file("files/trials.json"))
    return found


def result(job: Job) -> Findings:
    facts, found = job.config["facts"], results_of(job.inputs["sweep"])
    candidates, runtime = facts["candidates"], job.runtime.model_dump(mode="json", exclude_defaults=True)
    exp = parse({**job.config["experiment"], "merge": facts.get("merge"), "runtime": runtime})
    confidence = exp.evaluate.confidence
    scores = job.inputs["scores"].table(["rid", "policy", "prompt_id", "temperature", "score"])
    finished = [name for name in candidates if found[name]["status"] == "finished"]
    wins = prompt_wins(scores, finished)
    estimates = dict(zip(finished, estimate([wins], exp.evaluate.bootstrap, 0, confidence, 0.5), strict=True))
    qualities = {
        name: Interval(mean=e.mean, low=e.low, high=e.high, n=e.n) for name, e in estimates.items() if e is not None
    }
    best = max(qualities, key=lambda name: qualities[name].mean)
    return Findings(
        summary=(
            _sentence(best, candidates[best], qualities[best]),
            f"{len(finished)} of {len(found)} trials finished, "
            f"{sum(t['status'] == 'stopped' for t in found.values())} were stopped early.",
        ),
        warnings=("Chosen on dev among several: its dev win rate is too good; `plad run best.yaml` reads test.",),
        tables=(table(candidates, found, qualities, confidence),),
        figures=(figure(candidates, qualities),),
        chosen={"best.yaml": best_yaml(exp, candidates[best])},
        confidence=confidence,
    )


def _sentence(name: str, changes: dict[str, Any], quality: Interval) -> str:
    said = ", ".join(f"{key} {value}" for key, value in changes.items())
    ends = f"[{100 * quality.low:.1f}, {100 * quality.high:.1f}]"
    return f"Best on dev: {said} ({name}): win rate against the references {100 * quality.mean:.1f} % {ends}."


def table(
    candidates: dict[str, dict[str, Any]], found: dict[str, Any], qualities: dict[str, Interval], confidence: float
) -> Table:
    keys = list(next(iter(candidates.values())))
    rows: list[tuple[Cell, ...]] = []
    for name, changes in sorted(candidates.items(), key=lambda c: -(qualities[c[0]].mean if c[0] in qualities else -1)):
        metrics = found[name]["metrics"]
        steps = metrics.get("steps", metrics.get("step"))
        rows.append((name, *(f"{changes[k]}" for k in keys), found[name]["status"], steps,
                     metrics.get("rewards/accuracies"), qualities.get(name)))  # fmt: skip
    return Table(
        key="trials",
        title="Trials",
        note="Win rate against the references on dev, over all temperatures of evaluate. Intervals: "
        f"{confidence:.0%}, paired bootstrap over the dev prompts.",
        columns=(
            Column(key="trial", label="trial", unit="text"),
            *(Column(key=key, label=key, unit="text") for key in keys),
            Column(key="status", label="", unit="text"),
            Column(key="steps", label="steps", unit="count"),
            Column(key="accuracy", label="pairs in order", unit="percent"),
            Column(key="quality", label="dev win rate", unit="percent"),
        ),
        rows=tuple(rows),
    )


def figure(candidates: dict[str, dict[str, Any]], qualities: dict[str, Interval]) -> Figure:
    """Over the first key, a line for each combination of the others."""
    first, *others = next(iter(candidates.values()))
    values = list(dict.fromkeys(str(changes[first]) for changes in candidates.values()))
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for name, changes in candidates.items():
        if name in qualities:
            label = ", ".join(f"{key.rpartition('.')[2]} {changes[key]}" for key in others) or "win rate"
            lines.setdefault(label, []).append((values.index(str(changes[first])), qualities[name]))
    return Figure(
        key="sweep",
        title="Win rate against the references on dev",
        x=Axis(label=first, categories=tuple(values)),
        y=Axis(label="dev win rate", unit="percent"),
        series=tuple(points(label, found) for label, found in lines.items()),
    )


STUDY = Study("sweep", "Sweep over the recipe", Settings, plan, result, "Table 5")
