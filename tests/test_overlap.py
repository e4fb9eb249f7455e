"""Learning while the simulator steps; that it resumes bit for bit is in ``test_resume.py``."""

import threading
import time

import pytest

from supple import launch
from supple.beside import Beside
from supple.errors import InputError
from supple.train import train
from tests.small_runs import finish, small_settings


def overlapping(folder, *, env_steps):
    settings = small_settings("toy/lqr", folder, env_steps=env_steps)
    settings.overlap = True
    return settings


def test_updates_learn_from_the_rows_before_the_step_they_overlap(tmp_path):
    seen = {}
    for overlap in (False, True):
        settings = small_settings("toy/lqr", tmp_path / str(overlap), env_steps=100)
        settings.overlap = overlap
        run = launch.new_run(settings)
        sizes: list[int] = []
        update = run.agent.update

        def noting(replay, sizes=sizes, update=update):
            sizes.append(replay.vector_steps)
            return update(replay)

        run.agent.update = noting  # type: ignore[method-assign]
        finish(run)
        seen[overlap] = sizes
    assert seen == {False: list(range(1, 51)), True: list(range(50))}


def test_the_simulator_steps_while_the_agent_learns(tmp_path):
    """Each waits for the other to have begun: one after the other they would wait for ever."""
    run = launch.new_run(overlapping(tmp_path / "run", env_steps=42))
    both = threading.Barrier(2, timeout=30)
    step, update = run.env.step, run.agent.update

    def stepping(action):
        both.wait()
        return step(action)

    def learning(replay):
        both.wait()
        return update(replay)

    run.env.step, run.agent.update = stepping, learning  # type: ignore[method-assign]
    finish(run)
    assert run.env_steps == 42


def test_what_the_simulator_raises_ends_the_run(tmp_path):
    run = launch.new_run(overlapping(tmp_path / "run", env_steps=100))

    def broken(action):
        raise ValueError("the arm fell off")

    run.env.step = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the arm fell off"), run:
        train(run)


def test_stopping_at_once_does_not_wait_for_a_simulator_that_hangs(tmp_path, monkeypatch):
    left: list[bool] = []
    monkeypatch.setattr("supple.beside.leave_abruptly", lambda: left.append(True))
    run = launch.new_run(overlapping(tmp_path / "run", env_steps=100))
    hangs, reached = threading.Event(), threading.Event()

    def hanging(action):
        reached.set()
        hangs.wait(60)

    def interrupted(replay):
        assert reached.wait(30)
        raise KeyboardInterrupt  # the second Ctrl-C

    run.env.step, run.agent.update = hanging, interrupted  # type: ignore
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), run:
        train(run)
    assert time.monotonic() - began < 30
    (thread,) = (each for each in threading.enumerate() if each.name == "simulator")
    assert thread.daemon  # Python does not wait for it, either
    assert left == [True]  # nor is it taken down around it
    hangs.set()
    thread.join(30)


def test_what_fails_at_the_threads_begin_is_raised_by_what_is_submitted():
    def broken():
        raise ValueError("no such device")

    beside = Beside("thread", broken)
    with pytest.raises(ValueError, match="no such device"):
        beside.submit(print).result(timeout=30)
    beside.shutdown(wait=True)


def test_an_agent_that_learns_once_per_horizon_is_refused(tmp_path):
    settings = overlapping(tmp_path / "run", env_steps=100)
    settings.agent.update_every = 8
    with pytest.raises(
        InputError, match="--overlap learns at every step, flashsac here every 8: drop"
    ):
        launch.new_run(settings)
    assert not (tmp_path / "run").exists()
