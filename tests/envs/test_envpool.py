import math

import numpy as np
import pytest
import torch

from supple.envs import EnvSettings, known_tasks, make
from supple.envs.check import check_env
from supple.errors import InputError

pytestmark = pytest.mark.sim("envpool")
GO1 = "MuJoCoPlayground/Go1JoystickFlatTerrain-v1"
G1 = "MuJoCoPlayground/G1JoystickFlatTerrain-v1"


def build(name, num_envs=4, **options):
    return make(f"envpool/{name}", EnvSettings(num_envs=num_envs), **options)


def actions(env, steps):
    random = torch.Generator().manual_seed(0)
    return torch.rand(steps, env.spec.num_envs, env.spec.action.size, generator=random) * 2 - 1


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        (GO1, {"policy": 48, "critic": 123}),
        (G1, {"policy": 103, "critic": 216}),
        ("Hopper-v5", {"policy": 11}),
        ("CheetahRun-v1", {"policy": 17}),
        ("MetaWorld/Reach-v3", {"policy": 39}),
        ("MyoSuite/myoHandReachFixed-v0", {"policy": 115}),
        ("CartPole-v1", {"policy": 4}),
    ],
)
def test_every_family_keeps_the_contract(name, widths):
    env = build(name)
    assert env.spec.observation == widths
    assert env.spec.critic_contains_policy == ("critic" in widths)
    env.close()
    findings = check_env(lambda: build(name, 2), steps=60)
    assert [finding for finding in findings if not finding.ok] == []


def test_only_what_ended_is_reset_and_its_final_observation_is_the_true_one():
    """A pool of its own with the same seeds, on which nobody resets early, tells the truth."""
    import envpool

    from supple.envs.gym import SEED_BITS, GymVector
    from supple.rng import derive_seed

    env = build("Hopper-v5", 3)
    assert isinstance(env, GymVector)
    env.reset(7)
    vector = derive_seed(7, "vector") & SEED_BITS
    seeds = [derive_seed(vector, row) & SEED_BITS for row in range(3)]
    alone = envpool.make_gymnasium("Hopper-v5", num_envs=3, seed=seeds)
    alone.reset()
    running = np.ones(3, dtype=bool)
    for action in actions(env, 60):
        step = env.step(action)
        obs, reward, terminated, _, _ = alone.step(action.numpy().astype(float))
        final = step["final_observation", "policy"].numpy()
        np.testing.assert_array_equal(final[running], obs.astype(np.float32)[running])
        np.testing.assert_array_equal(step["reward"].numpy()[running], reward[running])
        np.testing.assert_array_equal(step["terminated"].numpy()[running], terminated[running])
        ended = step["terminated"].numpy()
        now = step["observation", "policy"].numpy()
        np.testing.assert_array_equal(now[~ended], final[~ended])
        assert (now[ended] != final[ended]).any(1).all()
        assert step["valid"].all()
        running &= ~terminated
    assert not running.any()
    env.close()
    alone.close()


def test_time_limits_truncate():
    env = build("Reacher-v5", 2, seed=0)
    ends = [env.step(action) for action in actions(env, 50)]
    assert ends[-1]["truncated"].all()
    assert not any(step["terminated"].any() for step in ends)
    env.close()


def test_success_flags_come_through():
    env = build("MetaWorld/Reach-v3", 2)
    assert "success" in env.step(torch.zeros(2, 4)).keys()  # noqa: SIM118 - a TensorDict
    env.close()


def test_the_go1_tells_joints_gains_and_channels():
    env = build(GO1, 3, seed=2)
    spec = env.spec
    robot, channels = spec.deployment, spec.channels
    assert robot is not None
    assert channels is not None
    assert robot.joint_names is not None
    assert robot.joint_names[2] == "FR_calf_joint"
    assert robot.stiffness == (35.0,) * 12
    assert robot.decimation == 5
    assert spec.control_dt == pytest.approx(0.02)
    names = [channel.name for channel in channels]
    assert channels[names.index("FL_hip_vel")].noise == pytest.approx(1.5 / math.sqrt(3))
    # What can be seen from outside: gravity, actions, and commands that stay.
    taken = actions(env, 5)
    for action in taken:
        step = env.step(action)
    obs = step["observation", "policy"]
    upwards, first = names.index("gravity_z"), names.index("FR_hip_action_before_last")
    assert (obs[:, upwards].abs() > 0.8).all()
    torch.testing.assert_close(obs[:, first : first + 12], taken[-2])
    assert (obs[:, names.index("command_vx")].abs() <= 1.5).all()
    env.close()


def test_it_draws_nothing_and_says_so():
    env = build("Hopper-v5", 1, render=True)
    with pytest.raises(NotImplementedError, match="no rgb_array render mode"):
        env.render()
    env.close()


def test_ids_are_listed_and_images_refused():
    assert GO1 in known_tasks()["envpool"].tasks
    with pytest.raises(InputError, match=r"did you mean .*envpool/Hopper-v5"):
        build("Hoper-v5")
    with pytest.raises(InputError, match="images"):
        build("Pong-v5")


def test_without_envpool_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in known_tasks()["envpool"].status
    with pytest.raises(InputError, match=r'needs envpool: pip install -e "\.\[envpool\]"'):
        build("Hopper-v5")
