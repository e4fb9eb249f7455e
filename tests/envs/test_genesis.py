"""The Genesis tasks on a stand-in; Genesis itself where it is installed (``make sim-genesis``)."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from supple.envs import EnvSettings, genesis, make
from supple.envs.check import check_env
from supple.envs.genesis import Genesis
from supple.envs.genesis_go2 import STANCE, Go2WalkEasy
from supple.envs.genesis_go2_walk import NOISE, Go2Walk
from supple.envs.genesis_panda import HOME, STRIDE, PandaGrasp
from supple.envs.genesis_task import from_euler, heading, inverse, rotated
from supple.errors import InputError
from tests.envs.fake_genesis import made
from tests.envs.real import rests_within_limits

ALL = torch.ones(3, dtype=torch.bool)


def started(kind):
    torch.manual_seed(0)
    task: Any = made(kind)
    task.begin(ALL)
    return task


@pytest.mark.parametrize("name", genesis.TASKS)
def test_every_task_keeps_the_whole_contract(monkeypatch, name):
    kind = genesis.TASKS[name]
    monkeypatch.setattr(kind, "limit", 25)
    found = check_env(lambda: Genesis(made(kind), task_id=name), steps=60)
    assert not [finding for finding in found if not finding.ok]


@pytest.mark.parametrize("name", genesis.TASKS)
def test_every_observation_entry_has_its_channel(name):
    spec: Any = Genesis(made(genesis.TASKS[name]), task_id=name).spec
    per_group = dict.fromkeys(spec.observation, 0)
    for channel in spec.channels or ():
        per_group[channel.group] += 1
    expected = {"go2-walk": {"policy": 45, "critic": 60}, "panda-grasp": {"policy": 14}}
    assert per_group == spec.observation == expected.get(name, {"policy": 45})
    assert spec.max_episode_steps * spec.control_dt == (3 if name == "panda-grasp" else 20)


def test_a_time_out_is_truncated_and_a_fall_in_the_same_step_wins():
    task = started(Go2WalkEasy)
    env = Genesis(task, task_id="t")
    env.reset(0)
    task.age[:2] = task.limit - 1
    task.robot.control_dofs_position(task.stance, task.motors)
    task.target[1] += 0.5  # carried out now: leans by 0.1 * 12 * 0.25
    step = env.step(torch.zeros(3, 12))
    assert step["truncated"].tolist() == [True, False, False]
    assert step["terminated"].tolist() == [False, True, False]
    reached, shown = step["final_observation", "policy"], step["observation", "policy"]
    assert reached[1, 9:21] == pytest.approx([0.25] * 12)
    assert not shown[:2, 9:21].any()
    assert torch.equal(reached[2], shown[2])
    assert task.age.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", genesis.TASKS)
def test_episodes_begin_at_random_counts_of_steps_where_asked(monkeypatch, name):
    kind = genesis.TASKS[name]
    monkeypatch.setattr(kind, "limit", 6)
    task = made(kind, num_envs=40)
    env = Genesis(task, task_id=name)
    begun = []
    for seed in (1, 1, 2):
        env.reset(0)
        assert not task.age.any()
        env.spread_ends(seed)
        begun.append(task.age.clone())
    assert begun[0].unique().tolist() == list(range(6))
    assert torch.equal(begun[0], begun[1])
    assert not torch.equal(begun[0], begun[2])
    step = env.step(torch.zeros(40, env.spec.action.size))
    assert torch.equal(step["truncated"], (begun[2] == 5) & ~step["terminated"])


def test_an_action_is_carried_out_one_control_step_later():
    env: Any = Genesis(started(Go2WalkEasy), task_id="t")
    env.reset(0)
    first = env.step(torch.full((3, 12), 0.2))["observation", "policy"]
    second = env.step(torch.zeros(3, 12))["observation", "policy"]
    assert not first[:, 9:21].any()
    assert first[:, 33:] == pytest.approx(0.6)  # of the published unit, a third of ours
    assert second[:, 9:21] == pytest.approx(0.075)  # half of 0.15 rad
    assert env.spec.deployment.action_delay == 1
    seen = [channel.last_action for channel in env.spec.channels[33:]]
    assert [action.index for action in seen] == list(range(12))
    assert first[0, 33:] == pytest.approx([0.2 * action.factor for action in seen])


def test_the_easy_reward_is_the_published_sum():
    task = started(Go2WalkEasy)
    standing = 0.02 * (math.exp(-1) + 0.2 - 50 * 0.12**2)
    reward, failed = task.advance(task.stance.clone())
    assert reward.tolist() == pytest.approx([standing] * 3, rel=1e-4)
    assert not failed.any()
    task.now = task.now._replace(
        height=torch.full((3,), 0.3),
        velocity=torch.tensor([[0.5, 0.0, 0.2]] * 3),
        angles=torch.full((3, 12), 0.1),
    )
    task.target = task.previous + 0.25
    expected = 1 + 0.2 - 0.2**2 - 0.005 * 12 - 0.1 * 1.2
    assert task._reward().tolist() == pytest.approx([expected] * 3)


def test_the_walking_reward_is_the_published_sum():
    task = started(Go2Walk)
    task.command = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    flat = task.now._replace(
        height=torch.full((3,), 0.3),
        velocity=torch.tensor([[1.0, 0.0, 0.1]] * 3),
        turning=torch.tensor([[0.2, 0.0, 0.5]] * 3),
        gravity=torch.tensor([[0.1, 0.0, -1.0]] * 3),
        rates=torch.full((3, 12), 2.0),
    )
    task.now, task.last = flat, flat._replace(rates=torch.zeros(3, 12))
    task._torque = torch.full((3, 12), 10.0)
    task.target = task.previous.clone()
    task.robot.force[0, 1, 2] = 5.0  # a thigh
    expected = 1 + 0.5 / math.e - 2 * 0.01 - 0.05 * 0.04 - 10 * 0.01
    expected += -2e-4 * 1200 - 2.5e-7 * 12 * 100**2
    assert task._reward().tolist() == pytest.approx([expected - 1, expected, expected])


def test_a_long_stride_earns_when_the_foot_lands():
    task = started(Go2Walk)
    task.command = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    up, down = torch.zeros(3, 2, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)
    assert not any(task._strides(up).any() for _ in range(30))
    assert task._strides(down).tolist() == pytest.approx([2 * 0.12] * 3, rel=1e-4)
    assert not task._strides(down).any()


def test_the_critics_group_begins_with_the_policys_noise_included():
    task = started(Go2Walk)
    task.advance(task.stance + 0.1)
    task.advance(task.stance + 0.2)
    groups = task.observe()
    assert torch.equal(groups["critic"][:, :45], groups["policy"])
    assert groups["critic"][:, 45:48] == pytest.approx(2 * task.now.velocity)
    assert groups["critic"][:, 48:] == pytest.approx(0.4)  # the action carried out
    assert groups["policy"][:, 33:] == pytest.approx(0.8)  # the last one


def test_noise_reaches_the_entries_it_is_named_after():
    task = started(Go2Walk)
    seen = torch.stack([task.observe()["policy"] for _ in range(2000)])
    spread = seen.std(dim=0).mean(dim=0)
    declared = [c.noise or 0.0 for c in task.channels if c.group == "policy"]
    assert spread == pytest.approx(declared, rel=0.05, abs=1e-6)
    assert spread[21:33] == pytest.approx(0.05 * NOISE["joint_vel"] / math.sqrt(3), rel=0.05)


def test_commands_change_every_four_seconds_and_slow_ones_are_none():
    task = started(Go2Walk)
    first = task.command
    task.age[0] = 198
    task.advance(task.stance)
    assert torch.equal(task.command, first)
    task.advance(task.stance)
    assert (task.command == first).all(dim=1).tolist() == [False, True, True]
    drawn = torch.cat([task._drawn_command() for _ in range(300)])
    walk, turn = drawn[:, :2].norm(dim=1), drawn[:, 2].abs()
    for size in (walk, turn):
        assert ((size == 0) | (size > 0.2)).all()
        assert 0 < (size == 0).float().mean() < 0.3


def test_robots_differ_within_the_published_ranges():
    torch.manual_seed(1)
    task: Any = made(Go2Walk, num_envs=400)
    task.begin(torch.ones(400, dtype=torch.bool))
    scene, robot = task.scene, task.robot
    for seen, low, high in (
        (scene.friction, 0.2, 1.5),
        (robot.mass, 6.0, 10.0),
        (robot.center, -0.01, 0.01),
        (task._kp, 24.0, 36.0),
        (task._kd, 1.2, 1.8),
        (task._offset, -0.02, 0.02),
        (robot.qpos[:, 7:] - torch.tensor(STANCE), -0.3, 0.3),
        (robot.qpos[:, :2], -1.0, 1.0),
    ):
        assert low <= seen.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < seen.max() <= high
    assert (scene.friction == scene.friction[:, :1]).all()  # of every part of a copy alike


@pytest.mark.parametrize(("kind", "most"), [(Go2WalkEasy, 10.0), (Go2Walk, math.degrees(0.4))])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_robot_that_leans_too_far_has_fallen_whatever_its_heading(kind, most, axis):
    task = started(kind)
    angles = torch.zeros(3, 3)
    angles[:, 2] = 2.0
    angles[:, axis] = torch.deg2rad(torch.tensor([most - 0.1, most + 0.1, -most - 0.1]))
    task.robot.qpos[:, 3:7] = from_euler(angles)
    task.now = task._read()
    assert task._failed().tolist() == [False, True, True]


def test_a_trunk_on_the_ground_has_fallen():
    task = started(Go2Walk)
    task.robot.force[1, 0, 2] = 2.0
    task.robot.force[2, 1, 2] = 2.0  # a thigh
    assert task._failed().tolist() == [False, True, False]


def test_rotations_are_right_handed_and_undone_by_their_inverse():
    quarter = from_euler(torch.tensor([0.0, 0.0, torch.pi / 2]))
    assert rotated(torch.tensor([1.0, 0.0, 0.0]), quarter) == pytest.approx([0, 1, 0], abs=1e-6)
    leaning = from_euler(torch.tensor([[0.3, -0.2, 1.0]]))
    vector = torch.tensor([[1.0, 2.0, 3.0]])
    back = rotated(rotated(vector, leaning), inverse(leaning))
    assert torch.allclose(back, vector, atol=1e-6)
    assert heading(from_euler(torch.tensor([[0.0, 0.0, 1.0]]))) == pytest.approx(
        from_euler(torch.tensor([[0.0, 0.0, 1.0]]))
    )
    # About the world's axes: after a half turn in roll, a yaw still turns left.
    over = from_euler(torch.tensor([torch.pi, 0.0, torch.pi / 2]))
    assert rotated(torch.tensor([1.0, 0.0, 0.0]), over) == pytest.approx([0, 1, 0], abs=1e-6)


def test_the_hand_moves_as_told_and_keeps_its_fingers_open():
    env = Genesis(started(PandaGrasp), task_id="t")
    before = env.reset(0)["observation", "policy"]
    action = torch.zeros(3, 6)
    action[:, 0], action[:, 1] = 1.0, -3.0  # beyond 1 is 1
    after = env.step(action)["observation", "policy"]
    moved = torch.tensor([[STRIDE, -STRIDE, 0.0]] * 3)
    assert torch.allclose(after[:, :3] - before[:, :3], moved, atol=1e-4)
    assert torch.equal(after[:, 7:], before[:, 7:])


def test_the_reach_is_rewarded_by_seven_points_and_pushed_fingers_cost():
    task = started(PandaGrasp)
    task._place = torch.tensor([[HOME[0], HOME[1], HOME[2] - 0.06]] * 3)
    task._attitude = from_euler(task._arm.qpos[:, 3:6])
    assert task._reward().tolist() == pytest.approx([0.01] * 3)
    task._place[:, 0] += 0.1
    assert task._reward().tolist() == pytest.approx([0.01 * math.exp(-0.7)] * 3)
    task._arm.qpos = task._arm.qpos.clone()
    task._arm.qpos[0, 7] = 0.01
    assert task._reward()[0].item() == pytest.approx(0.01 * (math.exp(-0.7) - 0.03))


def test_a_scene_is_destroyed_once():
    task: Any = made(PandaGrasp)
    env = Genesis(task, task_id="t")
    env.close()
    env.close()
    assert task.scene.destroyed == 1


def test_a_second_device_in_one_process_is_refused():
    running = SimpleNamespace(_initialized=True, device=torch.device("cuda"))
    with pytest.raises(InputError, match="genesis/x on cpu: Genesis runs on cuda in this process"):
        genesis._start(running, torch.device("cpu"), "genesis/x")


@pytest.fixture(scope="module")
def easy():
    env: Any = make("genesis/go2-walk_easy", EnvSettings(num_envs=3), seed=3, render=True)
    yield env
    env.close()


@pytest.mark.sim("genesis")
def test_a_go2_stands_and_its_deployment_block_is_the_models(easy):
    easy.reset(0)
    for _ in range(60):
        step = easy.step(torch.zeros(3, 12))
        assert not step["terminated"].any()
    found = easy.spec.deployment
    height = easy._task.now.height  # the same of all: nothing is drawn here
    assert (height > 0.2).all()
    assert (height < 0.4).all()
    gravity = step["observation", "policy"][:, 3:6].flatten().tolist()
    assert gravity == pytest.approx([0, 0, -1] * 3, abs=0.1)
    assert found.position_limit_low[0] == pytest.approx(-1.0472)
    assert found.effort_limit[:2] == pytest.approx((23.7, 23.7))
    assert rests_within_limits(found)
    assert found.sim_dt * found.decimation == pytest.approx(easy.spec.control_dt)


@pytest.mark.sim("genesis")
def test_a_time_out_keeps_the_last_observation_and_starts_only_its_own_row(easy):
    easy.reset(0)
    for _ in range(5):
        easy.step(torch.full((3, 12), 0.3))
    easy._task.age[1] = easy.spec.max_episode_steps - 1
    step = easy.step(torch.full((3, 12), 0.3))
    assert step["truncated"].tolist() == [False, True, False]
    assert not step["terminated"].any()
    reached, shown = step["final_observation", "policy"], step["observation", "policy"]
    assert torch.allclose(reached[1], reached[0], atol=1e-4)  # driven alike
    assert not shown[1, 9:33].any()
    assert torch.equal(shown[0], reached[0])


@pytest.mark.sim("genesis")
def test_a_picture_is_drawn_with_a_level_horizon(easy):
    picture = easy.render()
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 1
    to_the_right = easy._camera.transform[:3, 0]
    assert to_the_right[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.sim("genesis")
@pytest.mark.parametrize(("task", "steps"), [("go2-walk", 30), ("panda-grasp", 20)])
def test_the_other_tasks_keep_the_contract_too(task, steps):
    found = check_env(lambda: make(f"genesis/{task}", EnvSettings(num_envs=4)), steps=steps)
    assert not [finding for finding in found if not finding.ok]
