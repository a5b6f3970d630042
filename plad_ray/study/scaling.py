"""What more distillation data is worth (PLaD, Figure 4): every arm on nested shares of it, and a fitted curve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from plad_ray import parts, preview
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment
from plad_ray.errors import PladError
from plad_ray.stages import Job
from plad_ray.study import searched
from plad_ray.study.arms import Sections, vary_arm
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import Seeds, evaluated
from plad_ray.study.pieces import AGAINST, ARM, DIFFERENCE, P_HOLM, TEMPERATURE, band, how, interval, points, told_apart
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Series, Table
from plad_ray.study.runs import Runs
from plad_ray.study.searched import Searched
from plad_ray.study.statistics import ends, log_fit, more_for

GAIN = 0.01  # a point of win rate
CURVE_POINTS = 30


class Settings(Searched):
    """What ``search`` finds for an arm with all of the data holds for its smaller shares."""

    shares: tuple[float, ...] = Field(
        (0.05, 0.1, 0.25, 0.5, 1.0), description="of the distill prompts, each above 0 and at most 1; nested"
    )

    @field_validator("shares")
    @classmethod
    def _usable(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(shares)) < 2 or not all(0 < share <= 1 for share in shares):
            raise ValueError("shares are at least two different numbers above 0 and at most 1")
        return tuple(sorted(set(shares)))


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    """Text is generated for all prompts, once; an arm's share is what the first prompts gave."""
    settled = searched.settle(STUDY, exp, exp.arms(), settings, store)
    if isinstance(settled, Plan):
        return settled
    seeds = Seeds.of(exp, settings)
    prompts = [parts.prompts(seeded) for _, seeded in seeds]
    sizes = [preview.split_sizes(stage, store).get("distill") for stage in prompts]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return Plan(exp, prompts, then="each arm is trained on shares of the prompts that are there")
    arms: dict[str, Sections] = {}
    facts: dict[str, dict[str, object]] = {}
    for arm, sections in settled.arms.items():
        most = min(*known, sections[1].prompts or min(known))
        for share in settings.shares:
            name = arm if share == max(settings.shares) else f"{arm}-{100 * share:g}pct".replace(".", "_")
            count = max(1, round(share * most))
            cut = {"distill.prompts": count} if share < 1 else {}
            arms[name] = vary_arm(sections, cut, f"share {share:g} of {arm}")
            facts[name] = {"arm": arm, "share": share, "prompts": count}
        counts = [fact["prompts"] for fact in facts.values() if fact["arm"] == arm]
        if len(set(counts)) < len(counts):
            raise PladError(f"study.shares: two shares of the distill prompts of {arm} are as many prompts: {counts}")
    return evaluated(STUDY, exp, arms, settings, {"places": facts}, settled.inputs, reads=("train",))


@dataclass(frozen=True)
class Measured:
    """What each trained policy is, and how good: ``facts`` (share and prompts) and ``sizes`` (rows trained on) by policy."""

    found: Runs
    arms: dict[str, list[str]]  # arm -> its policies, smallest share first
    facts: dict[str, dict[str, Any]]
    sizes: dict[str, float]
    means: dict[tuple[str, float], Interval | None]

    def places(self, arm: str, temperature: float) -> list[tuple[float, Interval]]:
        """Size and quality of each share of ``arm``."""
        found = ((self.sizes[name], self.means[name, temperature]) for name in self.arms[arm])
        return [(size, e) for size, e in found if e is not None]


