from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from supple.envs import EnvSettings, make
from supple.envs.base import Box, Discrete, EnvSpec
from supple.envs.check import check_env
from supple.envs.gym import START_METHOD, GymVector
from supple.errors import InputError

CPU = torch.device("cpu")
LENGTHS = (3, 4, 6)
MODES = list(AutoresetMode)


class StepCounter(gymnasium.Env):
    """Observes (own number, step in episode, episode); ends after a length of its own.

    Number 0 terminates, 1 is truncated, 2 ends both ways at once. Only an episode's last step is a
    success.
    """

    action_space = spaces.Box(-2.0, 4.0, (1,))
    observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64)

    def __init__(self, number):
        self.number, self.count, self.episode = number, 0, -1
        self.taken = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.episode = 0, self.episode + 1
        return self._observe(), {}

    def step(self, action):
        self.taken = action
        self.count += 1
        end = self.count == LENGTHS[self.number]
        terminated, truncated = end and self.number != 1, end and self.number != 0
        return self._observe(), float(self.count), terminated, truncated, {"success": end}

    def _observe(self):
        return np.array([self.number, self.count, self.episode], dtype=np.float64)


def counters(mode, kind=SyncVectorEnv):
    builders = [lambda number=number: StepCounter(number) for number in range(3)]
    context = {"context": START_METHOD} if kind is AsyncVectorEnv else {}
    vector = kind(builders, autoreset_mode=mode, **context)
    return GymVector(vector, task_id="counters", device=CPU)


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_gives_the_true_final_observation(mode, kind):
    env = counters(mode, kind)
    obs = env.reset(0)["observation", "policy"]
    ends = torch.zeros(3)
    for _ in range(40):
        step = env.step(torch.zeros(3, 1))
        valid = step["valid"]
        done = step["terminated"] | step["truncated"]
        final = step["final_observation", "policy"]
        after = step["observation", "policy"]
        # A valid step counts one further; its final observation is the true one.
        assert torch.equal(final[valid, 1], obs[valid, 1] + 1)
        assert torch.equal(final[valid, 2], obs[valid, 2])
        assert torch.equal(step["reward"][valid], final[valid, 1])
        lengths = torch.tensor(LENGTHS)
        assert torch.equal(done & valid, valid & (final[:, 1] == lengths))
        assert torch.equal(step["terminated"], done & torch.tensor([True, False, True]))
        assert torch.equal(step["truncated"], done & torch.tensor([False, True, True]))
        assert torch.equal(step["success"] & valid, done)
        # A bridge row is nothing but the reset.
        assert not step["reward"][~valid].any()
        assert not done[~valid].any()
        assert not after[~valid, 1].any()
        if mode is not AutoresetMode.NEXT_STEP:
            assert valid.all()
            assert not after[done, 1].any()
        ends += done
        obs = after
    expected = [40 // (n + (mode is AutoresetMode.NEXT_STEP)) for n in LENGTHS]
    assert ends.tolist() == expected
    env.close()
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_returned_tensors_are_never_overwritten(mode):
    env = counters(mode)
    env.reset(0)
    kept = [env.step(torch.zeros(3, 1)) for _ in range(2)]
    copies = [step.clone() for step in kept]
    for _ in range(8):
        env.step(torch.zeros(3, 1))
    for step, copy in zip(kept, copies, strict=True):
        for key in copy.keys(include_nested=True, leaves_only=True):
            assert torch.equal(step[key], copy[key]), key


def test_actions_are_mapped_to_physical_bounds_and_clipped():
    env = counters(AutoresetMode.SAME_STEP)
    assert env.spec.action == Box(low=(-2.0,), high=(4.0,))
    env.reset(0)
    for policy, physical in ((-1, -2), (0, 1), (1, 4), (0.5, 2.5), (7, 4), (-7, -2)):
        env.step(torch.full((3, 1), float(policy)))
        assert env._env.envs[0].taken == pytest.approx(physical)


@pytest.mark.parametrize(("task", "bound"), [("gym/Humanoid-v5", 0.4), ("gym/Pendulum-v1", 2.0)])
def test_bounds_of_known_tasks(task, bound):
    env = make(task, EnvSettings(num_envs=1))
    assert isinstance(env.spec.action, Box)
    assert env.spec.action.high == pytest.approx((bound,) * env.spec.action.size)
    assert env.spec.action.low == pytest.approx((-bound,) * env.spec.action.size)
    env.close()


class Shaped(gymnasium.Env):
    """Whatever spaces are asked for; observations are samples."""

    def __init__(self, observation_space, action_space=None):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.last = self.observation_space.sample()
        return self.last, {}

    def step(self, action):
        self.last = self.observation_space.sample()
        return self.last, 0.0, False, False, {}


def shaped(observation_space, action_space=None, num_envs=2, **options):
    builders = [lambda: Shaped(observation_space, action_space)] * num_envs
    vector = SyncVectorEnv(builders, autoreset_mode=AutoresetMode.SAME_STEP)
    return GymVector(vector, task_id="shaped", device=CPU, **options)


def test_dict_observations_are_flattened_into_policy_in_the_spaces_order():
    env = shaped(
        spaces.Dict(
            a=spaces.Box(-1, 1, (2, 2)),
            b=spaces.Discrete(3),
            c=spaces.Dict(d=spaces.MultiBinary(2)),
        )
    )
    assert env.spec.observation == {"policy": 4 + 3 + 2}
    obs = env.reset(0)["observation", "policy"]
    for row, single in zip(obs, env._env.envs, strict=True):
        expected = spaces.flatten(single.observation_space, single.last)
        assert torch.equal(row, torch.from_numpy(expected).float())


def test_policy_and_critic_keys_become_groups():
    env = shaped(spaces.Dict(critic=spaces.Box(-1, 1, (5,)), policy=spaces.Box(-1, 1, (2,))))
    assert env.spec.observation == {"policy": 2, "critic": 5}
    step = (env.reset(0), env.step(torch.zeros(2, 2)))[1]
    assert step["observation", "critic"].shape == (2, 5)
    assert step["final_observation", "policy"].dtype == torch.float32


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 255, (8, 8), dtype=np.uint8), spaces.Box(0, 1, (3, 8, 8))]
)
def test_images_are_refused_in_one_line(space):
    with pytest.raises(InputError, match=r"observes images .*state-based") as error:
        shaped(space)
    assert "\n" not in str(error.value)


