"""Meta-World for real; runs where it is installed (``make sim-metaworld``)."""

import pytest
import torch

from supple.envs import EnvSettings, make, metaworld

pytestmark = pytest.mark.sim("metaworld")


@pytest.fixture(scope="module")
def reach():
    env = make("metaworld/reach-v3", EnvSettings(num_envs=2), seed=0)
    yield env
    env.close()


def test_all_fifty_tasks_are_listed():
    assert len(metaworld.tasks()) == 50
    assert set(metaworld.TASKS) <= set(metaworld.tasks())


def test_every_step_carries_the_success_flag(reach):
    reach.reset(0)
    step = reach.step(torch.zeros(2, 4))
    assert dict(reach.spec.observation) == {"policy": 39}
    assert step["success"].tolist() == [False, False]


def test_a_time_limit_truncates_with_the_last_observation(reach):
    limit = reach.spec.max_episode_steps
    assert limit == 500
    reach.reset(0)
    for _ in range(limit):
        step = reach.step(torch.full((2, 4), 0.3))
    assert step["truncated"].all()
    assert not step["terminated"].any()
    assert not torch.equal(step["final_observation", "policy"], step["observation", "policy"])


def test_a_picture_is_drawn():
    env = make("metaworld/reach-v3", EnvSettings(num_envs=1), render=True)
    picture = env.render()
    env.close()
    assert picture.ndim == 3
    assert picture.std() > 1
