"""Proves the interquartile mean by hand, and the bootstrap interval by what is known of it."""

import numpy as np
import pytest

from dqn_jax.runner.statistics import bootstrap_ci95, interquartile_mean


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 4.0], 2.5),
        ([9.0, 0.0, 3.0], 4.0),  # a quarter of three is none
        ([100.0, 1.0, 3.0, -50.0], 2.0),
        ([8.0, 1.0, 1000.0, 3.0, 4.0, -1000.0, 5.0, 6.0], 4.5),  # 3, 4, 5, 6 are left
        ([1.0, 2.0, 3.0, 4.0, 1e9], 3.0),
    ],
)
def test_interquartile_mean_by_hand(values, expected):
    assert interquartile_mean(np.array(values)) == expected
    assert interquartile_mean(np.array(values[::-1])) == expected


def test_interquartile_mean_leaves_its_argument_alone_and_adds_in_double():
    values = np.array([3.0, 1.0, 2.0, 0.0], np.float32)
    interquartile_mean(values)
    assert values.tolist() == [3.0, 1.0, 2.0, 0.0]
    assert interquartile_mean(np.array([0, 2**24, 2**24 + 2, 2**25], np.float32)) == 2**24 + 1


def test_interval_of_equal_values_has_no_width():
    low, high = bootstrap_ci95(np.full((5, 3), 2.5))
    assert low.tolist() == high.tolist() == [2.5] * 3
    # Of one seed nothing is known.
    assert np.isnan(bootstrap_ci95(np.array([4.0]))).all()
    assert np.isnan(bootstrap_ci95(np.ones((1, 3)))).tolist() == [[True] * 3] * 2


def test_coverage_is_near_95_percent_for_few_seeds():
    """Of 300 samples of 8 normal numbers; plain percentiles cover 88%."""
    samples = np.random.default_rng(1).normal(size=(8, 300))
    low, high = bootstrap_ci95(samples)
    assert 0.92 <= np.mean((low <= 0) & (high >= 0)) <= 0.98


def test_interval_of_two_values_is_all_between_them():
    """Of two seeds a quarter of the resamples are twice the one, a quarter twice the other."""
    low, high = bootstrap_ci95(np.array([0.0, 1.0]))
    assert (low, high) == (0.0, 1.0)


def test_interval_is_about_the_mean_and_repeats():
    values = np.random.default_rng(3).gamma(1.0, size=(12, 4))
    low, high = bootstrap_ci95(values)
    assert low.shape == high.shape == (4,)
    assert np.all(low < values.mean(axis=0))
    assert np.all(values.mean(axis=0) < high)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter, nor be touched
    again = bootstrap_ci95(values)
    state = np.random.get_state()[1]  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    np.testing.assert_array_equal(again, (low, high))
    # Each column is resampled over seeds alone.
    np.testing.assert_array_equal(bootstrap_ci95(values[:, 2]), (low[2], high[2]))


def test_interval_moves_and_mirrors_with_the_values():
    values = np.random.default_rng(5).normal(size=9)
    low, high = bootstrap_ci95(values)
    np.testing.assert_allclose(bootstrap_ci95(3 * values + 2), (3 * low + 2, 3 * high + 2))
    np.testing.assert_allclose(bootstrap_ci95(-values), (-high, -low))


def test_interval_of_a_large_normal_sample_is_the_textbook_one():
    values = np.random.default_rng(0).normal(10.0, 3.0, size=400)
    error = values.std() / np.sqrt(len(values))
    low, high = bootstrap_ci95(values, resamples=20_000)
    # The 2.5% quantile of 20000 resamples is known to about 0.02 standard errors.
    np.testing.assert_allclose([low, high], values.mean() + error * np.array([-1.96, 1.96]), atol=0.08 * error)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """95% of many samples; a percentile interval of 20 values is known to fall a little short."""
    samples = np.random.default_rng(1).normal(size=(20, 400))
    low, high = bootstrap_ci95(samples)
    covered = np.mean((low <= 0) & (high >= 0))
    assert 0.89 < covered < 0.97
