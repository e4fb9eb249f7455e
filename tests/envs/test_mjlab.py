"""mjlab for real; runs where it is installed (``make sim-mjlab``)."""

from typing import Any

import pytest
import torch

from supple.envs import EnvSettings, make
from tests.envs.real import rests_within_limits

pytestmark = pytest.mark.sim("mjlab")
CARTPOLE = "mjlab/Mjlab-Cartpole-Balance"
GO1 = "mjlab/Mjlab-Velocity-Flat-Unitree-Go1"


@pytest.fixture(scope="module")
def go1():
    env = make(GO1, EnvSettings(num_envs=4), seed=3)
    yield env
    env.close()


def test_a_robots_deployment_block_is_read_from_its_managers_and_model(go1):
    found = go1.spec.deployment
    assert found.joint_names[:3] == ("FR_hip_joint", "FR_thigh_joint", "FR_calf_joint")
    assert found.control_mode == "position"
    assert len(found.action_scale) == len(found.stiffness) == len(found.default_position) == 12
    assert all(kp > 0 for kp in found.stiffness)
    assert all(kd > 0 for kd in found.damping)
    assert found.action_offset == found.default_position
    assert rests_within_limits(found)
    assert found.sim_dt * found.decimation == pytest.approx(go1.spec.control_dt)


def test_channels_name_every_entry_of_both_groups(go1):
    per_group = {name: 0 for name in go1.spec.observation}
    for channel in go1.spec.channels:
        per_group[channel.group] += 1
    assert per_group == dict(go1.spec.observation) == {"policy": 48, "critic": 72}
    named = {channel.name: channel for channel in go1.spec.channels if channel.group == "policy"}
    assert named["joint_vel[FR_hip_joint]"].unit == "rad/s"
    # Uniform noise between -1.5 and 1.5: 3 / sqrt(12).
    assert named["joint_vel[FR_hip_joint]"].noise == pytest.approx(0.866, abs=1e-3)


def test_the_final_observation_is_the_state_at_the_end_and_not_the_next_start():
    env: Any = make(CARTPOLE, EnvSettings(num_envs=3), seed=0)
    env._env.episode_length_buf[1] = env.spec.max_episode_steps - 1
    step = env.step(torch.full((3, 1), 0.5))
    env.close()
    assert step["truncated"].tolist() == [False, True, False]
    assert not step["terminated"].any()
    # The other two were driven alike from almost the same start; a reset pole stands still.
    final = step["final_observation", "policy"]
    assert final[1].ne(step["observation", "policy"][1]).any()
    assert torch.allclose(final[1], final[0], atol=0.2)
    assert torch.equal(final[0], step["observation", "policy"][0])


def test_two_environments_in_one_process_do_not_share_random_numbers():
    alone = make(CARTPOLE, EnvSettings(num_envs=2), seed=5)
    first = alone.reset(7)["observation", "policy"]
    other = make(CARTPOLE, EnvSettings(num_envs=2), seed=6)
    alone.reset(7)
    other.reset(8)  # would move a shared stream on
    second = alone.reset()["observation", "policy"]
    alone.reset(7)
    expected = alone.reset()["observation", "policy"]
    alone.close()
    other.close()
    assert torch.equal(second, expected)
    assert not torch.equal(first, second)
