"""Methods side by side (PLaD, Tables 1 and 2): every arm of the experiment, searched with the same budget, over seeds."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from plad_ray.artifacts import Store
from plad_ray.config import Experiment
from plad_ray.config.pairs import NAME
from plad_ray.errors import told_of
from plad_ray.evaluate.table import INITIAL, TEACHER, summarise
from plad_ray.stages import Job
from plad_ray.study import across, runs, searched
from plad_ray.study.arms import MAIN
from plad_ray.study.base import Plan, Study
from plad_ray.study.pieces import AGAINST, ARM, DIFFERENCE, LABELS, P_HOLM, TEMPERATURE, how, points, verdict
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Line, Table
from plad_ray.study.runs import Estimates, Runs, Values
from plad_ray.study.searched import Searched


class Settings(Searched):
    """The arms are the experiment's own: ``distilled`` and those under ``compare``."""

    across: dict[str, dict[str, Any]] = Field(
        {},
        exclude_if=lambda value: not value,  # studies of one setting keep their name
        description="tasks or pairs of models to compare the arms in: by name, what changes in the experiment, keys such as "
        "data.path and their values; {}: nothing. The search is made anew in each",
    )

    @field_validator("across")
    @classmethod
    def _names(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if wrong := [name for name in settings if not re.fullmatch(NAME, name)]:
            raise ValueError(f"names are made of letters, digits, - and _ (given: {', '.join(wrong)})")
        return settings


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    if not settings.across:
        return searched.evaluated(STUDY, exp, exp.arms(), settings, store)
    plans, alone = {}, settings.model_copy(update={"across": {}})
    for name, variant in across.variants(exp, settings.across).items():
        with told_of(across.where(name)):
            plans[name] = searched.evaluated(STUDY, variant, variant.arms(), alone, store)
    return across.together(STUDY, exp, settings, plans)


def result(job: Job) -> Findings:
    if settings := across.jobs(job):
        return side_by_side(settings)
    found, arms = Runs.of(job), job.config["facts"]["arms"]
    contrasted, made = found.family(contrasts(found, arms))
    return Findings(
        summary=tuple(sentences(found, arms, contrasted)),
        warnings=tuple(searched.cautions(job)),
        tables=tables(job, found, arms, contrasted, made),
        figures=(figure(found, win_rates(found, arms)),),
        confidence=found.evaluate.confidence,
    )


def side_by_side(jobs: dict[str, Job]) -> Findings:
    """One table of all settings and one sentence for each, then the tables of each; all their differences are one family."""
    several = {name: Runs.of(job) for name, job in jobs.items()}
    arms = next(iter(jobs.values())).config["facts"]["arms"]
    rates = {name: win_rates(found, arms) for name, found in several.items()}
    families = runs.families({name: (found, contrasts(found, arms)) for name, found in several.items()})
    contrasted = {name: estimates for name, (estimates, _) in families.items()}
    confidence, family = next(iter(several.values())).evaluate.confidence, across.family(contrasted)
    said = {name: verdicts(estimates, confidence) for name, estimates in contrasted.items()}
    return Findings(
        summary=tuple(f"{name}: {MAIN} is {'; '.join(found)}." for name, found in said.items() if found),
        warnings=tuple(f"{name}: {caution}" for name, job in jobs.items() for caution in searched.cautions(job)),
        tables=(
            across.overview(several, rates, contrasted, confidence),
            *(
                across.of(name, shown)
                for name, job in jobs.items()
                for shown in tables(job, several[name], arms, *families[name], family)
            ),
        ),
        figures=tuple(across.of(name, figure(found, rates[name])) for name, found in several.items()),
        confidence=confidence,
    )


def tables(
    job: Job, found: Runs, arms: list[str], contrasted: Estimates, made: str, family: str = ""
) -> tuple[Table, ...]:
    return (table(found, arms), differences(found, contrasted, made, family), *further(job, found, arms))


def further(job: Job, found: Runs, arms: list[str]) -> list[Table]:
    """Each seed's own numbers where there are several, and what was searched where something was."""
    tables = [by_seed(found, arms)] if len(found.seeds) > 1 else []
    return [*tables, *searched.tables(job)]


def table(found: Runs, arms: list[str]) -> Table:
    """Words, ROUGE and win rates of every policy at every temperature."""
    labels = {p: LABELS.get(p, p) for p in (TEACHER, INITIAL, *arms)}
    evaluate = found.evaluate
    metrics = summarise(found.frames, labels, evaluate.temperatures, evaluate.bootstrap, evaluate.confidence, 0)
    names = ("words", "truncated", "rouge1", "rouge2", "rougeL")
    rows = [
        (row["label"], row["temperature"], *(row[n] for n in names), _interval(row["win_reference"]),
         _interval(row["win_initial"]))
        for row in metrics["table"]
    ]  # fmt: skip
    return Table(
        key="methods",
        title="Methods",
        note=f"ROUGE: F1 × 100 against the references. {found.how}",
        columns=(
            ARM,
            TEMPERATURE,
            Column(key="words", label="words"),
            Column(key="truncated", label="cut", unit="percent"),
            Column(key="rouge1", label="ROUGE-1"),
            Column(key="rouge2", label="ROUGE-2"),
            Column(key="rougeL", label="ROUGE-L"),
            Column(key="win_reference", label="beats reference", unit="percent"),
            Column(key="win_initial", label="beats initial student", unit="percent"),
        ),
        rows=tuple(rows),
    )


def win_rates(found: Runs, arms: list[str]) -> Estimates:
    shown = [(p, t) for p in (TEACHER, INITIAL, *arms) for t in found.evaluate.temperatures if found.has(p, t)]
    return found.estimates({(policy, t): found.won(policy, t) for policy, t in shown}, 0.5)


def contrasts(found: Runs, arms: list[str]) -> dict[tuple[str, float], Values]:
    """The main arm's win rate less that of each other policy."""
    others = [*(arm for arm in arms if arm != MAIN), INITIAL]
    return {
        (other, t): found.difference(MAIN, other, t)
        for t in found.evaluate.temperatures
        for other in others
        if found.has(other, t)
    }


def differences(found: Runs, contrasted: Estimates, made: str, family: str = "") -> Table:
    """``family``: of which comparisons the p-values are corrected, where it is not these alone."""
    rows: list[tuple[Cell, ...]] = [
        (LABELS.get(other, other), temperature, e, None if e is None else e.p)
        for (other, temperature), e in contrasted.items()
    ]
    return Table(
        key="differences",
        title=f"{MAIN} less each of the others, points of {found.quality}",
        note=f"Paired by prompt; p two-sided, Holm-corrected over {family or f'the {len(rows)} rows'}. {made}",
        columns=(
            AGAINST,
            TEMPERATURE,
            DIFFERENCE,
            P_HOLM,
        ),
        rows=tuple(rows),
    )


def by_seed(found: Runs, arms: list[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for t in found.evaluate.temperatures:
        for policy in (p for p in (TEACHER, INITIAL, *arms) if found.has(p, t)):
            won = found.won(policy, t)
            rows.append((LABELS.get(policy, policy), t, *(runs.mean([w]) for w in won), runs.mean(won)))
    return Table(
        key="seeds",
        title=f"By seed: {found.quality}",
        columns=(
            ARM,
            TEMPERATURE,
            *(Column(key=f"seed-{seed}", label=f"seed {seed}", unit="percent") for seed in found.seeds),
            Column(key="all", label="all", unit="percent"),
        ),
        rows=tuple(rows),
    )


def figure(found: Runs, rates: Estimates) -> Figure:
    """Win rates with their intervals, a series a temperature."""
    shown = list(dict.fromkeys(policy for policy, _ in rates))
    series = []
    for t in found.evaluate.temperatures:
        shares = [(shown.index(p), e) for (p, at), e in rates.items() if at == t and e is not None]
        series.append(points(f"temperature {t:g}", shares, "points"))
    return Figure(
        key="win-rates",
        title=f"{found.quality[0].upper()}{found.quality[1:]}",
        note=found.how,
        x=Axis(label="", categories=tuple(LABELS.get(p, p) for p in shown)),
        y=Axis(label=found.quality, unit="percent"),
        series=tuple(series),
        lines=(Line(label="even", y=0.5),),
    )


def sentences(found: Runs, arms: list[str], contrasted: Estimates) -> list[str]:
    said = []
    for t, e in found.teacher_student().items():
        if e is not None:
            said.append(f"{how(t)}: the teacher's text beats the initial student's on {100 * e.mean:.1f} % of prompts.")
    for t in found.evaluate.temperatures:
        ranked = sorted(arms, key=lambda arm: -(runs.mean(found.won(arm, t)) or 0))
        order = ", ".join(f"{arm} {100 * (runs.mean(found.won(arm, t)) or 0):.1f} %" for arm in ranked)
        said.append(f"{how(t)}: {found.quality}: {order}.")
    return said + [f"{MAIN} is {found}." for found in verdicts(contrasted, found.evaluate.confidence)]


def verdicts(contrasted: Estimates, confidence: float) -> list[str]:
    """``above: seqkd (greedy, +3.1), …`` and so on, as far as there are any."""
    judged: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
    for (other, t), e in contrasted.items():
        if e is not None and (said := verdict(e, confidence)):
            judged[said].append(f"{LABELS.get(other, other)} ({how(t).lower()}, {100 * e.mean:+.1f})")
    return [f"{said}: {', '.join(who)}" for said, who in judged.items() if who]


def _interval(found: dict[str, Any] | None) -> Interval | None:
    return None if found is None else Interval(**{k: found[k] for k in ("mean", "low", "high", "p", "n")})


STUDY = Study("compare", "Methods compared", Settings, plan, result, "Tables 1 and 2")
