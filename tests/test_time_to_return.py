"""Wall-clock to a return: how curves are read, and what a run that fails does to the queue."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.time_to_return import __main__ as queue
from benchmarks.time_to_return.clock import Clock
from supple.bench.table import read
from supple.cli import BAD_INPUT, DONE, FAILED
from tests.small_runs import flags

TASK = "Pendulum-v1"


def curve(*returns):
    """An evaluation every ten seconds and hundred steps."""
    return [
        {"seconds": 10.0 * at, "env_steps": 100 * at, "return_mean": mean, "return_std": 1.0}
        for at, mean in enumerate(returns, 1)
    ]


def test_the_first_evaluation_at_the_level_counts():
    assert queue.time_to(5.0, curve(1.0, 6.0, 4.0, 7.0)) == "20 s, 200 steps"
    assert queue.time_to(9.0, curve(1.0, 6.0, 4.0)) == "> 30 s (best 6)"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The queue with learners and limit of a test's own, all on Pendulum."""

    def run(learners, *, limit="60"):
        monkeypatch.setattr(queue, "RESULTS", tmp_path / "rows.csv")
        monkeypatch.setattr(queue, "LEVELS", {TASK: (-2000.0, -100.0)})
        monkeypatch.setattr(queue, "OURS", learners)
        given = ["--learners", *learners, "--seeds", "0", "--limit", limit]
        monkeypatch.setattr(sys, "argv", ["x", *given])
        status = queue.main()
        return status, [row["learner"] for row in read(queue.RESULTS)]

    return run


def test_a_run_that_fails_or_is_never_evaluated_holds_nothing_up(asked, monkeypatch, capsys):
    found = {"empty": [], "good": curve(-300.0, -90.0)}

    def ours(options, learner, task, seed):
        if learner == "diverged":
            raise subprocess.CalledProcessError(1, "supple")
        return found[learner], ""

    monkeypatch.setattr(queue, "ours", ours)
    learners = dict.fromkeys(("diverged", "empty", "good"), ())
    assert asked(learners) == (FAILED, ["good", "good"])
    assert capsys.readouterr().out.splitlines() == [
        f"{TASK}, diverged, seed 0: failed with exit status 1",
        f"{TASK}, empty, seed 0: no evaluation within 60 s",
        f"{TASK}, good, seed 0: -2000: 10 s, 100 steps; -100: 20 s, 200 steps",
    ]
    del learners["diverged"]
    assert asked(learners) == (DONE, ["good", "good"])


def test_what_a_run_of_ours_says_of_a_wrong_flag_is_seen(asked, capfd):
    assert asked({"ours": ("--no-such-flag",)}) == (FAILED, [])
    said = capfd.readouterr()
    assert "--no-such-flag" in said.err
    assert f"failed with exit status {BAD_INPUT}" in said.out


def test_a_run_of_ours_becomes_rows(asked):
    small = (*flags(), "--env-steps", "60", "--compute.compile", "off")
    assert asked({"ours": small}) == (DONE, ["ours"])
    (row,) = read(queue.RESULTS)
    assert float(row["env_steps"]) == 60 and float(row["return_mean"]) < 0


def test_a_learner_of_others_may_have_no_time_to_be_evaluated():
    options = argparse.Namespace(peers_python=sys.executable, threads=1, limit=0.0)
    found, versions = queue.theirs(options, "CleanRL-style PPO", "HalfCheetah-v5", 0)
    assert found == []
    assert "torch" in versions


def test_the_clock_ends_a_run_after_three_evaluations_at_the_level(capsys):
    told = argparse.Namespace(task=TASK, seed=0, level=-1e9, limit=1e9)
    clock = Clock(told, every=10)
    going = [clock.going(steps, lambda obs: np.zeros(1)) for steps in (5, 10, 15, 20, 30)]
    assert going == [True, True, True, True, False]
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["env_steps"] for row in rows] == [10, 20, 30]