def test_unbounded_actions_pass_unscaled_and_unclipped():
    env = shaped(spaces.Box(-1, 1, (2,)), spaces.Box(-np.inf, np.inf, (2,)))
    assert env.spec.action == Box(low=(-1.0, -1.0), high=(1.0, 1.0), clip=False)
    assert env._physical(torch.full((2, 2), 3.0)) == pytest.approx(3.0)
    wider = shaped(spaces.Box(-1, 1, (2,)), spaces.Box(-np.inf, np.inf, (2,)), action_bound=2.5)
    assert wider.spec.action == Box(low=(-2.5, -2.5), high=(2.5, 2.5), clip=False)
    assert wider._physical(torch.full((2, 2), 3.0)) == pytest.approx(7.5)


def test_half_bounded_and_composite_actions_are_refused():
    with pytest.raises(InputError, match="expected a flat Box of floats"):
        shaped(spaces.Box(-1, 1, (2,)), spaces.Box(0, 2, (1,), dtype=np.int64))
    with pytest.raises(InputError, match="bounds only some"):
        shaped(spaces.Box(-1, 1, (2,)), spaces.Box(0, np.inf, (2,)))
    with pytest.raises(InputError, match="expected a flat Box of floats or Discrete"):
        shaped(spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 2]))


def test_discrete_actions_are_stepped_by_index():
    env = make("gym/CartPole-v1", EnvSettings(num_envs=2))
    assert env.spec.action == Discrete(n=2)
    env.reset(0)
    step = env.step(torch.tensor([0, 1]))
    left, right = step["observation", "policy"][:, 1].tolist()
    assert left < 0 < right


@pytest.mark.parametrize(
    "task",
    [
        "CartPole-v1",
        "Acrobot-v1",
        pytest.param("LunarLander-v3", marks=pytest.mark.sim("Box2D")),
    ],
)
def test_discrete_tasks_keep_the_contract(task):
    checked = check_env(lambda: make(f"gym/{task}", EnvSettings(num_envs=2)), steps=120)
    assert [each for each in checked if not each.ok] == []


def test_environments_get_seeds_of_their_own_and_repeat_with_the_same():
    env = make("gym/Pendulum-v1", EnvSettings(num_envs=3))
    first = env.reset(5)["observation", "policy"]
    assert len(set(first[:, 0].tolist())) == 3
    assert torch.equal(env.reset(5)["observation", "policy"], first)
    assert not torch.equal(env.reset(6)["observation", "policy"], first)


