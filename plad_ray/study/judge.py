"""An LLM as the judge (PLaD, Table 3): win rates of every arm by a model behind an OpenAI-compatible endpoint.

Each pair of texts is judged in both orders; a tie, and what has no readable choice, counts half in its order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import ApiRuntime, Evaluate, Experiment, StudySettings
from plad_ray.config.base import Count, Temperature
from plad_ray.config.judge import Judge
from plad_ray.errors import PladError
from plad_ray.evaluate.bootstrap import resampled_means, resampled_weights
from plad_ray.evaluate.frame import prompts_of, responses_of
from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.evaluate.winrate import wins
from plad_ray.generate.endpoint import read_key
from plad_ray.parts.common import lazy
from plad_ray.pipeline import plan as plan_experiment
from plad_ray.stages import Job, Outcome, Stage
from plad_ray.study import judging
from plad_ray.study.arms import MAIN
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import Seeds, last_stage, of_run
from plad_ray.study.judging import Question, preference
from plad_ray.study.pieces import ARM, DIFFERENCE, LABELS, P_HOLM, points
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Line, Table
from plad_ray.study.runs import corrected, evaluate_of, for_tests, intervals
from plad_ray.study.statistics import ends, even_length

REFERENCE = "reference"


class Settings(StudySettings):
    judge: Judge
    temperature: Temperature | None = Field(None, description="whose texts are judged; null: evaluate's first")
    limit: Count | None = Field(None, description="prompts a seed; null: evaluate.limit")


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    read_key(settings.judge.runtime.api_key_env)
    temperature = exp.evaluate.temperatures[0] if settings.temperature is None else settings.temperature
    if temperature not in exp.evaluate.temperatures:
        known = ", ".join(f"{t:g}" for t in exp.evaluate.temperatures)
        raise PladError(f"study.temperature {temperature:g} is not among evaluate.temperatures ({known})")
    evaluate = exp.evaluate.model_copy(
        update={"temperatures": (temperature,), "limit": settings.limit or exp.evaluate.limit}
    )
    asked = settings.judge.model_dump(mode="json", exclude={"runtime"})
    inputs: dict[str, Stage] = {}
    for seed, seeded in Seeds.of(exp, settings):
        stages = plan_experiment(seeded).stages
        read = {name: stages[name] for name in ("prompts", "responses", "eval-responses")}
        config = {
            "judge": settings.judge.model_dump(mode="json"),
            "evaluate": evaluate.model_dump(mode="json"),
            "arms": list(exp.arms()),
        }
        identity = {**config, "judge": asked}
        judged = Stage("judgements", lazy("plad_ray.study.judge", "ask"), config, read, identity, ray=False)
        inputs[f"judgements/{seed}"] = of_run(judged, f"seed {seed}")
        inputs[f"evaluation/{seed}"] = of_run(stages["evaluate"], f"seed {seed}")
    facts = {"arms": list(exp.arms()), "temperature": temperature}
    plain = settings.judge.model_copy(update={"runtime": ApiRuntime()})  # how it is called is no part of the result
    last = last_stage(STUDY, exp, settings.model_copy(update={"judge": plain}), inputs, facts)
    return Plan(exp, [last], last)


def ask(job: Job) -> Outcome:
    """Stage: ``rows/`` (see ``judging.ROW``): every policy against the reference and against the initial student."""
    evaluate = Evaluate.model_validate(job.config["evaluate"])
    prompts = prompts_of(job.inputs["prompts"], evaluate)
    texts: dict[str, dict[str, str]] = {}
    for source, policies in (("responses", [TEACHER, INITIAL]), ("eval-responses", job.config["arms"])):
        for row in responses_of(job.inputs[source], evaluate, policies, prompts).to_pylist():
            texts.setdefault(row["policy"], {})[row["prompt_id"]] = row["text"]
    asked = {row["prompt_id"]: row["prompt"] for row in prompts.to_pylist()}
    texts[REFERENCE] = {r["prompt_id"]: r["reference"] for r in prompts.to_pylist() if r["reference"] is not None}
    questions = [
        Question(prompt_id, asked[prompt_id], ours, theirs, (text, texts[theirs][prompt_id]), first)
        for ours, answers in texts.items()
        if ours != REFERENCE
        for theirs in (REFERENCE, INITIAL)
        if ours != theirs
        for prompt_id, text in answers.items()
        if prompt_id in texts[theirs]
        for first in (True, False)
    ]
    if not questions:
        where = job.inputs["responses"].path
        raise PladError(f"{job.stage}: there is nothing to judge: {where} has no text of {evaluate.split}")
    return judging.ask(job, Judge.model_validate(job.config["judge"]), questions)


@dataclass(frozen=True)
class Pair:
    """One policy against another on N prompts of a seed: ``preferred`` (mean of both orders; 1: ours), ``longer`` (words)
    and ``scored`` (who wins by the scorer, NaN without one), all [N]; ``ids`` are the prompts."""

    ids: pa.StringArray
    preferred: np.ndarray
    longer: np.ndarray
    scored: np.ndarray


def pairs_of(judgements: Artifact, evaluation: Artifact, temperature: float) -> dict[tuple[str, str], Pair]:
    """What was asked of one seed, with the scorer's own opinion. Prompts lie in the order of their ids; NaN where a pair
    was not judged."""
    rows = judgements.table().to_pylist()
    ids = sorted({row["prompt_id"] for row in rows})
    scores = scores_of(evaluation, temperature)
    asked: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        asked.setdefault((row["ours"], row["theirs"]), {}).setdefault(row["prompt_id"], []).append(row)
    found, nan = {}, float("nan")
    for (ours, theirs), both in asked.items():
        found[ours, theirs] = Pair(
            pa.array(ids, pa.string()),
            np.array([np.mean([preference(row) for row in both[i]]) if i in both else nan for i in ids]),
            np.array([both[i][0]["longer"] if i in both else nan for i in ids]),
            wins(*(np.array([scores.get((who, i), nan) for i in ids], np.float64) for who in (ours, theirs))),
        )
    return found


def scores_of(evaluation: Artifact, temperature: float) -> dict[tuple[str, str], float]:
    """The scorer's value of each (policy, prompt), references among them; unscored ones are left out."""
    rows = [row for row in evaluation.rows() if row["temperature"] == temperature]
    found = {(row["policy"], row["prompt_id"]): row["score"] for row in rows}
    found |= {(REFERENCE, row["prompt_id"]): row["reference_score"] for row in rows}
    return {key: score for key, score in found.items() if score is not None}


