"""Curricula go by the steps since a simulator was built: that count outlives a resume."""

import sys

import pytest
import torch

from supple import launch
from supple.cli import main
from supple.envs.isaaclab import IsaacLab
from supple.envs.mjlab import Mjlab
from supple.envs.rsl_rl import RslRl
from supple.envs.wrappers import Noise
from tests.envs import fake_isaac
from tests.envs.fake_isaaclab import FakeIsaacLab
from tests.envs.fake_mjlab import FakeMjlab
from tests.small_runs import finish, run_until, small_settings


class Counting(fake_isaac.VecEnv):
    """Notes at which count each full reset came: a curriculum would look at it there."""

    def __init__(self, num_envs):
        self.common_step_counter, self.resets = 0, []
        super().__init__(num_envs=num_envs, final=True)

    def reset(self):
        self.resets.append(self.common_step_counter)
        return super().reset()

    def step(self, actions):
        self.common_step_counter += 1
        return super().step(actions)


@pytest.mark.parametrize(
    ("adapter", "simulator"),
    [(IsaacLab, FakeIsaacLab), (Mjlab, FakeMjlab), (RslRl, lambda: Counting(3))],
)
def test_the_count_of_steps_is_read_and_restored_through_wrappers(adapter, simulator):
    def build():
        return Noise(adapter(simulator(), task_id="t"), deviation=0.1, declared=0)

    env, other = build(), build()
    env.reset(0)
    for _ in range(5):
        env.step(torch.zeros(3, 2))
    assert env.progress() == {"common_step_counter": 5}
    other.load_progress(env.progress())
    other.reset(0)
    other.step(torch.zeros(3, 2))
    assert other.progress() == {"common_step_counter": 6}


def test_a_simulator_without_a_count_has_no_progress():
    env = RslRl(fake_isaac.VecEnv(), task_id="t")
    assert env.progress() == {}
    env.load_progress({})
    assert not hasattr(env._env, "common_step_counter")


def test_a_resumed_run_and_its_evaluations_go_on_from_the_count(tmp_path, monkeypatch):
    made = []

    def counting(num_envs):
        made.append(Counting(num_envs))
        return made[-1]

    monkeypatch.setitem(sys.modules, "own_counting", sys.modules[__name__])
    for name in ("counting", "another"):
        monkeypatch.setattr(sys.modules[__name__], name, counting, raising=False)
    settings = small_settings("own_counting:counting", tmp_path / "run", env_steps=80)
    run_until(settings, 30)
    assert made[0].common_step_counter == 15  # two environments
    made.clear()
    finish(launch.resumed_run(tmp_path / "run"))
    training, evaluating = made
    assert training.resets[-1] == 15
    assert training.common_step_counter == 40
    assert {20, 40} <= set(evaluating.resets)  # evaluations at half the run and at its end
    for command in (["eval"], ["diagnose", "--suite", "standard", "--episodes", "2"]):
        made.clear()
        assert main([*command, str(tmp_path / "run"), "--device", "cpu"]) == 0
        assert made
        assert all(env.resets[-1] >= 40 for env in made)
    made.clear()
    other = ["--task", "own_counting:another"]
    assert main(["eval", str(tmp_path / "run"), *other]) == 0
    assert made[0].resets[-1] == 0  # another task's curriculum is its own
