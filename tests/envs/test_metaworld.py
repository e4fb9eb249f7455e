"""Meta-World for real; runs where it is installed (``make sim-metaworld``)."""

import numpy as np
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


def test_the_seed_chooses_the_goals_among_the_tasks_fifty(reach):
    goals = reach.reset(3)["observation", "policy"][:, -3:]
    next_goals = reach.reset()["observation", "policy"][:, -3:]
    assert torch.equal(reach.reset(3)["observation", "policy"][:, -3:], goals)
    assert torch.equal(reach.reset()["observation", "policy"][:, -3:], next_goals)
    assert not torch.equal(goals, next_goals)
    other = make("metaworld/reach-v3", EnvSettings(num_envs=2), seed=9)
    assert torch.equal(other.reset(3)["observation", "policy"][:, -3:], goals)
    other.close()


def test_a_scripted_solution_succeeds_and_ends_nothing(reach):
    from metaworld.policies import SawyerReachV3Policy

    script = SawyerReachV3Policy()
    obs = reach.reset(0)["observation", "policy"]
    for _ in range(100):
        action = np.stack([script.get_action(row.double().numpy()) for row in obs])
        step = reach.step(torch.from_numpy(action).float())
        obs = step["observation", "policy"]
        assert not (step["terminated"] | step["truncated"]).any()
        if step["success"].all():
            break
    assert step["success"].tolist() == [True, True]
    assert step["reward"].min() > 9  # of 10


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
