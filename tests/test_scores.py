"""Statistics of few runs, against numbers worked by hand."""

import numpy as np
import pytest

from supple.scores import (
    improvement,
    interquartile_mean,
    interval95,
    mean,
    median,
    profile,
    resampled,
)

ONE = [np.array([1.0, 2.0, 3.0])]
TWO = [np.array([0.0, 1.0]), np.array([2.0, 10.0])]


def test_the_middle_half_is_averaged():
    assert interquartile_mean([np.arange(8.0)]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([np.array([0.0, 1.0, 2.0, 100.0])]) == pytest.approx(1.5)
    assert interquartile_mean(TWO) == pytest.approx(1.5)  # of all four runs, whatever their task


def test_three_runs_are_too_few_to_leave_any_out():
    assert interquartile_mean([np.array([0.0, 0.0, 9.0])]) == pytest.approx(3)


def test_every_task_counts_alike_in_means_whatever_its_runs():
    uneven = [np.array([0.0, 0.0, 0.0, 0.0]), np.array([1.0])]
    assert mean(uneven) == pytest.approx(0.5)
    assert median([*uneven, np.array([5.0])]) == pytest.approx(1)
    assert median([np.array([1.0, 2.0, 9.0])]) == pytest.approx(2)


def test_improvement_counts_pairs_and_halves_ties():
    ours, theirs = [np.array([2.0, 3.0])], [np.array([1.0, 2.0])]
    assert improvement(ours, theirs) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert improvement(theirs, ours) == pytest.approx(1 - 3.5 / 4)
    assert improvement([*ours, np.zeros(1)], [*theirs, np.ones(1)]) == pytest.approx(3.5 / 8)


def test_a_profile_says_how_many_runs_are_above():
    found = profile(TWO, np.array([-1.0, 0.0, 5.0, 10.0]))
    np.testing.assert_allclose(found, [1, 0.75, 0.25, 0])


def test_resamples_of_a_task_are_its_own_runs():
    low, high = resampled(TWO, np.random.default_rng(0))
    assert set(np.unique(low)) == {0, 1}
    assert set(np.unique(high)) == {2, 10}
    assert low.shape[1:] == (2,)


def test_an_interval_holds_the_extremes_of_three_runs_and_repeats_itself():
    low, high = interval95(mean, ONE)
    assert (low, high) == interval95(mean, ONE)
    # 1/27 of the resamples are all ones: more than 2.5 %, so the interval reaches to both ends.
    assert (low, high) == (1, 3)
    assert interval95(mean, [np.array([4.0])]) == (4, 4)


def test_the_bootstrap_covers_a_known_mean():
    """Of 200 draws of 40 normal runs, about 95 % of the intervals hold the true mean."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = interval95(mean, [random.normal(size=40)])
        held += low <= 0 <= high
    assert 178 <= held <= 199


def test_groups_are_resampled_apart():
    low, high = interval95(improvement, [np.array([1.0, 2.0])], [np.array([1.0, 2.0])])
    assert (low, high) == (0, 1)
