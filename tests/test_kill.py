"""A run that is killed again and again ends as if nothing had happened, bit for bit.

A short form by default; ``make kills`` (SUPPLE_KILLS=100) kills a hundred times for each agent.
"""

import contextlib
import os
import random
import signal
import time
import traceback
from functools import partial
from pathlib import Path

import pytest

from supple import checkpoint, launch
from supple.files import claim
from supple.run import RESULT
from tests.small_runs import (
    assert_same,
    deterministic_rows,
    finish,
    newest_state,
    run_whole,
    small_settings,
)

KILLS = int(os.environ.get("SUPPLE_KILLS", "6"))
STEPS = 300
PATIENCE = 60.0
"""A child that lives longer hangs [s]."""


pytestmark = pytest.mark.usefixtures("one_thread")


def settings_of(agent, folder):
    settings = small_settings("toy/lqr", folder, env_steps=STEPS, agent=agent)
    settings.checkpoint.every = 20
    settings.eval.every = 100
    settings.log.every = 20
    settings.threads = 1
    return settings


def train_on(agent, folder):
    """What a person does: start the run, or resume it where one has not ended."""
    if (folder / RESULT).exists():
        return  # killed as it drew the final curve: a resume says that it has trained
    if (folder / "settings.json").exists():
        finish(launch.resumed_run(folder))
    else:
        finish(launch.new_run(settings_of(agent, folder)))


def in_child(action, *, kill_after):
    """Run it in a process of its own and kill that; whether it had come to its end before."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + PATIENCE
    kill_at = time.monotonic() + kill_after
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, -signal.SIGKILL), f"the run failed with status {code}"
            return code == 0
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
            pytest.fail("the run hangs")
        if time.monotonic() > kill_at:
            os.kill(pid, signal.SIGKILL)
            kill_at = float("inf")
        time.sleep(0.002)


@pytest.mark.parametrize("agent", ["flashsac", "ppo"])
def test_a_run_survives_every_kill(agent, tmp_path, keep_row):
    whole = tmp_path / "whole"
    begin = time.monotonic()
    run_whole(settings_of(agent, whole))
    seconds = time.monotonic() - begin

    rng = random.Random(agent)
    kills = runs = 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{runs}"
        runs += 1
        killed_here = 0
        # The first part of a resumed run is its start; kills come at any part of one.
        train = partial(train_on, agent, folder)
        while not in_child(train, kill_after=rng.uniform(0, seconds)):
            killed_here += 1
            for path in checkpoint.list_checkpoints(folder):
                checkpoint.load(path)  # whatever has its name is whole
            assert killed_here < 50, "it makes no headway"
        kills += killed_here
        assert deterministic_rows(folder) == deterministic_rows(whole)
        (_, state), (_, other) = newest_state(whole), newest_state(folder)
        assert_same(state, other)
        assert not list((folder / "checkpoints").glob("*.tmp*")), "something was left behind"
    keep_row("SUPPLE_KILLS", kills, resumed=kills, **{"runs ended with the same bits": runs})


def test_a_killed_runs_folder_is_free_while_its_workers_still_live(tmp_path):
    held = claim(tmp_path)
    lives, living = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(living, b"!")
        time.sleep(PATIENCE)
        os._exit(0)
    try:
        os.read(lives, 1)  # the fork is done: before, the lock is in its hands too
        held.close()  # as a kill does
        claim(tmp_path).close()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        os.close(lives)
        os.close(living)
