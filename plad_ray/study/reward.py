"""How often does the scorer prefer what people preferred (PLaD, Table 6), and in which input format most often?

Length is the control: how often people preferred the longer text, and what is left of the accuracy where they did not.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from plad_ray import parts
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment, StudySettings
from plad_ray.config.base import Count
from plad_ray.config.evaluation import PLAIN, InputFormat
from plad_ray.errors import PladError
from plad_ray.evaluate.winrate import wins
from plad_ray.stages import Job, Stage
from plad_ray.study import runs
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import last_stage, needs_scorer
from plad_ray.study.pieces import DIFFERENCE, P_HOLM, points
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Line, Table

SIDES = ("chosen", "rejected")
LENGTH = "longer text"


class Settings(StudySettings):
    pairs: str | None = Field(
        None,
        description="human preferences: file, folder or glob of TRL pairs, HH transcripts or OpenAI comparisons; null: "
        "those of the demo task",
    )
    formats: tuple[InputFormat, ...] = Field((PLAIN,), description="of scorer.format: how the scorer is shown a pair")
    limit: Count | None = Field(None, description="pairs at most, the same in every run; null: all")


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    needs_scorer(exp, STUDY.name)
    assert exp.scorer is not None
    if settings.seeds is not None:
        raise PladError("study.seeds: nothing is trained here, so no seed changes anything; leave it out")
    if not settings.formats or len(set(settings.formats)) < len(settings.formats):
        raise PladError("study.formats: one or more, each named once")
    if exp.scorer.name == "rouge":
        raise PladError("study reward: rouge compares with a reference, and a human preference has none")
    pairs = parts.preferences(exp, settings.pairs, settings.limit)
    prompts = parts.preference_prompts(pairs)
    inputs: dict[str, Stage] = {"preferences": pairs}
    for shown in settings.formats:
        scorer = exp.scorer.model_copy(update={"format": shown})
        scores = parts.score(exp.model_copy(update={"scorer": scorer}), f"preference-scores-{shown}", prompts, pairs)
        assert scores is not None, "there is a scorer"
        inputs[f"scores/{shown}"] = scores
    last = last_stage(STUDY, exp, settings, inputs)
    return Plan(exp, [last], last)


def result(job: Job) -> Findings:
    evaluate, formats = runs.evaluate_of(job), job.config["settings"]["formats"]
    rows = job.inputs["preferences"].table(["policy", "prompt_id", "text"]).to_pylist()
    lengths = {(row["policy"], row["prompt_id"]): float(len(row["text"].split())) for row in rows}
    ids = [row["prompt_id"] for row in rows if row["policy"] == SIDES[0]]
    longer = wins(*(np.array([lengths[side, i] for i in ids]) for side in SIDES))
    right = {shown: accuracy_of(job.inputs[f"scores/{shown}"], ids) for shown in formats} | {LENGTH: longer}
    evaluate = runs.for_tests(evaluate, len(right) - 1)
    base, others = formats[0], [name for name in right if name != formats[0]]
    quantities = [
        *right.values(),
        *(np.where(longer == 1, values, np.nan) for values in right.values()),
        *(np.where(longer == 0, values, np.nan) for values in right.values()),
    ]
    found = runs.intervals([np.stack(quantities)], evaluate, 0.5)
    accuracies, where_longer, where_shorter = (
        dict(zip(right, found[i : i + len(right)], strict=True)) for i in range(0, len(found), len(right))
    )
    gains = runs.intervals([np.stack([right[name] - right[base] for name in others])], evaluate)
    differences = runs.corrected(dict(zip(others, gains, strict=True)))
    cells: list[tuple[Cell, ...]] = [
        (
            name,
            accuracies[name],
            float((right[name] == 0.5).mean()),
            where_longer[name] if name != LENGTH else None,
            where_shorter[name] if name != LENGTH else None,
            differences.get(name),
            d.p if (d := differences.get(name)) else None,
        )
        for name in right
    ]
    how = f"Intervals: {evaluate.confidence:.0%}, paired bootstrap over the pairs ({evaluate.bootstrap:,} resamples)."
    table = Table(
        key="accuracy",
        title=f"How often the scorer prefers what people preferred, of {len(ids):,} pairs",
        note="A tie of scores counts half. Longer, shorter: the pairs whose preferred text has more or fewer words. "
        f"Difference: less format {base}, p Holm-corrected over {len(others)}. {how}",
        columns=(
            Column(key="format", label="format", unit="text"),
            Column(key="accuracy", label="accuracy", unit="percent"),
            Column(key="ties", label="ties", unit="percent"),
            Column(key="longer", label="preferred is longer", unit="percent"),
            Column(key="shorter", label="preferred is shorter", unit="percent"),
            DIFFERENCE,
            P_HOLM,
        ),
        rows=tuple(cells),
    )
    places = [(list(right).index(name), e) for name, e in accuracies.items() if e is not None]
    figure = Figure(
        key="accuracy",
        title="Accuracy on human preferences by input format",
        note=how,
        x=Axis(label="", categories=tuple(right)),
        y=Axis(label="pairs ordered as by people", unit="percent"),
        series=(points("accuracy", places, "points"),),
        lines=(Line(label="a coin", y=0.5),),
    )
    return Findings(
        summary=tuple(sentences(accuracies, formats)),
        tables=(table,),
        figures=(figure,),
        confidence=evaluate.confidence,
    )


def accuracy_of(scores: Artifact, ids: list[str]) -> np.ndarray:
    """Whether each pair's chosen text scores higher, ties half: [N]."""
    found = {(row["policy"], row["prompt_id"]): row["score"] for row in scores.rows(["policy", "prompt_id", "score"])}
    return wins(*(np.array([found[side, i] for i in ids]) for side in SIDES))


def sentences(accuracies: dict[str, Interval | None], formats: list[str]) -> list[str]:
    known = {name: e for name, e in accuracies.items() if e is not None}
    said = [
        f"Format {name}: {100 * known[name].mean:.1f} % [{100 * known[name].low:.1f}, {100 * known[name].high:.1f}] of the "
        "pairs in the order of the people."
        for name in sorted(formats, key=lambda name: -known[name].mean)
    ]
    said.append(f"People preferred the longer text in {100 * known[LENGTH].mean:.1f} % (as long: half).")
    if len(formats) > 1:
        best = max(formats, key=lambda name: known[name].mean)
        said.append(f"The most accurate is scorer.format: {best}. Freeze the choice before any experiment.")
    return said


STUDY = Study("reward", "Does the scorer agree with people?", Settings, plan, result, "Table 6")
