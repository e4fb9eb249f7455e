"""MyoSuite for real; runs where it is installed (``make sim-myosuite``)."""

from typing import Any

import pytest
import torch

from supple.envs import EnvSettings, make, myosuite

pytestmark = pytest.mark.sim("myosuite")
ELBOW = "myosuite/myoElbowPose1D6MRandom-v0"


def test_the_published_tasks_are_registered():
    assert set(myosuite.TASKS) <= set(myosuite.tasks())


def test_muscles_reach_from_none_to_full_and_success_is_reported():
    env: Any = make(ELBOW, EnvSettings(num_envs=2), seed=0)
    assert set(env.spec.action.low) == {0.0}
    assert set(env.spec.action.high) == {1.0}
    step = env.step(torch.zeros(2, env.spec.action.size))
    env.close()
    assert step["success"].shape == (2,)


def test_a_picture_is_drawn():
    env = make(ELBOW, EnvSettings(num_envs=1), render=True)
    picture = env.render()
    env.close()
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 1