def result(job: Job) -> Findings:
    found, facts = Runs.of(job), job.config["facts"]["places"]
    temperatures = found.evaluate.temperatures
    arms: dict[str, list[str]] = {}
    for name, fact in sorted(facts.items(), key=lambda item: item[1]["share"]):
        arms.setdefault(fact["arm"], []).append(name)
    wanted = {(name, t): found.won(name, t) for name in facts for t in temperatures}
    measured = Measured(
        found,
        arms,
        facts,
        {name: _rows(job, found.seeds, name) for name in facts},
        found.estimates(wanted, 0.5),
    )
    resampled = found.resampled(wanted)
    fits = [
        Fit(measured, arm, t, np.stack([resampled[name, t] for name in names]))
        for t in temperatures
        for arm, names in arms.items()
        if len({measured.sizes[name] for name in names}) > 1
    ]
    between, made = contrasts(measured)
    return Findings(
        summary=(*(fit.sentence() for fit in fits), *apart(measured, between)),
        warnings=(*same_rows(measured), *searched.cautions(job)),
        tables=(
            by_share(measured),
            *([differences(measured, between, made)] if between else []),
            fitted(found, fits),
            *searched.tables(job),
        ),
        figures=tuple(figure(measured, [fit for fit in fits if fit.temperature == t], t) for t in temperatures),
        confidence=found.evaluate.confidence,
    )


def _rows(job: Job, seeds: tuple[int, ...], name: str) -> float:
    """Rows that an arm was trained on, mean over the seeds."""
    artifacts: list[Artifact] = [job.inputs[f"train/{seed}/{name}"] for seed in seeds]
    return float(np.mean([artifact.manifest["rows"]["out"] for artifact in artifacts]))


def same_rows(measured: Measured) -> Iterator[str]:
    """Of arms of which a larger share is no more data."""
    for arm, names in measured.arms.items():
        sizes = [measured.sizes[name] for name in names]
        if len(set(sizes)) < len(sizes):
            yield (
                f"{arm}: its shares were trained on {', '.join(f'{size:,.0f}' for size in sizes)} rows, so some differ in "
                "nothing: pairs.limit or distill.limit cuts them, or the further prompts gave none"
                + ("." if len(set(sizes)) > 1 else ", and no curve can be fitted.")
            )


class Fit:
    """y = a + b·ln n through an arm's qualities at its sizes: least squares, on the data and on each resample."""

    def __init__(self, measured: Measured, arm: str, temperature: float, y_SR: np.ndarray):
        self.arm, self.temperature, self.found = arm, temperature, measured.found
        places = measured.places(arm, temperature)
        self.n = [n for n, _ in places]
        self.a, self.b = (float(v[0]) for v in log_fit(self.n, np.array([[e.mean] for _, e in places])))
        self.a_R, self.b_R = log_fit(self.n, y_SR)

    @property
    def doubling(self) -> Interval:
        """What twice the data adds."""
        return self.found.interval(self.b * float(np.log(2)), self.b_R * np.log(2))

    @property
    def more(self) -> Interval | str:
        """Rows beyond all of them for one point more; as text where its interval has no upper end."""
        most = max(self.n)
        value = float(more_for(GAIN, most, np.array([self.b]))[0])
        low, high = ends(more_for(GAIN, most, self.b_R), self.found.evaluate.confidence, method="nearest")
        if np.isfinite(high):
            return Interval(mean=value, low=float(low), high=float(high))
        if not np.isfinite(value):
            return "no number: the curve does not rise"
        return f"{value:,.0f} [{low:,.0f}, no end]"

    def sentence(self) -> str:
        more = self.more
        about = more if isinstance(more, str) else f"{more.mean:,.0f} [{more.low:,.0f}, {more.high:,.0f}]"
        return (
            f"{how(self.temperature)}, {self.arm}: twice the data adds {interval(self.doubling)} "
            f"points; rows beyond the {max(self.n):,.0f} for +1 point: {about}."
        )

    def band(self) -> Series:
        x = np.geomspace(min(self.n), max(self.n), CURVE_POINTS)
        y_XR = self.a_R[None] + self.b_R[None] * np.log(x)[:, None]
        y = self.a + self.b * np.log(x)
        return band(self.arm, x, y, y_XR, self.found.evaluate.confidence)


