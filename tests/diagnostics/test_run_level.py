"""Return series and learning-rate grids worked out by hand."""

import pytest

from supple.diagnostics.run_level import (
    drawdown,
    largest_change,
    noise_floor,
    rate_sensitivity,
    return_readings,
    worst_after_learned,
    worst_case,
)
from supple.errors import InputError

SERIES = [0.0, 5, 3, 9, 2, 8, 10]


def test_the_deepest_fall_and_when_it_was_made_good():
    found = drawdown(SERIES)
    assert (found.depth, found.peak, found.bottom, found.recovered) == (7, 3, 4, 6)
    assert drawdown([0.0, 9, 2]).recovered is None
    falls = [0.0, 9, 8, 2], [0.0, 9, 5, 4, 1], [0.0, 9, 2, 7]
    assert [drawdown(series).low for series in falls] == [1, 2, 0]
    assert drawdown([-10.0, -5, -8, -5.1]).recovered == 3
    assert drawdown([0.0, 9, 9, 9, 2, 9])[1:4] == (3, 4, 5)  # from the end of a plateau


@pytest.mark.parametrize("bonus", [0.0, 900.0, -7000.0])
def test_a_constant_on_top_of_every_return_makes_no_fall_good(bonus):
    lasting, passing = [0.0, 100, 55, 55, 60], [0.0, 100, 55, 55, 98]
    for series, recovered in ((lasting, None), (passing, 4)):
        assert drawdown([bonus + value for value in series]).recovered == recovered


@pytest.mark.parametrize(("window", "fall", "rise"), [(7, 7, 10), (3, 7, 8)])
def test_changes_within_windows(window, fall, rise):
    assert largest_change(SERIES, window) == (fall, rise)


def test_a_rise_from_below_the_running_best_counts():
    fall, rise = largest_change([0.5, 0.1, 0.9], 10)
    assert fall == pytest.approx(0.4)
    assert rise == pytest.approx(0.8)


def test_the_worst_after_learning_starts_where_nine_tenths_were_reached():
    assert worst_after_learned(SERIES, 0.0) == 2
    with pytest.raises(InputError, match="nothing was learned"):
        worst_after_learned([1.0, 2], 5.0)


def test_a_curriculum_counts_what_earlier_tasks_lost():
    first = ([0.0, 10, 4, 8], 0.0, 1)
    second = ([0.0, 0, 5, 5], 0.0, 3)
    assert worst_case([first, second]) == pytest.approx((0.4 + 1) / 2)


@pytest.mark.parametrize(("count", "floor"), [(10, 4.17), (20, 4.78), (50, 5.42), (100, 5.87)])
def test_noise_alone_falls_so_far(count, floor):
    assert noise_floor(count) == floor


def test_the_floor_grows_between_and_beyond_its_table():
    assert 4.17 < noise_floor(14) < 4.78
    assert noise_floor(400) > 5.87
    assert noise_floor(3) == 4.17


def test_readings_of_a_run_hold_the_floor_beside_the_fall():
    steps = [100.0 * k for k in range(7)]
    found = {
        each.metric: each for each in return_readings(SERIES, steps, [0.5] * 7, random_return=0.0)
    }
    assert found["ret_mdd"].value == 7
    assert found["ret_mdd"].reference["noise_floor"] == pytest.approx(4.17 / 2)
    assert found["ret_mdd_share"].value == pytest.approx(0.7)
    assert found["ret_min_after"].value == 2
    assert found["ret_recover"].value == 300
    few = return_readings(SERIES, steps, [0.5] * 7, random_return=0.0, episodes=3)
    assert [each.status for each in few] == ["undefined"]


def test_sensitivity_caps_diverged_runs_at_no_learning():
    rates = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1]
    returns = dict(zip(rates, [10.0, 50, 100, 100, 80, -20, -500], strict=True))
    found = rate_sensitivity(returns, 0.0)
    assert found.sensitivity == pytest.approx(0.5143, abs=5e-5)
    assert found.decades == pytest.approx(0.5229, abs=1e-4)
    one_good = dict(zip(rates[:5], [0.0, 0, 1, 0, 0], strict=True))
    with pytest.raises(InputError, match="5 rates over 2 decades"):
        rate_sensitivity(dict(list(one_good.items())[:4]), 0.0)
    assert rate_sensitivity(one_good, 0.0).sensitivity == pytest.approx(1 - 1 / 5)
