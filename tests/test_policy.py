"""``supple.load``: a trained policy in somebody else's loop."""

import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import torch

import supple
from supple import launch
from supple.envs.base import Discrete
from supple.envs.gym_spaces import ActionMap
from supple.errors import InputError
from supple.trained import load_trained, read_settings
from tests.small_runs import run_until, small_settings


@pytest.fixture(scope="module")
def pendulum(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pendulum"
    run_until(small_settings("gym/Pendulum-v1", folder, env_steps=100, agent=agent), 60)
    return folder


def observations(rows, width=3):
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


def test_actions_are_those_the_simulators_own_step_is_given(pendulum):
    policy, obs = supple.load(str(pendulum)), observations(5)
    own = load_trained(pendulum).greedy()({"policy": torch.from_numpy(obs)})
    with gymnasium.make("Pendulum-v1") as env:
        expected = ActionMap(env.action_space, 5, "gym/Pendulum-v1")(own)
        np.testing.assert_array_equal(policy(obs), expected)
        assert env.action_space.contains(policy(obs[0]))
    assert policy.env_steps == 60 and policy.spec.task_id == "gym/Pendulum-v1"


def test_one_observation_many_groups_and_tensors_are_taken_alike(pendulum):
    policy, obs = supple.load(pendulum), observations(5)
    batch = policy(obs)
    np.testing.assert_allclose(policy(obs[2]), batch[2], atol=1e-6)
    groups = {"critic": observations(5, 9), "policy": obs.astype(np.float64)}
    np.testing.assert_array_equal(policy(groups), batch)
    tensor = policy(torch.from_numpy(obs))
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), batch)


def test_what_the_policy_was_not_trained_on_is_refused(pendulum):
    policy = supple.load(pendulum)
    with pytest.raises(InputError, match=r"has shape \(5, 4\), expected \(3,\) or \(N, 3\)"):
        policy(observations(5, 4))
    with pytest.raises(InputError, match=r"policy has shape \(1, 1, 3\)"):
        policy(np.zeros((1, 1, 3)))
    with pytest.raises(InputError, match=r"group policy, \(N, 3\), got position, goal: lay"):
        policy({"position": np.zeros(2), "goal": np.zeros(1)})
    with pytest.raises(InputError, match="holds no run"):
        supple.load("nowhere")


def test_a_choice_is_a_number_that_gymnasium_takes(tmp_path):
    run_until(small_settings("gym/CartPole-v1", tmp_path, env_steps=40, agent="ppo"), 20)
    policy = supple.load(tmp_path)
    assert gymnasium.spaces.Discrete(2).contains(policy(observations(1, 4)[0]))
    assert policy(observations(3, 4)).shape == (3,)
    assert policy(observations(0, 4)).shape == (0,)
    first = policy(observations(3, 4))
    policy.spec = dataclasses.replace(policy.spec, action=Discrete(n=2, start=-1))
    assert (policy(observations(3, 4)) == first - 1).all()  # as the simulator calls them


def test_a_memory_lasts_until_it_is_reset(tmp_path):
    settings = small_settings("gym/Pendulum-v1", tmp_path, env_steps=40, agent="ppo", memory=4)
    run_until(settings, 20)
    policy, obs = supple.load(tmp_path), observations(1)[0]
    first, second = policy(obs), policy(obs)
    assert first != second
    with pytest.raises(InputError, match=r"remembers 1 environments, got 3: call reset\(\)"):
        policy(observations(3))
    policy.reset()
    assert (policy(obs), policy(obs)) == (first, second)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_gives_the_safe_action_and_leaves_the_memory(value, tmp_path):
    settings = small_settings("gym/Pendulum-v1", tmp_path, env_steps=40, agent="ppo", memory=4)
    run_until(settings, 20)
    policy, other, obs = supple.load(tmp_path), supple.load(tmp_path), observations(2)
    np.testing.assert_array_equal(policy(obs), other(obs))
    bad = obs.copy()
    bad[1, 2] = value
    first, second = policy(bad)
    assert first == other(obs)[0] and second == 0  # between the bounds, -2 and 2
    other.reset()
    # The first has seen it three times by now, the second but twice.
    expected = [other(obs) for _ in range(3)]
    found = policy(obs)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, [expected[2][0], expected[1][1]], atol=1e-6)


def test_a_policy_without_a_memory_gives_the_safe_action_too(pendulum):
    obs = observations(2)
    obs[0, 0] = math.nan
    action = supple.load(pendulum)(obs)
    assert action[0] == 0 and np.isfinite(action).all()
    assert np.isfinite(supple.load(pendulum)(np.full((1, 3), 3e38, np.float32))).all()


def test_the_process_keeps_its_threads(pendulum):
    settings = read_settings(pendulum)
    settings.threads = torch.get_num_threads() + 1
    (pendulum / "settings.json").write_text(launch.as_text(settings))
    supple.load(pendulum)
    assert torch.get_num_threads() == settings.threads - 1
