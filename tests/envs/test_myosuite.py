"""MyoSuite for real; runs where it is installed (``make sim-myosuite``)."""

from typing import Any

import numpy as np
import pytest
import torch

from supple.envs import EnvSettings, make, myosuite

pytestmark = pytest.mark.sim("myosuite")
ELBOW = "myosuite/myoElbowPose1D6MRandom-v0"


@pytest.fixture(scope="module")
def elbow():
    env: Any = make(ELBOW, EnvSettings(num_envs=2), seed=0)
    yield env
    env.close()


def single(env, index=0):
    """One of its environments, MyoSuite's own."""
    return env._env.envs[index].unwrapped


def test_the_published_tasks_are_registered():
    assert set(myosuite.TASKS) <= set(myosuite.tasks())


def test_the_policys_bounds_reach_from_no_excitation_to_nearly_full(elbow):
    spec = elbow.spec
    assert (spec.action.size, spec.max_episode_steps) == (6, 100)
    assert spec.control_dt == pytest.approx(0.02)
    excitations = {}
    for action in (-1.0, 1.0):
        elbow.reset(0)
        elbow.step(torch.full((2, 6), action))
        excitations[action] = single(elbow).data.ctrl.copy()
    # MyoSuite's own map of [-1, 1] to excitations is a sigmoid around 0.5.
    assert excitations[-1.0] == pytest.approx(np.full(6, 0.0), abs=1e-3)
    assert excitations[1.0] == pytest.approx(np.full(6, 0.924), abs=1e-3)


def test_success_is_told_of_the_environment_that_reached_its_pose(elbow):
    elbow.reset(0)
    reached, other = single(elbow), single(elbow, 1)
    reached.data.qpos[:] = reached.target_jnt_value
    other.data.qpos[:] = other.target_jnt_value + (1 if other.target_jnt_value[0] < 1 else -1)
    step = elbow.step(torch.full((2, 6), -1.0))
    assert step["success"].tolist() == [True, False]
    assert not step["terminated"].any()


def test_a_time_limit_truncates_with_the_last_observation(elbow):
    elbow.reset(0)
    for _ in range(elbow.spec.max_episode_steps):
        step = elbow.step(torch.zeros(2, 6))
    assert step["truncated"].all()
    assert not step["terminated"].any()
    assert not torch.equal(step["final_observation", "policy"], step["observation", "policy"])


def test_a_picture_is_drawn():
    env = make(ELBOW, EnvSettings(num_envs=1), render=True)
    picture = env.render()
    env.close()
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 1
