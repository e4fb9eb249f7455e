"""What simulators log of themselves becomes columns of a run's metrics."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from supple.envs.isaac_gym import LeggedGym, VecTask
from supple.envs.isaaclab import IsaacLab
from supple.envs.mjlab import Mjlab
from supple.envs.rsl_rl import RslRl
from supple.envs.sim_log import SimulatorLog
from supple.envs.wrappers import Delay
from supple.episodes import columns_of
from supple.metrics import read_csv
from tests.envs import fake_isaac
from tests.envs.fake_isaac import FAILS_AT, LIMIT
from tests.envs.fake_isaaclab import FakeIsaacLab
from tests.envs.fake_mjlab import FakeMjlab
from tests.small_runs import run_whole, small_settings

CPU = torch.device("cpu")


def test_tensors_and_numbers_are_averaged_over_what_was_written():
    log = SimulatorLog(CPU)
    log.observe({"log": {"a": torch.tensor(1.0), "n": 2, "count": torch.tensor([4])}})
    log.observe({"log": {"a": torch.tensor(3.0), "n": np.float32(5), "late": torch.tensor(True)}})
    assert log.report() == {"a": 2.0, "n": 3.5, "count": 4.0, "late": 1.0}
    assert log.report() == {}
    log.observe({"episode": {"a": 7.0}})
    assert log.report() == {"a": 7.0}


def test_what_is_left_from_an_earlier_step_counts_once_and_what_is_replaced_counts_again():
    log = SimulatorLog(CPU)
    extras = {"log": {"reward": torch.tensor(1.0), "ended": 0}}
    for _ in range(5):
        log.observe(extras)
    extras["log"] = {"reward": torch.tensor(5.0), "ended": 0}
    log.observe(extras)
    assert log.report() == {"reward": 3.0, "ended": 0.0}
    extras["log"]["reward"] = torch.tensor(9.0)  # a dict that its owner keeps
    log.observe(extras)
    assert log.report() == {"reward": 9.0}


@pytest.mark.parametrize(
    "odd",
    [
        {"log": {"text": "walks", 3: 1.0, "rows": torch.zeros(4), "none": None, "z": 1j}},
        {"log": {"complex": torch.zeros((), dtype=torch.complex64), "empty": torch.zeros(0)}},
        {"log": 3.0},
        {"episode": None},
        [],
        None,
    ],
)
def test_what_is_no_number_is_left_out(odd):
    log = SimulatorLog(CPU)
    log.observe(odd)
    assert log.report() == {}


def test_names_become_columns():
    assert columns_of({"Episode_Reward/track lin,vel": 1.0, "x-1.5": 2.0}) == {
        "env/Episode_Reward/track_lin_vel": 1.0,
        "env/x-1.5": 2.0,
    }


def logging(simulator: Any, key, **options):
    """A stand-in that logs as the real ones do: the mean length of what was just reset."""

    class Logging(simulator):
        def begin_again(self, env_ids):
            if len(env_ids):
                self.extras[key] = {
                    "mean length": self.steps[env_ids].mean(),
                    "reset": len(env_ids),
                }
            super().begin_again(env_ids)

    return Logging(**options)


ADAPTED = {
    "isaaclab": lambda: IsaacLab(logging(FakeIsaacLab, "log"), task_id="t"),
    "mjlab": lambda: Mjlab(logging(FakeMjlab, "log"), task_id="t"),
    "rsl_rl": lambda: RslRl(logging(fake_isaac.VecEnv, "log"), task_id="t"),
    "rsl_rl_episode": lambda: RslRl(logging(fake_isaac.VecEnv, "episode"), task_id="t"),
    "legged_gym": lambda: LeggedGym(logging(fake_isaac.LeggedGym, "episode"), task_id="t"),
    "vec_task": lambda: VecTask(logging(fake_isaac.VecTask, "episode", kind="C"), task_id="t"),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_every_adapter_passes_on_what_its_simulator_logs(name):
    env = ADAPTED[name]()
    env.reset(0)
    env.step(torch.zeros(3, 2))
    assert env.report() == {}  # the reset's own log is of no episode
    for _ in range(FAILS_AT - 1):
        env.step(torch.zeros(3, 2))
    first = env.report()
    assert first == {"mean length": FAILS_AT, "reset": 1}
    env.step(torch.zeros(3, 2))
    assert env.report() == {}


class Mjlabs(FakeMjlab):
    """Every step and every reset begin a log; a reset adds to all commands' metrics."""

    def __init__(self):
        super().__init__()
        self.error = torch.zeros(self.num_envs)
        twist = SimpleNamespace(metrics={"error": self.error}, cfg=None)
        self.command_manager = SimpleNamespace(active_terms=["twist"], get_term=lambda _: twist)

    def step(self, action):
        self.extras["log"] = {}
        found = super().step(action)
        self.extras["log"]["slip"] = self.steps.mean()
        self.error += 1
        return found

    def reset(self, *, seed=None, env_ids=None, options=None):
        rows = slice(None) if env_ids is None else env_ids
        self.extras["log"] = {"error": self.error[rows].mean()}
        self.error[rows] = 0
        found = super().reset(env_ids=env_ids)
        self.error += 1
        return found


def test_mjlabs_log_of_a_step_outlives_a_reset_that_leaves_the_others_metrics_alone():
    env = Mjlab(Mjlabs(), task_id="t")
    env.reset(0)
    for _ in range(FAILS_AT):
        env.step(torch.zeros(3, 2))
    # Environment 1 ended; its reset adds 1, and every step.
    assert env.report() == {"slip": sum(range(1, FAILS_AT + 1)) / FAILS_AT, "error": FAILS_AT + 1}
    for _ in range(LIMIT - FAILS_AT):
        env.step(torch.zeros(3, 2))
    assert env.report()["error"] == pytest.approx((2 * (LIMIT + 1) + FAILS_AT + 1) / 3)


def test_a_wrapped_environment_reports_too():
    env = Delay(ADAPTED["isaaclab"](), 1)
    env.reset(0)
    for _ in range(FAILS_AT):
        env.step(torch.zeros(3, 2))
    assert env.report()["mean length"] == FAILS_AT


def logging_env(num_envs):
    return logging(fake_isaac.VecEnv, "log", num_envs=num_envs, final=True)


def test_a_runs_rows_have_a_column_for_every_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_logging", sys.modules[__name__])
    monkeypatch.setattr(RslRl, "spread_ends", lambda self, seed: None)  # all begin at 0 here
    run_whole(small_settings("own_logging:logging_env", tmp_path / "run", env_steps=48))
    columns = read_csv(tmp_path / "run" / "metrics.csv")
    found = dict(zip(columns["step"], columns["env/mean_length"], strict=True))
    # Two environments, a row per vector step: one fails every fourth step, both have time up at 8.
    ends = {2 * step for step in range(1, 24) if step % FAILS_AT == 0 or step % LIMIT == 0}
    assert {step for step, value in found.items() if value is not None} == {*ends, 48.0}
    assert found[2 * FAILS_AT] == FAILS_AT
    assert found[2 * LIMIT] == (LIMIT + FAILS_AT) / 2
    assert columns["env/reset"][-1] == 2
    assert not any(value is not None and math.isnan(value) for value in found.values())
