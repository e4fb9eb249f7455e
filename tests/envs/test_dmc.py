"""dm_env's contract on a stand-in; the suite itself where it is installed (``make sim-dmc``)."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from supple.envs import EnvSettings, dmc, make
from supple.envs.check import check_env
from supple.envs.gym import wrap_factory

LIMIT = 6


class FakeSuite:
    """dm_env's habits: a step after the last one resets silently and has no reward."""

    _step_limit = LIMIT
    _n_sub_steps = 2

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.task = SimpleNamespace(_random=np.random.RandomState(0))
        self.physics = SimpleNamespace(model=object(), data=object())
        self.ended = True

    def observation_spec(self):
        return {"height": SimpleNamespace(shape=()), "joints": SimpleNamespace(shape=(2,))}

    def action_spec(self):
        return SimpleNamespace(shape=(2,), minimum=-1.0, maximum=np.array([1.0, 3.0]))

    def control_timestep(self):
        return 0.02

    def reset(self):
        self.start, self.steps, self.ended = self.task._random.rand(), 0, False
        return self._step(np.zeros(2), None, None)

    def step(self, action):
        if self.ended:
            return self.reset()
        self.steps += 1
        failed = self.steps == self.fails_at
        self.ended = failed or self.steps == LIMIT
        return self._step(action, 1.0, 0.0 if failed else 1.0)

    def _step(self, action, reward, discount):
        observation = {"height": np.float64(self.start), "joints": self.steps + action}
        return SimpleNamespace(
            observation=observation, reward=reward, discount=discount, last=lambda: self.ended
        )

    def close(self):
        pass


def wrapped(fails_at=None, num_envs=2):
    return wrap_factory(
        lambda render_mode=None: dmc.DmEnv(lambda: FakeSuite(fails_at), "fake", render_mode),
        EnvSettings(num_envs=num_envs, patience=0),
        task_id="dmc/fake",
        device=torch.device("cpu"),
        render=False,
    )


@pytest.mark.parametrize("fails_at", [None, 4])
def test_the_control_suites_contract_is_kept(fails_at):
    found = check_env(lambda: wrapped(fails_at), steps=40)
    assert not [finding for finding in found if not finding.ok]


@pytest.mark.parametrize(
    ("fails_at", "kind", "length"), [(None, "truncated", 6), (4, "terminated", 4)]
)
def test_the_last_discount_tells_a_time_limit_from_a_failure(fails_at, kind, length):
    env = wrapped(fails_at)
    env.reset(0)
    steps = [env.step(torch.zeros(2, 2)) for _ in range(length)]
    ends = {
        name: [bool(step[name].any()) for step in steps] for name in ("terminated", "truncated")
    }
    assert ends.pop(kind) == [False] * (length - 1) + [True]
    assert not any(*ends.values())
    # The action's second bound is 3: 0 is in its middle, 1.
    assert steps[-1]["final_observation", "policy"][0, 1:].tolist() == [length, length + 1]


def test_channels_are_called_after_their_part_of_the_observation():
    names = [c.name for c in dmc.named_channels(dmc.DmEnv(FakeSuite, "fake").observation_space)]
    assert names == ["height", "joints[0]", "joints[1]"]


@pytest.mark.sim("dm_control")
def test_the_published_tasks_exist_and_are_bounded_by_the_suites_limit():
    assert set(dmc.TASKS) <= set(dmc.tasks())
    env = make("dmc/cartpole-balance", EnvSettings(num_envs=1))
    assert env.spec.max_episode_steps == 1000
    assert env.spec.control_dt == pytest.approx(0.01)
    env.close()


@pytest.mark.sim("dm_control")
def test_a_robots_motors_are_found_as_in_gymnasiums():
    env: Any = make("dmc/walker-walk", EnvSettings(num_envs=1))
    found = env.spec.deployment
    env.close()
    assert found.joint_names[0] == "right_hip"
    assert found.sim_dt * found.decimation == pytest.approx(env.spec.control_dt)


@pytest.mark.sim("dm_control")
def test_a_picture_is_drawn():
    env = make("dmc/cartpole-balance", EnvSettings(num_envs=1), render=True)
    picture = env.render()
    env.close()
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 1
