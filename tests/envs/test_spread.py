"""Simulators that begin all episodes at once: training lets them end at times of their own."""

import sys

import pytest
import torch

from supple import launch
from supple.envs.check import check_env
from supple.envs.isaac_gym import LeggedGym, VecTask
from supple.envs.isaaclab import IsaacLab
from supple.envs.mjlab import Mjlab
from supple.envs.rsl_rl import RslRl
from supple.envs.wrappers import Wrapper
from tests.envs import fake_isaac
from tests.envs.fake_isaaclab import FakeIsaacLab
from tests.envs.fake_mjlab import FakeMjlab
from tests.small_runs import finish, run_until, small_settings

ADAPTERS = {
    "isaaclab": lambda n: IsaacLab(FakeIsaacLab(num_envs=n), task_id="t"),
    "mjlab": lambda n: Mjlab(FakeMjlab(num_envs=n), task_id="t"),
    "legged_gym": lambda n: LeggedGym(fake_isaac.LeggedGym(num_envs=n), task_id="t"),
    "vec_task_a": lambda n: VecTask(fake_isaac.VecTask("A", num_envs=n), task_id="t"),
    "vec_task_b": lambda n: VecTask(fake_isaac.VecTask("B", num_envs=n), task_id="t"),
    "vec_task_c": lambda n: VecTask(fake_isaac.VecTask("C", num_envs=n), task_id="t"),
    "vec_env": lambda n: RslRl(fake_isaac.VecEnv(num_envs=n, final=True), task_id="t"),
    "silent vec_env": lambda n: RslRl(fake_isaac.VecEnv("never", num_envs=n), task_id="t"),
}


class Spread(Wrapper):
    """As a run trains in it."""

    def reset(self, seed=None):
        first = super().reset(seed)
        self.spread_ends(seed or 0)
        return first


def first_ends(env, seed):
    """The step at which each environment's first episode ends; all but one by a time-out."""
    counts = env.reset(seed)["observation", "policy"][:, 2]  # legged_gym's takes a step
    ends = torch.zeros(env.spec.num_envs, dtype=torch.int64)
    for number in range(1, env.spec.max_episode_steps + 1):
        step = env.step(torch.zeros(env.spec.num_envs, 2))
        first = (step["terminated"] | step["truncated"]) & (ends == 0)
        assert step["valid"][ends == 0].all()
        assert not (first & step["terminated"])[torch.arange(len(first)) != 1].any()
        if env.spec.has_final_obs:
            assert torch.equal(
                step["final_observation", "policy"][first, 2], counts[first] + number
            )
        ends[first] = number
    return ends


@pytest.mark.parametrize("name", ADAPTERS)
def test_first_episodes_end_at_times_of_their_own_by_time_outs(name):
    env = ADAPTERS[name](64)
    spread = Spread(env, env.spec)
    together, apart = first_ends(env, 0), first_ends(spread, 0)
    limit = env.spec.max_episode_steps or 0
    assert len(together.unique()) == 2  # the failing one's, too
    assert apart.unique().tolist() == list(range(1, limit + 1))
    assert torch.equal(first_ends(spread, 0), apart)
    assert not torch.equal(first_ends(spread, 1), apart)
    assert torch.equal(first_ends(env, 0), together)  # a reset begins at nought again


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_contract_is_kept(name):
    def build():
        env = ADAPTERS[name](3)
        return Spread(env, env.spec)

    assert not [finding for finding in check_env(build, steps=60) if not finding.ok]


class Noted(fake_isaac.VecEnv):
    """Keeps the counts with which the first step after each reset begins."""

    def __init__(self, num_envs):
        self.began = []
        super().__init__(num_envs=num_envs, final=True)

    def reset(self):
        self.began.append(None)
        return super().reset()

    def step(self, actions):
        if self.began[-1] is None:
            self.began[-1] = self.episode_length_buf.tolist()
        return super().step(actions)


def test_runs_spread_the_episodes_they_train_in_and_no_others(tmp_path, monkeypatch):
    made = []

    def noted(num_envs):
        made.append(Noted(num_envs))
        return made[-1]

    monkeypatch.setitem(sys.modules, "own_noted", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "noted", noted, raising=False)
    settings = small_settings("own_noted:noted", tmp_path / "run", env_steps=160, num_envs=8)
    run_until(settings, 96)
    finish(launch.resumed_run(tmp_path / "run"))
    training, evaluating, resumed, evaluating_again = made
    for env in (training, resumed):
        assert len(set(env.began[-1])) > 2
    for env in (evaluating, evaluating_again):
        assert not any(sum(began or []) for began in env.began)
