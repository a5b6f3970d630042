"""The intervals and corrections that every study leans on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from plad_ray.evaluate.bootstrap import estimate
from plad_ray.evaluate.frame import Frame
from plad_ray.evaluate.holm import enough, holm
from plad_ray.report import significance


def test_intervals_of_paired_differences_cover_the_truth():
    """500 simulated comparisons of two arms on two seeds, whose win rates differ by 0.1 and whose prompts are shared."""
    rng = np.random.default_rng(11)
    covered = []
    for simulation in range(500):
        strata = []
        for _ in range(2):
            ease = rng.normal(size=(1, 150))  # of the prompt, for both arms
            ours, theirs = ease + rng.normal(0.36, 1, (1, 150)), ease + rng.normal(0, 1, (1, 150))
            strata.append((ours > 0).astype(float) - (theirs > 0).astype(float))
        [found] = estimate(strata, 400, simulation, 0.95)
        covered.append(found.low <= TRUTH <= found.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def _truth() -> float:
    """P(ease + noise + 0.36 > 0) − P(ease + noise > 0), both normal with variance 2."""
    from scipy.stats import norm

    return float(norm.cdf(0.36 / np.sqrt(2)) - 0.5)


TRUTH = _truth()


def test_holm_against_the_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1] and holm([]) == []


def test_holm_keeps_the_family_wise_error():
    """Of 1,000 families of eight true nulls, at most about 5 % have a rejection; uncorrected, a third do."""
    rng = np.random.default_rng(3)
    families = rng.random((1000, 8))
    assert np.mean([min(holm(list(ps))) < 0.05 for ps in families]) == pytest.approx(0.05, abs=0.02)
    assert (families.min(1) < 0.05).mean() > 0.3


def test_sixty_constant_effects_are_all_found():
    """With 2,000 resamples no p is below 2 / 2001, of which 60 are 0.06."""
    effects = np.full((60, 20), 0.1)
    ps = [e.p for e in estimate([effects], enough(2000, 60, 0.95), 0, 0.95)]
    assert max(holm(ps)) == pytest.approx(0.05 / 20, rel=0.01)
    assert enough(2000, 1, 0.95) == 2000
    levels = {(f"p{i}", 0.0): {"score": np.full(20, i / 10)} for i in range(12)}
    found = significance.compare(
        Frame(pa.array(map(str, range(20))), levels), [p for p, _ in levels], [0.0], 2000, 0, 0.95
    )
    assert len(found) == 66 and all(each.clear for each in found)


def test_many_estimates_are_made_a_few_at_a_time(monkeypatch):
    values = np.random.default_rng(0).normal(size=(7, 30))
    whole = estimate([values], 100, 0, 0.95, np.arange(7) / 10)
    monkeypatch.setattr("plad_ray.evaluate.bootstrap.MEANS_BYTES", 8 * 100 * 2)
    assert [e.p for e in estimate([values], 100, 0, 0.95, np.arange(7) / 10)] == [e.p for e in whole]