def trajectory(env, actions):
    rows = []
    for action in actions:
        step = env.step(action)
        flags = torch.stack((step["reward"], step["terminated"].float(), step["truncated"].float()))
        rows.append(torch.cat((step["observation", "policy"], flags.T), dim=-1))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("task", "vectorization"),
    [
        ("gym/Pendulum-v1", "sync"),
        ("gym/HalfCheetah-v5", "sync"),
        ("gym/Ant-v5", "sync"),
        ("gym/Humanoid-v5", "sync"),
        ("gym/Ant-v5", "async"),
    ],
)
def test_a_fresh_environment_continues_bit_for_bit(task, vectorization):
    settings = EnvSettings(num_envs=2, vectorization=vectorization)
    env, other = make(task, settings), make(task, settings, seed=9)
    size = env.spec.action.size
    random = torch.Generator().manual_seed(0)
    actions = torch.rand(260, 2, size, generator=random) * 2 - 1
    env.reset(3)
    before = 150 if task == "gym/Pendulum-v1" else 60
    trajectory(env, actions[:before])
    other.load_state_dict(env.state_dict())
    expected = trajectory(env, actions[before:])
    assert torch.equal(trajectory(other, actions[before:]), expected)
    if task != "gym/HalfCheetah-v5":
        assert expected[..., -2:].any(), "no episode ended: the test saw no auto-reset"
    env.close()
    other.close()


def test_families_without_proof_do_not_claim_exact_resume():
    env = shaped(spaces.Box(-1, 1, (2,)))
    assert not env.spec.exact_resume
    with pytest.raises(NotImplementedError, match="cannot save"):
        env.state_dict()


def test_the_checker_passes_pendulum_through_a_whole_episode():
    findings = check_env(lambda: make("gym/Pendulum-v1", EnvSettings(num_envs=2)), steps=210)
    assert all(finding.ok for finding in findings), findings


def test_facts_of_a_mujoco_robot():
    env = make("gym/HalfCheetah-v5", EnvSettings())
    spec = env.spec
    joints = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
    assert spec.control_dt == pytest.approx(0.05)
    assert spec.max_episode_steps == 1000
    assert spec.deployment is not None
    assert spec.channels is not None
    assert spec.deployment.joint_names == joints
    assert spec.deployment.decimation == 5
    assert spec.deployment.control_mode == "torque"
    assert spec.deployment.action_scale == pytest.approx((120, 90, 60, 120, 60, 30))
    names = [channel.name for channel in spec.channels]
    assert len(names) == spec.observation["policy"] == 17
    assert names[2:4] == ["bthigh_pos", "bshin_pos"]
    assert names[-1] == "ffoot_vel"
    assert EnvSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("task", ["Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer", "Reacher"])
def test_channels_are_complete_or_absent(task):
    env = make(f"gym/{task}-v5", EnvSettings())
    channels = env.spec.channels
    assert (channels is None) == (task == "Reacher")
    if channels is not None:
        assert len(channels) == env.spec.observation["policy"]


def test_a_picture_of_the_first_environment():
    env = make("gym/InvertedPendulum-v5", EnvSettings(), render=True)
    env.reset(0)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert picture.std() > 0
    env.close()


def test_a_robot_that_ran_far_is_drawn_on_its_floor():
    env: Any = make("gym/HalfCheetah-v5", EnvSettings(), render=True)
    env.reset(0)
    alone = env._env.envs[0]
    robot = alone.unwrapped
    qpos, qvel = robot.data.qpos.copy(), robot.data.qvel.copy()
    near = env.render().astype(int)
    qpos[0] += 100  # 75 periods of its pattern, beyond the 40 m that are drawn
    robot.set_state(qpos, qvel)
    where = robot.data.geom_xpos.copy()
    far = env.render().astype(int)
    assert np.array_equal(robot.data.geom_xpos, where)  # in the picture only
    assert abs(far - near).mean() < 2 < abs(alone.render().astype(int) - near).mean()
    env.close()


def test_an_environment_made_without_rendering_says_so():
    env = make("gym/Pendulum-v1", EnvSettings())
    env.reset(0)
    with pytest.raises(NotImplementedError, match="no rgb_array"):
        env.render()
