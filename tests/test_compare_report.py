"""What the table and the figure of ``supple compare`` say."""

import csv
import dataclasses

import numpy as np
import pytest

from supple import compare_report
from supple.compare_report import Runs, band, figures, foreign, normalised, report, table
from supple.curves import Curve


def curve(*returns, task="t", variant="a", seconds=None, half_width=None):
    steps = 10.0 * np.arange(1, 1 + len(returns))
    return Curve(
        task=task,
        variant=variant,
        steps=steps,
        returns=np.array(returns, dtype=float),
        seconds=np.array(seconds or [np.nan] * len(returns), dtype=float),
        half_width=half_width,
    )


def runs(*ends, task="t", variant="a", first=0.0, planned=3):
    return Runs(
        task=task,
        variant=variant,
        planned=planned,
        returns=np.array(ends, dtype=float),
        curves=[curve(first, end, task=task, variant=variant) for end in ends],
        env_steps=[100, 90][: len(ends)],
        minutes=[1.0, 2.0][: len(ends)],
    )


def test_a_row_has_seeds_statistics_and_cost():
    found = runs(1, 2)
    found.mflop = 12.34
    (row,) = table([found])
    assert row == {
        "task": "t",
        "variant": "a",
        "seeds": "2 of 3",
        "return IQM": "1.5",
        "95 % interval": "1 to 2",
        "return mean": "1.5",
        "return median": "1.5",
        "P(better than first)": "-",
        "env steps": "90 to 100",
        "minutes (median)": "1.5",
        "MFLOP per update": "12.3",
    }


def test_variants_are_held_against_the_first():
    _, worse, same = table([runs(1, 2), runs(0, 0.5, variant="b"), runs(1, 2, variant="c")])
    assert worse["P(better than first)"].startswith("0.00")
    assert same["P(better than first)"].startswith("0.50")


def test_one_run_is_held_against_several_but_not_against_one():
    _, one = table([runs(1, 2, 3), runs(2.5, variant="b")])
    assert one["P(better than first)"] == "0.67"
    _, alone = table([runs(1), runs(2, variant="b")])
    assert alone["P(better than first)"] == "-"


def test_a_variant_without_a_finished_run_has_an_empty_row():
    first, second = table([runs(planned=2), runs(5, variant="b", planned=1)])
    assert (first["seeds"], first["return IQM"]) == ("0 of 2", "-")
    assert (second["return IQM"], second["95 % interval"]) == ("5", "-")
    assert second["P(better than first)"] == "-"


def test_over_tasks_zero_is_the_worst_beginning_and_one_the_best_end():
    found = [
        runs(10, 20, task="t", first=-5),
        runs(5, 5, task="t", variant="b", first=0),
        runs(1, 1, task="u"),
        runs(3, 5, task="u", variant="b", first=2),
        runs(7, task="t", variant="only here"),
    ]
    scaled = normalised(found)
    assert list(scaled) == ["a", "b"]
    np.testing.assert_allclose(scaled["a"][0], [0.75, 1.25])  # -5 to 15
    np.testing.assert_allclose(scaled["b"][1], [0.75, 1.25])  # 0 to 4
    rows = table(found)
    assert [row["variant"] for row in rows if row["task"] == "all, 0 to 1"] == ["a", "b"]
    assert rows[-1]["return mean"] == f"{(0.5 + 1) / 2:.3f}"


def test_a_task_on_which_nothing_was_learned_scales_no_returns(tmp_path, capsys):
    fell = runs(-524.2, task="fell", first=-6.2)
    found = [runs(3, 5, task="t"), runs(1, 2, task="u"), fell]
    assert list(normalised(found)) == ["a"]
    assert len(normalised(found)["a"]) == 2
    assert normalised([found[0], fell]) == {}
    for first in (-524.2, -np.inf):
        flat = runs(-524.2, task="flat", first=first)
        assert compare_report.flat_tasks([found[0], flat]) == ["flat"]
    report([found[0], fell], tmp_path)
    said = capsys.readouterr().out
    assert 'fell is left out of "all, 0 to 1": no variant ended above where' in said
    assert "all, 0 to 1:" not in said
    assert compare_report.flat_tasks([fell]) == []  # one task is not scaled


def test_small_returns_keep_their_digits():
    small, _ = table([runs(0.01, 0.02, 0.03), runs(0.04, variant="b")])
    assert (small["return IQM"], small["95 % interval"]) == ("0.02", "0.01 to 0.03")
    (large,) = table([runs(12345.678)])
    assert large["return IQM"] == "12345.7"


