"""Does a student's likelihood tell good text from bad, before and after distillation? The claim that PLaD rests on.

Several samples of each test prompt are scored and read by each student. Within a prompt: Kendall's τ-b and AUROC of the
length-normalised log-likelihood against the score. Over pairs of a prompt's texts with different scores: how far
p(a ≻ b) = σ(Δ(log P/|y|)/T) is from the share of pairs that the scorer orders so; T is fitted on dev (Guo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import kendalltau

from plad_ray import parts
from plad_ray.artifacts import Store
from plad_ray.config import Evaluate, Experiment, StudySettings
from plad_ray.config.base import Count, Temperature
from plad_ray.errors import PladError
from plad_ray.evaluate.bootstrap import resampled_means
from plad_ray.evaluate.table import INITIAL
from plad_ray.pipeline import before_distillation
from plad_ray.stages import Job, Stage
from plad_ray.study import likelihoods
from plad_ray.study.base import Plan, Study
from plad_ray.study.graph import Seeds, last_stage, needs_one_split, needs_scorer, of_run
from plad_ray.study.pieces import LABELS
from plad_ray.study.result import Axis, Cell, Column, Figure, Findings, Interval, Line, Series, Table
from plad_ray.study.runs import evaluate_of, intervals
from plad_ray.study.statistics import ends

#: bins of confidence between a half and one
BINS = 10
LOG_TEMPERATURES = (-8.0, 8.0)


class Settings(StudySettings):
    samples: int = Field(8, ge=2, description="texts a prompt of each policy")
    temperature: Temperature = Field(0.7, description="at which they are sampled")
    policies: tuple[str, ...] = Field(("teacher", "student"), description="whose texts are read")
    limit: Count | None = Field(None, description="prompts of dev and of test; null: evaluate.limit")


def plan(exp: Experiment, settings: Settings, store: Store) -> Plan:
    needs_scorer(exp, STUDY.name)
    needs_one_split(exp, STUDY.name, Seeds.of(exp, settings).seeds)
    roles = {"teacher": exp.teacher, "student": exp.student}
    missing = [name for name in settings.policies if roles.get(name) is None]
    if missing or not settings.policies:
        raise PladError(f"study.policies: texts are of teacher and student, and there is no {missing or 'policy'}")
    if settings.temperature == 0:
        raise PladError("study.temperature 0: all samples of a prompt would be the same; set it above 0")
    inputs: dict[str, Stage] = {}
    for seed, seeded in Seeds.of(exp, settings):
        made, arms = before_distillation(seeded), seeded.arms()
        adapters = parts.adapters(seeded, arms, made, parts.tables(seeded, arms, made))
        limit, splits = settings.limit or exp.evaluate.limit, ("dev", exp.evaluate.split)
        drawn = ((settings.temperature,), settings.samples, limit)
        texts = parts.generate_samples(seeded, "samples", made, settings.policies, splits, *drawn)
        scores = parts.score(seeded, "sample-scores", made.prompts, texts)
        assert scores is not None, "checked above"
        readers = {INITIAL: made.student, **{arm: (*made.student, adapter) for arm, adapter in adapters.items()}}
        read = likelihoods.stage(seeded, made.prompts, texts, readers)
        inputs |= {
            f"scores/{seed}": of_run(scores, f"seed {seed}"),
            f"likelihoods/{seed}": of_run(read, f"seed {seed}"),
        }
    facts = {"readers": [INITIAL, *exp.arms()], "split": exp.evaluate.split}
    last = last_stage(STUDY, exp, settings, inputs, facts)
    return Plan(exp, [last], last)


@dataclass(frozen=True)
class Texts:
    """The scored texts of a split under one reader: by prompt, ``scores`` and length-normalised ``logps`` [texts]."""

    scores: list[np.ndarray]
    logps: list[np.ndarray]
    ids: pa.StringArray

    def each(self, measure: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
        """``measure(scores, logps)`` of each prompt, [N]."""
        return np.array([measure(s, p) for s, p in zip(self.scores, self.logps, strict=True)])

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each prompt, for pairs with different scores: Δ log P/|y| ≥ 0 [pairs], and whether the likelier text is the
        better one (a half where both are equally likely)."""
        return [_pairs(s, p) for s, p in zip(self.scores, self.logps, strict=True)]


