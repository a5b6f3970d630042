"""The evaluated runs behind a study: aligned per-prompt numbers of each seed, and estimates over them.

All estimates of one call are made on the same resamples of prompts, each run resampled within itself and runs on the same
prompts together (paired, stratified bootstrap). Their spread is that of prompts within the runs at hand; what another seed
would give is not in it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from plad_ray.artifacts import Artifact
from plad_ray.config import Evaluate
from plad_ray.evaluate.bootstrap import Ids, estimate, resampled_means
from plad_ray.evaluate.frame import Frame
from plad_ray.evaluate.holm import enough, holm
from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.evaluate.winrate import wins
from plad_ray.stages import Job
from plad_ray.study.graph import EVALUATION
from plad_ray.study.result import Interval
from plad_ray.study.statistics import ends

K = TypeVar("K", bound=Hashable)
Values = list[np.ndarray]  # [N_s] for each run; NaN where missing
Estimates = dict[tuple[str, float], Interval | None]  # by policy and temperature


@dataclass(frozen=True)
class Runs:
    """``frames``: one a seed. ``against``: whose text win rates are against; references where any is scored."""

    seeds: tuple[int, ...]
    frames: tuple[Frame, ...]
    evaluate: Evaluate
    against: str

    @classmethod
    def of(cls, job: Job, prefix: str = EVALUATION) -> Runs:
        """From the inputs ``<prefix><seed>``."""
        found = evaluations(job, prefix)
        frames = tuple(Frame.from_rows(artifact.batches()) for artifact in found.values())
        evaluate = evaluate_of(job)
        scored = any(not np.isnan(cell["reference_score"]).all() for f in frames for cell in f.cells.values())
        return cls(tuple(found), frames, evaluate, "reference" if scored else "initial student")

    def for_tests(self, tests: int) -> Runs:
        """The same with as many resamples as it takes to correct the p-values of so many comparisons."""
        return replace(self, evaluate=for_tests(self.evaluate, tests))

    @property
    def how(self) -> str:
        """How intervals are made, for notes."""
        return (
            f"Intervals: {self.evaluate.confidence:.0%}, paired bootstrap over the prompts of each run, common ones "
            f"drawn together ({self.evaluate.bootstrap:,} resamples), {len(self.seeds)} "
            f"{'run' if len(self.seeds) == 1 else 'runs'}; what another seed would give is not in them."
        )

    @property
    def quality(self) -> str:
        return f"win rate against the {self.against}{'s' if self.against == 'reference' else ''}"

    @property
    def ids(self) -> list[pa.StringArray]:
        return [frame.ids for frame in self.frames]

    def has(self, policy: str, temperature: float) -> bool:
        return all((policy, temperature) in frame.cells for frame in self.frames)

    def measure(self, policy: str, temperature: float, name: str) -> Values:
        return [frame.cells[policy, temperature][name] for frame in self.frames]

    def won(self, policy: str, temperature: float) -> Values:
        """The quality of each prompt's text: 1 where it beats the reference (or the initial student), 0.5 for a tie."""
        if self.against != "reference":
            return self.won_against(policy, INITIAL, temperature)
        pairs = zip(
            self.measure(policy, temperature, "score"),
            self.measure(policy, temperature, "reference_score"),
            strict=True,
        )
        return [wins(ours, theirs) for ours, theirs in pairs]

    def won_against(self, policy: str, other: str, temperature: float) -> Values:
        pairs = zip(self.measure(policy, temperature, "score"), self.measure(other, temperature, "score"), strict=True)
        return [wins(ours, theirs) for ours, theirs in pairs]

    def difference(self, policy: str, other: str, temperature: float) -> Values:
        """By how much the quality of each prompt's text differs."""
        pairs = zip(self.won(policy, temperature), self.won(other, temperature), strict=True)
        return [ours - theirs for ours, theirs in pairs]

    def estimates(self, wanted: Mapping[K, Values], null: float = 0.0) -> dict[K, Interval | None]:
        """Mean and interval of each, on the same resamples; p against ``null``."""
        if not wanted:
            return {}
        return dict(zip(wanted, intervals(self._strata(wanted), self.evaluate, null, self.ids), strict=True))

    def family(self, wanted: Mapping[K, Values]) -> tuple[dict[K, Interval | None], str]:
        """Estimates of differences, their p-values corrected for being one family, and how the intervals are made."""
        return families({"": (self, wanted)})[""]

    def resampled(self, wanted: Mapping[K, Values]) -> dict[K, np.ndarray]:
        """The means [R] of each over the resamples."""
        means = resampled_means(self._strata(wanted), self.evaluate.bootstrap, 0, self.ids)
        return dict(zip(wanted, means, strict=True))

    def interval(self, mean: float, resampled: np.ndarray) -> Interval:
        """Percentile interval of a statistic from its value on each resample."""
        low, high = ends(resampled, self.evaluate.confidence)
        return Interval(mean=mean, low=float(low), high=float(high))

    def teacher_student(self) -> dict[float, Interval | None]:
        """How often the teacher's text beats the initial student's, by temperature; empty without a teacher."""
        temperatures = [t for t in self.evaluate.temperatures if self.has(TEACHER, t)]
        return self.estimates({t: self.won_against(TEACHER, INITIAL, t) for t in temperatures}, 0.5)

    def _strata(self, wanted: Mapping[Any, Values]) -> list[np.ndarray]:
        return [np.stack([values[i] for values in wanted.values()]) for i in range(len(self.frames))]


