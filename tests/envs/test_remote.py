import os
import pickle
import signal

import numpy as np
import pytest
import torch

from supple.envs import EnvSettings, make
from supple.envs import remote as remote_module
from supple.envs.remote import RemoteEnv
from supple.envs.toy import Lqr
from supple.errors import InputError, SimulatorError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def remote():
    env = RemoteEnv("toy/asymmetric", EnvSettings(num_envs=3), device=CPU, render=False)
    yield env
    env.close()


def test_another_process_returns_the_same_numbers(remote):
    here = make("toy/asymmetric", EnvSettings(num_envs=3))
    assert remote.spec == here.spec
    action = torch.full((3, here.spec.action.size), 0.5)
    pairs = [(here.reset(4), remote.reset(4))]
    pairs += [(here.step(action), remote.step(action)) for _ in range(3)]
    for ours, theirs in pairs:
        for key in ours.keys(include_nested=True, leaves_only=True):
            assert torch.equal(ours[key], theirs[key])


def test_final_observations_cross_the_pipe_only_where_an_episode_ended():
    env = make("toy/asymmetric", EnvSettings(num_envs=3))
    limit = env.spec.max_episode_steps
    assert limit
    env.reset(0)
    action = np.zeros((3, env.spec.action.size), dtype=np.float32)
    steps = [remote_module._do(env, "step", action)[1] for _ in range(limit)]
    sizes = [len(pickle.dumps(step)) for step in steps]
    assert sizes[0] < sizes[-1]
    assert (steps[-1]["final_observation"]["policy"] != steps[-1]["observation"]["policy"]).any()


def test_the_other_process_survives_what_asks_the_whole_group_to_stop(remote):
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(remote._process.pid, request)
    assert remote.reset(0)["observation"].batch_size == remote.reset(0).batch_size


def test_errors_cross_over_with_their_kind(remote):
    with pytest.raises(InputError, match="action has shape"):
        remote.step(torch.zeros(2, 1))
    with pytest.raises(NotImplementedError, match="no picture to draw"):
        remote.render()


def test_a_task_that_does_not_exist_is_refused_before_a_process_is_started():
    with pytest.raises(InputError, match="unknown task toy/nothing"):
        RemoteEnv("toy/nothing", EnvSettings(), device=CPU, render=False)


class Curriculum(Lqr):
    """Its actions reach as far as its progress says."""

    reach = 0.0

    def load_progress(self, progress):
        self.reach = progress["reach"]

    def _advance(self, state, action):
        return super()._advance(state, self.reach * action)


def curriculum(num_envs, device):
    return Curriculum(num_envs, device)


def test_progress_reaches_the_other_process():
    env = RemoteEnv(f"{__name__}:curriculum", EnvSettings(num_envs=2), device=CPU, render=False)
    try:
        rewards = []
        for reach in (0.0, 1.0):
            env.load_progress({"reach": reach})
            env.reset(1)
            rewards.append(env.step(torch.ones(2, env.spec.action.size))["reward"])
        assert (rewards[0] != rewards[1]).all()
    finally:
        env.close()


def test_a_process_that_ended_is_named(remote):  # the last: nothing answers any more
    remote._process.kill()
    remote._process.join()
    with pytest.raises(SimulatorError, match="toy/asymmetric: its process ended"):
        remote.reset(0)
    remote.close()
    remote.close()
