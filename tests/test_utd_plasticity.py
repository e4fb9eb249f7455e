"""The experiment on lost plasticity: where rows come from, and what was said before any run."""

import json
import os
import sys

import numpy as np
import pytest

from benchmarks.experiments import utd_plasticity
from supple import compare
from supple.bench.table import read
from supple.cli import RESUMABLE
from supple.configs.base import to_json
from supple.run import RESULT
from tests.small_runs import small_settings


def finished(folder, **versions):
    """What a run of utd_plasticity leaves, as far as its rows' origin goes."""
    folder.mkdir(parents=True)
    settings = small_settings("toy/lqr", folder, env_steps=60)
    settings.threads = 7
    (folder / "settings.json").write_text(json.dumps(to_json(settings)))
    found = dict.fromkeys(("supple", "torch", "processor"), "old") | versions
    (folder / "versions.json").write_text(json.dumps(found))
    (folder / RESULT).write_text('{"return_mean": 1.0, "env_steps": 10, "seconds": 1.0}')
    os.utime(folder / RESULT, (0, 86_400))
    return compare.Job("scalar", 0, folder, (), "toy/lqr")


def test_a_measured_run_is_recorded_with_where_it_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(utd_plasticity, "ROWS", tmp_path / "rows.csv")
    measured = {"utd": 8, "critic": "scalar", "seed": 0, "fit_gap": 0.1}
    monkeypatch.setattr(utd_plasticity, "rows_of", lambda job, utd: [measured])
    job = finished(tmp_path / "run", commit="abc")
    for _ in range(2):
        utd_plasticity.collect({8: [job]})
    (row,) = read(utd_plasticity.ROWS)
    assert row["date"] in ("1970-01-01", "1970-01-02")
    said = {name: row[name] for name in ("threads", "load", "machine", "versions", "commit")}
    assert said == {
        "threads": "7",
        "load": "",
        "machine": "old",
        "versions": "supple old, torch old",
        "commit": "abc",
    }


def test_nothing_is_measured_after_a_stop(tmp_path, monkeypatch):
    def measured(planned):
        raise AssertionError("hours of it")

    monkeypatch.setattr(utd_plasticity, "collect", measured)
    monkeypatch.setattr(compare, "run_queue", lambda jobs, at_once: RESUMABLE)
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path), "--seeds", "0"])
    assert utd_plasticity.main() == RESUMABLE


def gaps(*rows):
    """Rows of one critic: seed, step, fit_gap, whether the whole measurement, first warning."""
    columns = ("seed", "step", "fit_gap", "steps of fitting", "first warning")
    whole = {True: utd_plasticity.WHOLE, False: "100"}
    return [
        {"utd": "8", "critic": "scalar", "network": "critic", "targets": "smooth"}
        | dict.fromkeys(utd_plasticity.CHEAP, "")
        | dict(zip(columns, (str(seed), str(step), str(gap), whole[is_whole], warned), strict=True))
        for seed, step, gap, is_whole, warned in rows
    ]


def plasticity_of(monkeypatch, rows):
    monkeypatch.setattr(utd_plasticity, "read", lambda path: rows)
    (line,), _ = utd_plasticity.summary()
    return line


@pytest.mark.parametrize(
    ("last", "lost"),
    [
        ((0.3, 0.3, 0.3), "yes"),
        ((0.19, 0.19, 0.19), "no"),  # mean
        ((0.0, 0.0, 0.7), "no"),  # its interval begins at 0
    ],
)
def test_plasticity_is_lost_by_what_was_said_before_any_run(last, lost, monkeypatch):
    rows = gaps(*((seed, 5000, gap, True, "") for seed, gap in enumerate(last)))
    line = plasticity_of(monkeypatch, rows)
    assert line["loses plasticity"] == lost
    assert line["fit_gap, last"] == f"{np.mean(last):.2f}"
    assert line["seeds"] == "3"


@pytest.mark.parametrize(
    ("warned", "said"),
    [
        (("1000", "2000", ""), "1500 (2 of 3 seeds), first"),
        (("1000", "4000", ""), "2500 (2 of 3 seeds), not first"),
        (("", "", ""), "none, not first"),
    ],
)
def test_a_warning_is_first_where_most_seeds_had_it_by_the_time(warned, said, monkeypatch):
    over = ((1000, 0.5), (2000, 0.1), (3000, 0.2), (4000, 0.4))  # from 3000 on it stays
    rows = [
        (seed, step, gap, False, first) for seed, first in enumerate(warned) for step, gap in over
    ]
    rows += [(seed, 5000, 0.5, True, first) for seed, first in enumerate(warned)]
    line = plasticity_of(monkeypatch, gaps(*rows))
    assert line["from step"] == "3000"
    assert line["first warning"] == said


def test_a_warning_about_a_critic_that_loses_nothing_is_a_cry_of_wolf(monkeypatch):
    warned = ("1000", "3000", "")
    rows = gaps(*((seed, 5000, 0.0, True, first) for seed, first in enumerate(warned)))
    line = plasticity_of(monkeypatch, rows)
    assert line["from step"] == "-"
    assert line["first warning"] == "2000 (2 of 3 seeds), cried wolf"


def test_cheap_metrics_are_ranked_by_how_they_follow_the_referee(monkeypatch):
    rows = gaps(*((seed, 5000, seed / 10, True, "") for seed in range(4)))
    for row in rows:
        row["srank"], row["w_rms"] = str(-int(row["seed"])), "1"
    monkeypatch.setattr(utd_plasticity, "read", lambda path: rows)
    assert utd_plasticity.summary()[1] == [
        {"online metric": "srank", "rank correlation with fit_gap": "-1.00"}
    ]