def _pairs(scores: np.ndarray, logps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.array([(a, b) for a, b in combinations(range(len(scores)), 2) if scores[a] != scores[b]])
    if not len(places):
        return np.empty(0), np.empty(0)
    gaps = logps[places[:, 0]] - logps[places[:, 1]]
    better = scores[places[:, 0]] > scores[places[:, 1]]
    return np.abs(gaps), np.where(gaps == 0, 0.5, (gaps > 0) == better)


def tau(scores: np.ndarray, logps: np.ndarray) -> float:
    """Kendall's τ-b; NaN where all scores or all likelihoods are equal."""
    if len(set(scores)) < 2 or len(set(logps)) < 2:
        return float("nan")
    return float(kendalltau(scores, logps).statistic)


def auroc(scores: np.ndarray, logps: np.ndarray) -> float:
    """How often the better of two texts is the likelier one, ties half; NaN without two different scores."""
    _, right = _pairs(scores, logps)
    return float(right.mean()) if len(right) else float("nan")


def fit_temperature(gaps: np.ndarray, right: np.ndarray) -> float:
    """The T of σ(Δ/T) with the smallest negative log-likelihood."""

    def loss(log_t: float) -> float:
        scaled = gaps / np.exp(log_t)
        return float(np.mean(right * np.logaddexp(0, -scaled) + (1 - right) * np.logaddexp(0, scaled)))

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def binned(pairs: list[tuple[np.ndarray, np.ndarray]], temperature: float) -> np.ndarray:
    """Sums by prompt and bin of confidence: [N, 3, BINS], of confidence, of being right, and of pairs."""
    found = np.zeros((len(pairs), 3, BINS))
    for n, (gaps, right) in enumerate(pairs):
        p = expit(gaps / temperature)
        place = np.minimum(((p - 0.5) * 2 * BINS).astype(int), BINS - 1)
        for row, values in enumerate((p, right, np.ones(len(p)))):
            found[n, row] = np.bincount(place, values, minlength=BINS)
    return found


def ece(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error from sums [3, BINS, …] over all pairs: Σ_b |confidence − share right| · share of pairs;
    NaN without pairs."""
    off, pairs = np.abs(sums[0] - sums[1]).sum(0), np.asarray(sums[2].sum(0))
    return np.divide(off, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def ece_ends(sums: np.ndarray, sums_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """An interval of the ECE of ``sums`` [3, BINS] from those of R resamples [3, BINS, R].

    Noise makes a sum of absolute values larger, and resampling adds as much again, so percentiles lie too high. The upper
    end is that of the basic bootstrap, 2·ECE less a low percentile (Davison & Hinkley 1997, §5.2). The lower end, which
    reaches 0 where nothing is off, takes off the noise itself, a high percentile of Σ_b |resampled gap − gap|.
    """
    with np.errstate(invalid="ignore"):
        noise = np.abs((sums_R[0] - sums_R[1]) / sums_R[2].sum(0) - ((sums[0] - sums[1]) / sums[2].sum())[:, None]).sum(
            0
        )
    off = float(ece(sums))
    return max(0.0, off - float(ends(noise, confidence)[1])), max(
        off, 2 * off - float(ends(ece(sums_R), confidence)[0])
    )


def result(job: Job) -> Findings:
    facts = job.config["facts"]
    evaluate = evaluate_of(job)
    seeds = [key.removeprefix("scores/") for key in job.inputs if key.startswith("scores/")]
    scores = [job.inputs[f"scores/{s}"].table(["rid", "prompt_id", "split", "score"]).to_pylist() for s in seeds]
    logps = [likelihoods.per_token(job.inputs[f"likelihoods/{s}"]) for s in seeds]
    read = {
        (reader, split): [
            texts_of(rows, known.get(reader, {}), split) for rows, known in zip(scores, logps, strict=True)
        ]
        for reader in facts["readers"]
        for split in ("dev", facts["split"])
    }
    readings = [
        Reading.of(reader, read[reader, "dev"], read[reader, facts["split"]], read[INITIAL, facts["split"]], evaluate)
        for reader in facts["readers"]
    ]
    return Findings(
        summary=tuple(reading.sentence() for reading in readings),
        tables=(table(readings, evaluate.confidence),),
        figures=(figure(readings),),
        confidence=evaluate.confidence,
    )


def texts_of(scores: list[dict[str, Any]], logps: dict[str, float], split: str) -> Texts:
    """Scored texts of ``split`` with their log P/|y| (``logps`` by rid), by prompt; prompts with one text are left out."""
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for row in scores:
        if row["split"] == split and row["rid"] in logps:
            by_prompt.setdefault(row["prompt_id"], []).append((row["score"], logps[row["rid"]]))
    several = {prompt: np.array(found) for prompt, found in by_prompt.items() if len(found) > 1}
    scored, read = ([found[:, i] for found in several.values()] for i in (0, 1))
    return Texts(scored, read, pa.array(several, pa.string()))


@dataclass(frozen=True)
class Reading:
    """What one student's likelihoods say. Changes are against the initial student on the same texts."""

    reader: str
    tau: Interval | None
    auroc: Interval | None
    tau_change: Interval | None
    auroc_change: Interval | None
    ece: Interval | None
    raw_ece: float | None
    temperature: float
    bins: np.ndarray  # [3, BINS] sums over all pairs of test, at ``temperature``

    @classmethod
    def of(cls, reader: str, dev: list[Texts], test: list[Texts], initial: list[Texts], evaluate: Evaluate) -> Reading:
        gaps, right = (np.concatenate(v) for v in zip(*(pair for t in dev for pair in t.pairs()), strict=True))
        if not len(gaps):
            raise PladError("study calibration: no dev prompt has two texts with different scores to fit T on")
        temperature = fit_temperature(gaps, right)
        strata = []
        for ours, first in zip(test, initial, strict=True):
            rows = [ours.each(tau), ours.each(auroc)]
            strata.append(np.stack([*rows, rows[0] - first.each(tau), rows[1] - first.each(auroc)]))
        ids = [t.ids for t in test]
        values = intervals(strata, evaluate, ids=ids)
        changes = values[2:] if reader != INITIAL else [None, None]
        binned_test = [binned(t.pairs(), temperature) for t in test]
        sums = np.sum([b.sum(0) for b in binned_test], axis=0)
        error = raw = None
        if sums[2].any():
            means = resampled_means([b.reshape(len(b), -1).T for b in binned_test], evaluate.bootstrap, 0, ids)
            low, high = ece_ends(sums, means.reshape(3, BINS, -1), evaluate.confidence)
            raw = float(ece(np.sum([binned(t.pairs(), 1.0).sum(0) for t in test], axis=0)))
            error = Interval(mean=float(ece(sums)), low=low, high=high)
        return cls(reader, values[0], values[1], changes[0], changes[1], error, raw, temperature, sums)

    def sentence(self) -> str:
        if self.auroc is None or self.ece is None or self.raw_ece is None:
            return f"{LABELS.get(self.reader, self.reader)}: no prompt has texts of different scores."
        order = "" if self.tau is None else f" τ {self.tau.mean:+.3f};"
        ends = f"[{100 * self.auroc.low:.1f}, {100 * self.auroc.high:.1f}]"
        return (
            f"{LABELS.get(self.reader, self.reader)}: the better of two texts of a prompt is the likelier one in "
            f"{100 * self.auroc.mean:.1f} % {ends} (a coin: 50 %);{order} σ(Δ/T) is off by "
            f"{100 * self.ece.mean:.1f} points with T {self.temperature:.3g} fitted on dev, by {100 * self.raw_ece:.1f} "
            "with T 1."
        )


def table(readings: list[Reading], confidence: float) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (LABELS.get(r.reader, r.reader), r.auroc, r.auroc_change, r.tau, r.tau_change, r.temperature, r.ece, r.raw_ece)
        for r in readings
    ]
    return Table(
        key="calibration",
        title="Likelihood against quality, within a prompt",
        note="AUROC and τ-b of log P/|y| against the score, mean over prompts; changes are against the initial student on "
        f"the same texts. ECE: {BINS} bins of confidence over pairs of texts with different scores. Intervals: "
        f"{confidence:.0%}, paired bootstrap over the prompts of each run, common ones drawn "
        "together; that of ECE is corrected for the noise that makes it larger, and is 0 at least.",
        columns=(
            Column(key="reader", label="likelihood of", unit="text"),
            Column(key="auroc", label="AUROC", unit="percent"),
            Column(key="auroc_change", label="change", unit="points"),
            Column(key="tau", label="Kendall τ", digits=3),
            Column(key="tau_change", label="change", digits=3),
            Column(key="temperature", label="T", digits=3),
            Column(key="ece", label="ECE", unit="percent"),
            Column(key="raw_ece", label="ECE, T 1", unit="percent"),
        ),
        rows=tuple(rows),
    )


def figure(readings: list[Reading]) -> Figure:
    """Reliability: in each bin that has pairs, how often the likelier text is the better one."""
    series = []
    for r in readings:
        confidence, right, count = r.bins
        full = count > 0
        series.append(
            Series(
                name=LABELS.get(r.reader, r.reader),
                x=tuple(map(float, confidence[full] / count[full])),
                y=tuple(map(float, right[full] / count[full])),
                notes=tuple(f"{n:.0f} pairs" for n in count[full]),
            )
        )
    return Figure(
        key="reliability",
        title="Reliability of the likelihood as a judge",
        note="Of pairs of one prompt's texts with different scores; T fitted on dev.",
        x=Axis(label="confidence σ(Δ/T) that the likelier text is better", unit="percent"),
        y=Axis(label="share in which it is", unit="percent"),
        series=tuple(series),
        lines=(Line(label="calibrated", diagonal=True),),
    )


STUDY = Study("calibration", "Does likelihood tell good text from bad?", Settings, plan, result)