def result(job: Job) -> Findings:
    facts = job.config["facts"]
    evaluate = evaluate_of(job)
    seeds = [key.removeprefix("judgements/") for key in job.inputs if key.startswith("judgements/")]
    found = [
        pairs_of(job.inputs[f"judgements/{s}"], job.inputs[f"evaluation/{s}"], facts["temperature"]) for s in seeds
    ]
    rows = [job.inputs[f"judgements/{s}"].table(["prompt_id", "verdict"]).to_pylist() for s in seeds]
    names = list(found[0])
    strata = [np.stack([pairs[name].preferred for name in names]) for pairs in found]
    ids = [pairs[names[0]].ids for pairs in found]
    estimates = dict(zip(names, intervals(strata, evaluate, 0.5, ids), strict=True))
    even = {name: length_controlled([pairs[name] for pairs in found], evaluate) for name in names}
    agreement = {name: agrees([pairs[name] for pairs in found]) for name in names}
    verdicts = Counter(row["verdict"] for of_seed in rows for row in of_seed)
    bias = position_bias(rows, evaluate)
    table = Table(
        key="judged",
        title="Win rates by the judge",
        note="Both orders of each pair; ties, and answers without a readable choice, count half. Length-controlled: what a "
        "logistic regression on the difference in words expects at equal length. Agreement with the scorer: where both "
        f"prefer one text. Intervals: {evaluate.confidence:.0%}, paired bootstrap over the prompts of each run, common ones "
        "drawn together.",
        columns=(
            ARM,
            Column(key="against", label="against", unit="text"),
            Column(key="win", label="win rate", unit="percent"),
            Column(key="even", label="length-controlled", unit="percent"),
            Column(key="agreement", label="agrees with the scorer", unit="percent"),
        ),
        rows=tuple(
            (LABELS.get(o, o), LABELS.get(t, t), estimates[o, t], even[o, t], agreement[o, t]) for o, t in names
        ),
    )
    return Findings(
        summary=tuple(sentences(estimates, bias)),
        warnings=warnings_of(verdicts, verdicts.total()),
        tables=(table, *contrasts(found, evaluate), answers(verdicts, bias)),
        figures=(figure(estimates),),
        confidence=evaluate.confidence,
    )


def contrasts(seeds: list[dict[tuple[str, str], Pair]], evaluate: Evaluate) -> list[Table]:
    """The main arm's win rate less that of each other policy against the same texts, paired by prompt."""
    others = [(o, t) for o, t in seeds[0] if o != MAIN and (MAIN, t) in seeds[0]]
    if not others:
        return []
    family = for_tests(evaluate, len(others))
    strata = [np.stack([pairs[MAIN, t].preferred - pairs[o, t].preferred for o, t in others]) for pairs in seeds]
    ids = [next(iter(pairs.values())).ids for pairs in seeds]
    found = corrected(dict(zip(others, intervals(strata, family, 0.0, ids), strict=True)))
    return [
        Table(
            key="differences",
            title=f"{MAIN} less each of the others by the judge, points of win rate",
            note=f"Paired by prompt; p two-sided, Holm-corrected over the {len(others)} rows. Intervals: "
            f"{evaluate.confidence:.0%}, paired bootstrap over the prompts of each run, common ones drawn together "
            f"({family.bootstrap:,} resamples).",
            columns=(
                Column(key="arm", label="less", unit="text"),
                Column(key="against", label="win rate against", unit="text"),
                DIFFERENCE,
                P_HOLM,
            ),
            rows=tuple((LABELS.get(o, o), LABELS.get(t, t), e, e.p if e else None) for (o, t), e in found.items()),
        )
    ]