def by_share(measured: Measured) -> Table:
    found = measured.found
    rows: list[tuple[Cell, ...]] = [
        (
            arm,
            temperature,
            *(measured.facts[name][key] for key in ("share", "prompts")),
            measured.sizes[name],
            measured.means[name, temperature],
        )
        for temperature in found.evaluate.temperatures
        for arm, names in measured.arms.items()
        for name in names
    ]
    return Table(
        key="shares",
        title=f"Shares of the data: {found.quality}",
        note="Share: the first of the distill prompts, so a smaller one is the beginning of a larger one; some prompts give "
        f"no row. {found.how}",
        columns=(
            ARM,
            TEMPERATURE,
            Column(key="share", label="share", unit="percent", digits=0),
            Column(key="prompts", label="prompts", unit="count"),
            Column(key="rows", label="rows trained on", unit="count"),
            Column(key="quality", label="win rate", unit="percent"),
        ),
        rows=tuple(rows),
    )


def contrasts(measured: Measured) -> tuple[dict[tuple[str, float, float], Interval], str]:
    """By other arm, temperature and share: the first arm's win rate less the other's, corrected as one family; and how the
    intervals are made."""
    found, (first, *others) = measured.found, measured.arms
    wanted = {
        (other, t, measured.facts[ours]["share"]): found.difference(ours, theirs, t)
        for t in found.evaluate.temperatures
        for other in others
        for ours, theirs in zip(measured.arms[first], measured.arms[other], strict=True)
    }
    corrected, made = found.family(wanted)
    return {key: e for key, e in corrected.items() if e is not None}, made


def differences(measured: Measured, between: dict[tuple[str, float, float], Interval], made: str) -> Table:
    return Table(
        key="differences",
        title=f"{next(iter(measured.arms))} less each of the others at the same share, points of {measured.found.quality}",
        note=f"Paired by prompt; p two-sided, Holm-corrected over the {len(between)} rows. {made}",
        columns=(
            AGAINST,
            TEMPERATURE,
            Column(key="share", label="share", unit="percent", digits=0),
            DIFFERENCE,
            P_HOLM,
        ),
        rows=tuple((*key, e, e.p) for key, e in between.items()),
    )


def apart(measured: Measured, between: dict[tuple[str, float, float], Interval]) -> Iterator[str]:
    """At which shares arms are told apart."""
    confidence = measured.found.evaluate.confidence
    for other in dict.fromkeys(other for other, *_ in between):
        told = [
            f"{interval(e)} points ({how(t).lower()}, {100 * share:g} % of the prompts)"
            for (arm, t, share), e in between.items()
            if arm == other and not told_apart(e, confidence)
        ]
        yield f"{next(iter(measured.arms))} less {other} at the same share: {', '.join(told) or 'not told apart at any'}."


def fitted(found: Runs, fits: list[Fit]) -> Table:
    rows: list[tuple[Cell, ...]] = [(fit.arm, fit.temperature, fit.doubling, fit.more) for fit in fits]
    return Table(
        key="fits",
        title="Fitted curves",
        note="Win rate = a + b·ln(rows), least squares over the shares, refitted on each resample of the prompts. "
        f"{found.how}",
        columns=(
            ARM,
            TEMPERATURE,
            Column(key="doubling", label="twice the data", unit="points"),
            Column(key="more", label="more rows for +1 point", unit="count"),
        ),
        rows=tuple(rows),
    )


def figure(measured: Measured, fits: list[Fit], temperature: float) -> Figure:
    found, series = measured.found, []
    bands = {fit.arm: fit.band() for fit in fits}
    for arm in measured.arms:
        series += [
            points(arm, measured.places(arm, temperature), "points", arm),
            *([bands[arm]] if arm in bands else []),
        ]
    return Figure(
        key=f"scaling-{temperature:g}".replace(".", "_"),
        title=f"{how(temperature)}: {found.quality} by data",
        note=f"Curves: a + b·ln(rows) with their {found.evaluate.confidence:.0%} bands. {found.how}",
        x=Axis(label="rows trained on", unit="count", log=True),
        y=Axis(label=found.quality, unit="percent"),
        series=tuple(series),
    )


STUDY = Study("scaling", "What more distillation data is worth", Settings, plan, result, "Figure 4")
