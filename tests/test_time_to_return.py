"""Wall-clock to a return: how curves are read, and what a run that fails does to the queue."""

import argparse
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.time_to_return import __main__ as queue
from benchmarks.time_to_return import clock as stopwatch
from benchmarks.time_to_return.clock import Clock
from supple.bench.table import read
from supple.cli import BAD_INPUT, DONE, FAILED
from tests.small_runs import flags

TASK = "Pendulum-v1"


def run(*returns, ended="steps"):
    """An evaluation every ten seconds and hundred steps."""
    rows = [
        {"seconds": 10.0 * at, "env_steps": 100 * at, "return_mean": mean, "return_std": 1.0}
        for at, mean in enumerate(returns, 1)
    ]
    return queue.Run(rows, ended)


def test_the_first_evaluation_at_the_level_counts():
    assert queue.time_to(5.0, run(1.0, 6.0, 4.0, 7.0)) == "20 s, 200 steps"
    assert queue.time_to(9.0, run(1.0, 6.0, 4.0)) == "> 30 s (best 6, ended: steps)"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The queue with learners and limit of a test's own, all on Pendulum."""

    def ask(learners, *, limit="60"):
        monkeypatch.setattr(queue, "LEVELS", {TASK: (-2000.0, -100.0)})
        monkeypatch.setattr(queue, "OURS", learners)
        rows = tmp_path / "rows.csv"
        given = ["--learners", *learners, "--seeds", "0", "--limit", limit, "--out", str(rows)]
        monkeypatch.setattr(sys, "argv", ["x", *given])
        status = queue.main()
        return status, [(row["learner"], row["ended"]) for row in read(rows)]

    return ask


def test_a_run_that_fails_keeps_its_rows_and_holds_nothing_up(asked, monkeypatch, capsys):
    found = {
        "diverged": run(-300.0, ended="failed, exit status 1"),
        "empty": run(ended="limit"),
        "good": run(-300.0, -90.0, ended="reached"),
    }
    monkeypatch.setattr(queue, "ours", lambda options, learner, task, seed: found[learner])
    rows = [("diverged", "failed, exit status 1"), ("good", "reached"), ("good", "reached")]
    assert asked(dict.fromkeys(found, ())) == (FAILED, rows)
    assert capsys.readouterr().out.splitlines() == [
        f"{TASK}, diverged, seed 0: -2000: 10 s, 100 steps;"
        " -100: > 10 s (best -300, ended: failed, exit status 1)",
        f"{TASK}, empty, seed 0: no evaluation within 60 s; ended: limit",
        f"{TASK}, good, seed 0: -2000: 10 s, 100 steps; -100: 20 s, 200 steps",
    ]
    # Given again, only what has no rows is run; another limit is another measurement.
    assert asked(dict.fromkeys(found, ())) == (DONE, rows)
    assert "good" not in capsys.readouterr().out
    assert asked(dict.fromkeys(("good",), ()), limit="30") == (DONE, rows + rows[1:])


def test_what_a_run_of_ours_says_of_a_wrong_flag_is_seen(asked, capfd):
    assert asked({"ours": ("--no-such-flag",)}) == (FAILED, [])
    said = capfd.readouterr()
    assert "--no-such-flag" in said.err
    assert f"failed, exit status {BAD_INPUT}" in said.out


def test_a_run_of_ours_becomes_rows(asked, tmp_path):
    small = (*flags(), "--env-steps", "60", "--compute.compile", "off")
    assert asked({"ours": small}) == (DONE, [("ours", "steps")])
    (row,) = read(tmp_path / "rows.csv")
    assert float(row["env_steps"]) == 60 and float(row["return_mean"]) < 0
    assert row["threads"] == "1"


def test_a_learner_of_others_may_have_no_time_to_be_evaluated():
    options = argparse.Namespace(peers_python=sys.executable, threads=1, limit=0.0)
    found = queue.theirs(options, "CleanRL-style PPO", "HalfCheetah-v5", 0)
    assert found.curve == [] and found.ended == "limit"
    assert "torch" in found.versions and "mujoco" in found.versions


class Time(SimpleNamespace):
    """Seconds that a test sets; judging takes a thousand."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def timed(monkeypatch):
    time = Time()
    monkeypatch.setattr(stopwatch, "time", time)

    def make(returns, *, level=5.0, limit=100.0):
        left = iter(returns)

        def judged(clock, act):
            time.now += 100.0
            return next(left)

        monkeypatch.setattr(Clock, "_episode", judged)
        told = argparse.Namespace(task=TASK, seed=0, level=level, limit=limit)
        return Clock(told, every=10), time

    return make


def said(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def act(obs):
    return np.zeros(1)


def test_the_clock_stands_still_while_it_judges_and_ends_at_the_level(timed, capsys):
    clock, time = timed([1.0] * 10 + [6.0] * 10)
    going = []
    for steps, later in ((0, 0), (5, 6), (10, 1), (20, 1), (25, 9), (40, 1)):
        time.now += later
        going.append(clock.going(steps, act))
    # 20 comes too soon after 10; 25 is the first step after it that may be judged.
    assert going == [True, True, True, True, False, False]
    clock.say()
    first, second, last = said(capsys)
    assert (first["seconds"], first["env_steps"], first["return_mean"]) == (7, 10, 1.0)
    assert (second["seconds"], second["env_steps"], second["return_mean"]) == (17, 25, 6.0)
    assert last["ended"] == "reached"


def test_the_clock_judges_once_more_at_the_limit(timed, capsys):
    clock, time = timed([1.0] * 10)
    time.now += 101
    assert not clock.going(3, act)
    assert not clock.going(3, act)
    clock.say()
    row, last = said(capsys)
    assert row["env_steps"] == 3 and last["ended"] == "limit"


def test_a_learner_that_ends_by_itself_says_so(timed, capsys):
    clock, _ = timed([])
    assert clock.going(0, act)
    clock.say()
    assert said(capsys)[0]["ended"] == "steps"