def position_bias(seeds: list[list[dict[str, Any]]], evaluate: Evaluate) -> Interval | None:
    """Share of the text shown first among the choices of A or B, a seed's judgements each; prompts are resampled, with all
    that was asked about them. None without a choice."""
    asked = [list(dict.fromkeys(row["prompt_id"] for row in rows)) for rows in seeds]
    counts = []
    for rows, prompts in zip(seeds, asked, strict=True):
        places = {prompt: place for place, prompt in enumerate(prompts)}
        counts.append(np.zeros((2, len(prompts))))
        for row in rows:
            if row["verdict"] in ("A", "B"):
                counts[-1][:, places[row["prompt_id"]]] += row["verdict"] == "A", 1
    first, chosen = np.concatenate(counts, axis=1).sum(1)
    if not chosen:
        return None
    ids = [pa.array(prompts, pa.string()) for prompts in asked]
    first_R, chosen_R = resampled_means(counts, evaluate.bootstrap, 0, ids)
    share_R = np.divide(first_R, chosen_R, out=np.full_like(first_R, np.nan), where=chosen_R > 0)
    low, high = ends(share_R, evaluate.confidence)
    return Interval(mean=float(first / chosen), low=float(low), high=float(high), n=int(chosen))


def length_controlled(seeds: list[Pair], evaluate: Evaluate) -> Interval | None:
    """The win rate expected at equal length, prompts being resampled; None where length never differs."""
    preferred = np.concatenate([pair.preferred for pair in seeds])
    longer = np.concatenate([pair.longer for pair in seeds])
    known = ~np.isnan(preferred)
    if not known.any() or not np.nanstd(longer):
        return None
    y, x = preferred[known], longer[known]
    weights = resampled_weights([pair.ids for pair in seeds], evaluate.bootstrap, 0)[:, known]
    low, high = ends(even_length(x, y, weights), evaluate.confidence)
    return Interval(mean=float(even_length(x, y, np.ones((1, len(y))))[0]), low=float(low), high=float(high), n=len(y))


def agrees(seeds: list[Pair]) -> float | None:
    """Share of prompts on which judge and scorer prefer the same text, of those on which both prefer one."""
    preferred = np.concatenate([pair.preferred for pair in seeds])
    scored = np.concatenate([pair.scored for pair in seeds])
    both = ~np.isnan(preferred) & ~np.isnan(scored) & (preferred != 0.5) & (scored != 0.5)
    return float(((preferred > 0.5) == (scored > 0.5))[both].mean()) if both.any() else None


def answers(verdicts: Counter[str], bias: Interval | None) -> Table:
    rows: list[tuple[Cell, ...]] = [(name, verdicts[name]) for name in ("A", "B", "tie", "unparsable", "error")]
    return Table(
        key="answers",
        title="What the judge answered",
        columns=(Column(key="answer", label="", unit="text"), Column(key="count", label="questions", unit="count"),
                 Column(key="first", label="of A and B, the text shown first", unit="percent")),
        note="Every pair is shown in both orders, so a judge that looks at the texts alone chooses the first in 50 %.",
        rows=tuple((*row, bias if row[0] == "A" else None) for row in rows),
    )  # fmt: skip


def figure(estimates: dict[tuple[str, str], Interval | None]) -> Figure:
    names = list(dict.fromkeys(ours for ours, _ in estimates))
    opponents = list(dict.fromkeys(theirs for _, theirs in estimates))
    return Figure(
        key="judged",
        title="Win rate by the judge",
        x=Axis(label="", categories=tuple(LABELS.get(name, name) for name in names)),
        y=Axis(label="win rate", unit="percent"),
        series=tuple(
            points(
                f"against the {LABELS.get(theirs, theirs)}",
                [(names.index(o), e) for (o, t), e in estimates.items() if t == theirs and e is not None],
                "points",
            )
            for theirs in opponents
        ),
        lines=(Line(label="even", y=0.5),),
    )


def sentences(estimates: dict[tuple[str, str], Interval | None], bias: Interval | None) -> list[str]:
    said = [
        f"{LABELS.get(o, o)} beats the {LABELS.get(t, t)} in {100 * e.mean:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]."
        for (o, t), e in estimates.items()
        if e is not None
    ]
    if bias is not None and not bias.low <= 0.5 <= bias.high:
        where = "first" if bias.mean > 0.5 else "second"
        said.append(
            f"The judge has a bias to the text shown {where}: it chooses the first in {100 * bias.mean:.1f} %; both orders "
            "are asked, so it cancels."
        )
    return said


def warnings_of(verdicts: Counter[str], total: int) -> tuple[str, ...]:
    unread = verdicts["unparsable"] + verdicts["error"]
    if unread <= 0.05 * total:
        return ()
    return (f"{unread} of {total} answers hold no readable choice and count half: raise study.judge.max_tokens?",)


STUDY = Study("judge", "Win rates by an LLM judge", Settings, plan, result, "Table 3")
