"""Intervals: known values, pairing, and coverage by simulation."""

import numpy as np
import pyarrow as pa
import pytest

from plad_ray.evaluate.bootstrap import _prompts, estimate, resampled_means, resampled_weights, two_sided_p
from plad_ray.evaluate.winrate import tie_rate, wins

NAN = float("nan")


def test_wins_count_ties_half_and_skip_the_missing() -> None:
    ours, theirs = np.array([1.0, 0.2, 0.5, NAN, 1.0]), np.array([0.5, 0.3, 0.5, 0.5, NAN])
    np.testing.assert_array_equal(wins(ours, theirs), [1, 0, 0.5, NAN, NAN])
    assert tie_rate(ours, theirs) == pytest.approx(1 / 3)
    assert tie_rate(np.array([NAN]), np.array([1.0])) is None


def test_a_constant_has_no_width_and_the_normal_interval_is_met() -> None:
    values = np.random.default_rng(0).normal(2, 3, 900)
    constant, normal = estimate([np.stack([np.full(900, 0.7), values])], 2000, 0, 0.95)
    assert (constant.low, constant.high) == (pytest.approx(0.7), pytest.approx(0.7))
    half = 1.96 * values.std() / 30
    assert normal.mean == pytest.approx(values.mean())
    assert (normal.low, normal.high) == (
        pytest.approx(values.mean() - half, abs=0.04),
        pytest.approx(values.mean() + half, abs=0.04),
    )


def test_resamples_are_paired_and_repeatable() -> None:
    a = np.random.default_rng(1).normal(size=50)
    means = resampled_means([np.stack([a, a + 1])], 300, seed=3)
    np.testing.assert_allclose(means[1] - means[0], 1)  # the same prompts in both: the difference never varies
    np.testing.assert_array_equal(means, resampled_means([np.stack([a, a + 1])], 300, seed=3))
    assert not np.array_equal(means, resampled_means([np.stack([a, a + 1])], 300, seed=4))


def test_chunks_do_not_change_the_result(monkeypatch) -> None:
    values = np.random.default_rng(1).normal(size=(2, 40))
    whole = resampled_means([values], 101, seed=0)
    monkeypatch.setattr("plad_ray.evaluate.bootstrap.CHUNK_BYTES", 8 * 40 * 7)
    np.testing.assert_allclose(resampled_means([values], 101, seed=0), whole)


def test_missing_values_are_left_out_of_mean_and_resamples() -> None:
    values = np.array([[1.0, NAN, 1.0, NAN, 1.0], [NAN] * 5])
    found, nothing = estimate([values], 500, 0, 0.95)
    assert nothing is None
    assert (found.mean, found.low, found.high, found.n) == (1, 1, 1, 3)


def test_strata_are_resampled_within_themselves() -> None:
    means = resampled_means([np.zeros((1, 30)), np.ones((1, 10))], 200, seed=0)
    np.testing.assert_allclose(means, 0.25)  # between-run differences never enter


def test_a_prompt_of_several_runs_is_drawn_for_all_of_them() -> None:
    values, ids = np.random.default_rng(2).normal(size=(1, 40)), pa.array([f"p{i}" for i in range(40)])
    once = resampled_means([values], 300, seed=0)
    twice = [values, values[:, ::-1]], 300, 0, [ids, ids[::-1]]
    np.testing.assert_allclose(resampled_means(*twice), once)  # in any order; the second run adds nothing
    others = pa.array([f"q{i}" for i in range(40)])
    np.testing.assert_array_equal(  # and without a common prompt they are independent
        resampled_means([values, values], 300, 0, [ids, others]), resampled_means([values, values], 300, 0)
    )


def test_weights_are_those_of_the_resampled_means() -> None:
    values, ids = np.random.default_rng(2).normal(size=(2, 5)), [pa.array(list("abcde")), pa.array(list("dfabg"))]
    weights = resampled_weights(ids, 50, seed=0)
    means = resampled_means(list(values[:, None]), 50, 0, ids)
    np.testing.assert_allclose(weights @ values.ravel() / weights.sum(1), means[0])


def test_runs_linked_by_another_are_one_stratum() -> None:
    ids = [pa.array(list(names)) for names in ("abc", "xyz", "dce", "fghe")]
    _, groups = _prompts([3, 3, 3, 4], ids)
    assert [len(group) for group in groups] == [8, 3]


@pytest.mark.parametrize(("drawn", "pool"), [(100, 100), (100, 150)])
def test_intervals_of_seeds_on_common_prompts_cover_the_truth(drawn, pool) -> None:
    """The mean over five seeds whose prompts, and so what is hard in them, are the same, or those of a pool."""
    rng, covered = np.random.default_rng(7), []
    for simulation in range(300):
        ease, places = rng.normal(size=pool), [rng.choice(pool, drawn, replace=False) for _ in range(5)]
        strata = [(ease[place] + rng.normal(size=drawn))[None] for place in places]
        ids = [pa.array(place.astype(str)) for place in places]
        found = [estimate(strata, 300, simulation, 0.95, ids=shared)[0] for shared in (ids, None)]
        covered.append([e.low <= 0 <= e.high for e in found])
    together, apart = np.mean(covered, axis=0)
    assert together == pytest.approx(0.95, abs=0.03) and apart < 0.85


def test_p_values() -> None:
    assert two_sided_p(np.full(1999, 0.3)) == pytest.approx(2 / 2000)
    assert two_sided_p(np.zeros(100)) == 1
    assert two_sided_p(np.array([-1.0] * 49 + [1.0] * 950)) == pytest.approx(0.1)
    assert two_sided_p(np.full(9, 0.5), null=0.5) == 1


def test_coverage_is_near_the_nominal_level() -> None:
    rng = np.random.default_rng(5)
    samples = rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.2, 0.5], size=(400, 150))  # win rate 0.6
    covered = [e.low <= 0.6 <= e.high for row in samples for e in estimate([row[None]], 200, int(row.sum()), 0.9)]
    assert 0.85 <= np.mean(covered) <= 0.95
