"""Does the teacher's text really have to be the better one (PLaD, Figure 2)? A growing share of the pairs is ordered by the
reward instead of by who wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field, field_validator

from plad_ray.artifacts import Store
from plad_ray.config import Experiment
from plad_ray.errors import PladError
from plad_ray.evaluate.table import INITIAL
from plad_ray.stages import Job
from plad_ray.study import runs, searched
from plad_ray.study.arms import MAIN, Sections, vary_arm
from plad_ray.study.base import Plan, Study
from plad_ray.study.pieces import ARM, P_HOLM, TEMPERATURE, how, interval, points, told_apart
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Line, Table
from plad_ray.study.runs import Runs
from plad_ray.study.searched import Searched


class Settings(Searched):
    shares: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0), description="of the pairs; 0 among them; nested")
    arms: tuple[str, ...] = Field((MAIN,), description="arms whose pairs are reordered")

    @field_validator("shares")
    @classmethod
    def _usable(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if 0 not in shares or len(set(shares)) < 2 or not all(0 <= share <= 1 for share in shares):
            raise ValueError("shares are 0, with which the others are compared, and others up to 1")
        return tuple(sorted(set(shares)))


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    known = exp.arms()
    arms: dict[str, Sections] = {}
    places: dict[str, dict[str, Any]] = {}
    for arm in settings.arms:
        if arm not in known:
            raise PladError(f"study.arms: no arm {arm}; arms: {', '.join(known)}")
        if known[arm][1].objective.built().trains_on != "pairs":
            raise PladError(f"study.arms: {arm} ({known[arm][1].objective.name}) does not train on pairs: leave it out")
        for share in settings.shares:
            name = f"{arm}-{100 * share:g}pct".replace(".", "_") if share else arm
            arms[name] = vary_arm(known[arm], {"pairs.reward_share": share}, f"share {share:g} of {arm}")
            places[name] = {"arm": arm, "share": share}
    return searched.evaluated(STUDY, exp, arms, settings, store, {"places": places}, reads=("pairs",))


def result(job: Job) -> Findings:
    found, places = Runs.of(job), job.config["facts"]["places"]
    temperatures = found.evaluate.temperatures
    cells = [(name, place["arm"], t) for t in temperatures for name, place in places.items()]
    found = found.for_tests(sum(name != arm for name, arm, _ in cells))
    qualities = found.estimates({(name, t): found.won(name, t) for name, _, t in cells}, 0.5)
    more = {(name, t): found.difference(name, arm, t) for name, arm, t in cells if name != arm}
    gains = runs.corrected(found.estimates(more))
    lifts = found.estimates({(name, t): found.difference(name, INITIAL, t) for name, _, t in cells})
    rows: list[tuple[Cell, ...]] = []
    for name, arm, t in cells:
        gain = gains.get((name, t))
        measured = (_swapped(job, found.seeds, name), qualities[name, t], lifts[name, t])
        rows.append((arm, t, places[name]["share"], *measured, gain, gain.p if gain else None))
    table = Table(
        key="shares",
        title=f"Pairs ordered by the reward: {found.quality}",
        note=f"Gain: over the same arm with no pair reordered; p Holm-corrected over {len(gains)} gains. {found.how}",
        columns=(
            ARM,
            TEMPERATURE,
            Column(key="share", label="by reward", unit="percent", digits=0),
            Column(key="swapped", label="pairs swapped", unit="percent"),
            Column(key="quality", label="win rate", unit="percent"),
            Column(key="lift", label="over the initial student", unit="points"),
            Column(key="gain", label="gain", unit="points"),
            P_HOLM,
        ),
        rows=tuple(rows),
    )
    series = []
    for arm in dict.fromkeys(place["arm"] for place in places.values()):
        for t in temperatures:
            names = [name for name in places if places[name]["arm"] == arm]
            here = [(places[name]["share"], e) for name in names if (e := qualities[name, t]) is not None]
            series.append(points(f"{arm}, {how(t).lower()}", here))
    figure = Figure(
        key="real-pairs",
        title=f"{found.quality[0].upper()}{found.quality[1:]} by share of reward-ordered pairs",
        note=found.how,
        x=Axis(label="share of pairs that the reward orders", unit="percent"),
        y=Axis(label=found.quality, unit="percent"),
        series=tuple(series),
        lines=tuple(
            Line(label=f"initial student, {how(t).lower()}", y=level)
            for t in temperatures
            if (level := runs.mean(found.won(INITIAL, t))) is not None
        ),
    )
    return Findings(
        summary=tuple(_sentences(found, gains, places)),
        warnings=(*_worse(lifts, places), *searched.cautions(job)),
        tables=(table, *searched.tables(job)),
        figures=(figure,),
        confidence=found.evaluate.confidence,
    )


def _swapped(job: Job, seeds: tuple[int, ...], name: str) -> float:
    """Share of the arm's pairs whose sides the reward exchanged, over all seeds."""
    metrics = [job.inputs[f"pairs/{seed}/{name}"].manifest["metrics"] for seed in seeds]
    return float(np.sum([m["swapped"] for m in metrics]) / np.sum([m["pairs"] for m in metrics]))


def _sentences(
    found: Runs, gains: dict[tuple[str, float], Interval | None], places: dict[str, dict[str, Any]]
) -> list[str]:
    most = max(place["share"] for place in places.values())
    return [
        f"{how(t)}, {places[name]['arm']}: {100 * most:g} % of the pairs in the reward's order change the win rate by "
        f"{interval(e)} points{told_apart(e, found.evaluate.confidence)}."
        for (name, t), e in gains.items()
        if e is not None and places[name]["share"] == most
    ]


def _worse(lifts: dict[tuple[str, float], Interval | None], places: dict[str, dict[str, Any]]) -> list[str]:
    """Of arms that no share of reward-ordered pairs lifts above where they began."""
    highs: dict[tuple[str, float], list[float]] = {}
    for (name, t), lift in lifts.items():
        if lift is not None:
            highs.setdefault((places[name]["arm"], t), []).append(lift.high)
    return [
        f"{how(t)}, {arm}: whatever the order of its pairs, the student is worse than before it was distilled; the recipe "
        "(learning rate, SFT term) is at fault, and what the order is worth under a better one may differ (study.search "
        "finds a rate for each share)."
        for (arm, t), found in highs.items()
        if max(found) < 0
    ]


STUDY = Study("real-pairs", "Pseudo pairs against reward-ordered ones", Settings, plan, result, "Figure 2")