def families(
    several: Mapping[str, tuple[Runs, Mapping[K, Values]]],
) -> dict[str, tuple[dict[K, Interval | None], str]]:
    """As ``Runs.family`` of each by name, the p-values corrected for being one family all together."""
    tests = sum(len(wanted) for _, wanted in several.values())
    enough = {name: found.for_tests(tests) for name, (found, _) in several.items()}
    estimates = {name: enough[name].estimates(wanted) for name, (_, wanted) in several.items()}
    every = corrected({(name, key): e for name, of_one in estimates.items() for key, e in of_one.items()})
    return {name: ({key: every[name, key] for key in of_one}, enough[name].how) for name, of_one in estimates.items()}


def evaluate_of(job: Job) -> Evaluate:
    """How the study's experiment is evaluated."""
    return Evaluate.model_validate(job.config["experiment"].get("evaluate", {}))


def for_tests(evaluate: Evaluate, tests: int) -> Evaluate:
    return evaluate.model_copy(update={"bootstrap": enough(evaluate.bootstrap, tests, evaluate.confidence)})


def intervals(
    strata: list[np.ndarray], evaluate: Evaluate, null: float = 0.0, ids: Ids | None = None
) -> list[Interval | None]:
    """Mean and interval of each of M quantities; ``strata``: [M, N_s] a run, of the prompts ``ids``, all resampled alike; p
    against ``null``."""
    found = estimate(strata, evaluate.bootstrap, 0, evaluate.confidence, null, ids)
    return [None if e is None else Interval(mean=e.mean, low=e.low, high=e.high, p=e.p, n=e.n) for e in found]


def evaluations(job: Job, prefix: str = EVALUATION) -> dict[int, Artifact]:
    """Evaluation artifacts by seed."""
    return {int(key.removeprefix(prefix)): a for key, a in job.inputs.items() if key.startswith(prefix)}


def corrected(found: Mapping[K, Interval | None]) -> dict[K, Interval | None]:
    """The same with p-values corrected for being one family (Holm)."""
    known = {key: e.p for key, e in found.items() if e is not None and e.p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return {
        key: e.model_copy(update={"p": adjusted[key], "adjusted": True}) if e is not None and key in adjusted else e
        for key, e in found.items()
    }


def mean(values: Values) -> float | None:
    every = np.concatenate(values)
    every = every[~np.isnan(every)]
    return float(every.mean()) if len(every) else None