def test_a_published_mean_is_shown_with_its_interval_and_claims_no_runs():
    published = curve(1, 7.5, variant="paper", half_width=np.array([0.1, 2.0]))
    (found,) = foreign([published], [])
    (row,) = table([found])
    assert (row["seeds"], row["return mean"], row["return IQM"]) == ("-", "7.5 ± 2", "-")
    shown = band(found.curves)
    assert (shown.low[1], shown.high[1]) == (5.5, 9.5)
    timed = curve(1, 7.5, seconds=[60, 120], half_width=np.array([0.1, 2.0]))
    assert band([timed], over_minutes=True).x.tolist() == [1, 2]


def test_foreign_seeds_are_runs_like_ours():
    curves = [curve(1, 2, seconds=[30, 60]), curve(1, 4, seconds=[30, 120])]
    (found,) = foreign(curves, [])
    assert found.returns.tolist() == [2, 4]
    assert found.minutes == [1, 2]


@pytest.mark.parametrize(("end", "step", "returned"), [(25, 20, 2), (90, 30, 9)])
def test_longer_foreign_curves_count_until_the_runs_ended(end, step, returned):
    beside = dataclasses.replace(runs(1, 2), env_steps=[5, end])
    (found,) = foreign([curve(1, 2, 9, variant="paper")], [beside])
    assert (found.returns.tolist(), found.env_steps) == ([returned], [step])
    half = np.array([0.1, 0.2, 0.3])
    (mean,) = foreign([curve(1, 2, 9, variant="paper", half_width=half)], [beside])
    assert table([beside, mean])[1]["return mean"] == f"{returned} ± {half[step // 10 - 1]}"


def test_foreign_curves_that_begin_after_the_runs_ended_say_nothing():
    beside = dataclasses.replace(runs(1, 2), env_steps=[9])
    (found,) = foreign([curve(1, 2, variant="paper")], [beside])
    row = table([beside, found])[1]
    assert (row["seeds"], row["return mean"], row["env steps"]) == ("0 of 1", "-", "-")


def test_curves_are_joined_where_all_have_an_evaluation():
    short, long = curve(1, 2), curve(3, 4, 9)
    shown = band([short, long])
    assert (shown.x.tolist(), shown.middle.tolist()) == ([10, 20], [2, 3])
    assert (shown.low.tolist(), shown.high.tolist()) == ([1, 2], [3, 4])


def test_curves_of_steps_of_their_own_are_joined_on_their_lines():
    """As where each run writes the ends of its own episodes."""
    one = dataclasses.replace(curve(1, 2, 3), steps=np.array([10, 20, 30]))
    other = dataclasses.replace(curve(10, 20, 30), steps=np.array([15, 25, 35]))
    shown = band([one, other])
    assert shown.x.tolist() == [15, 20, 25, 30]
    assert shown.middle.tolist() == [(1.5 + 10) / 2, (2 + 15) / 2, (2.5 + 20) / 2, (3 + 25) / 2]
    apart = dataclasses.replace(other, steps=np.array([40, 50, 60]))
    assert len(band([one, apart]).x) == 0


def test_wall_clock_is_the_mean_of_each_evaluations():
    shown = band(
        [curve(1, 2, seconds=[60, 120]), curve(1, 2, seconds=[120, 240])], over_minutes=True
    )
    assert shown.x.tolist() == [1.5, 3]


def test_only_timed_curves_have_an_axis_of_time():
    found = [runs(1, 2), *foreign([curve(1, 2, variant="b", seconds=[1, 2])], [])]
    shown = figures(found)
    assert list(shown.over_steps["t"]) == ["a", "b"]
    assert list(shown.over_minutes["t"]) == ["b"]
    assert shown.profiles["a"].middle[0] == pytest.approx(0.5)  # 1 is not above 1
    assert shown.means["a"] == (1.5, 1.0, 2.0)


def test_the_report_is_a_table_and_a_picture(tmp_path, capsys):
    report([runs(1, 2), runs(3, task="u")], tmp_path)
    assert [row["task"] for row in csv.DictReader((tmp_path / "compare.csv").open())][:2] == [
        "t",
        "u",
    ]
    assert (tmp_path / "compare.png").stat().st_size > 1000
    assert "return IQM" in capsys.readouterr().out
