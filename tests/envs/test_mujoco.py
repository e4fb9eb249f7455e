import numpy as np
import pytest
import torch

from benchmarks.experiments.mujoco_equality import compare
from supple.envs import EnvSettings, known_tasks, make
from supple.envs.check import check_env
from supple.envs.mujoco_physics import DataPhysics, RolloutPhysics
from supple.envs.mujoco_tasks import TASKS, HalfCheetah, Humanoid, Reacher
from supple.errors import InputError

TOLERANCE = 1e-6
SLOW_TO_COMPARE = ("Humanoid", "HumanoidStandup")


def build(name, num_envs=4, **options):
    return make(f"mujoco/{name}", EnvSettings(num_envs=num_envs), **options)


def actions(env, steps, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(steps, env.spec.num_envs, env.spec.action.size, generator=random) * 2 - 1


@pytest.mark.parametrize("name", TASKS)
def test_one_step_equals_gymnasium_from_the_same_states(name):
    found = compare(name, 20 if name in SLOW_TO_COMPARE else 100)
    assert found.worst < TOLERANCE
    assert found.other_ends == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HalfCheetah", "Hopper", "InvertedPendulum"])
def test_ten_thousand_states_step_as_gymnasium(name):
    found = compare(name, 10_000)
    assert found.worst < TOLERANCE
    assert found.other_ends == 0
    assert found.ends > 1000 or name == "HalfCheetah"


@pytest.mark.parametrize(
    ("task", "attribute", "name"),
    [
        (HalfCheetah, "effort_weight", "HalfCheetah"),
        (Humanoid, "contact_weight", "Humanoid"),
        (Reacher, "reads", None),
    ],
)
def test_a_wrong_number_would_be_seen(monkeypatch, task, attribute, name):
    if name is None:  # positions of the step's end instead of what MuJoCo last derived
        monkeypatch.setattr(DataPhysics, "_read", read_after_forward)
        assert compare("Reacher", 20).worst > TOLERANCE
        return
    monkeypatch.setattr(task, attribute, 1.01 * getattr(task, attribute))
    assert compare(name, 20).worst > TOLERANCE


def test_a_difference_that_is_no_number_would_be_seen(monkeypatch):
    monkeypatch.setattr(HalfCheetah, "effort_weight", float("nan"))
    assert not compare("HalfCheetah", 20).worst < TOLERANCE


def read_after_forward(physics, row):
    import mujoco

    mujoco.mj_forward(physics._model, physics._data[row])
    for into, source in physics._copies[row]:
        into[...] = source


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_the_contract(name):
    findings = check_env(lambda: build(name, 3), steps=60)
    assert [finding for finding in findings if not finding.ok] == []


@pytest.mark.parametrize(("name", "kind"), [("Hopper", RolloutPhysics), ("Ant", DataPhysics)])
def test_the_number_of_threads_changes_no_number(name, kind):
    seen = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            env = build(name, 6, seed=3)
        finally:
            torch.set_num_threads(before)
        assert isinstance(env._physics, kind)
        seen.append([env.step(action).clone() for action in actions(env, 50)])
        env.close()
    for one, two in zip(*seen, strict=True):
        assert (one == two).all()
    assert any(step["terminated"].any() for step in seen[0]) or name == "Ant"


def test_a_time_limit_truncates_and_its_final_observation_is_the_last_one():
    env = build("Reacher", 2, seed=1)
    for number, action in enumerate(actions(env, 60), start=1):
        before = env._physics.now["qpos"].copy()
        step = env.step(action)
        assert step["truncated"].tolist() == [number == 50] * 2
        assert not step["terminated"].any()
        assert step["valid"].all()
        if number == 50:
            final, after = step["final_observation", "policy"], step["observation", "policy"]
            # The target stays during an episode, and is drawn anew for the next one.
            np.testing.assert_allclose(final[:, 4:6], before[:, 2:], atol=1e-6)
            assert (after[:, 4:6] != final[:, 4:6]).all()
    env.close()


@pytest.mark.parametrize("name", ["HalfCheetah", "Humanoid"])
def test_a_fresh_environment_continues_bit_for_bit(name):
    env = build(name, 3, seed=5)
    for action in actions(env, 30):
        env.step(action)
    state = env.state_dict()
    expected = [env.step(action).clone() for action in actions(env, 60, seed=1)]
    env.close()
    fresh = build(name, 3, seed=9)
    fresh.load_state_dict(state)
    for action, step in zip(actions(fresh, 60, seed=1), expected, strict=True):
        assert (fresh.step(action) == step).all()
    assert any(step["terminated"].any() for step in expected) or name == "HalfCheetah"
    with pytest.raises(InputError, match="holds 2 environments, expected 3: build it with num_env"):
        fresh.load_state_dict({**state, "elapsed": np.zeros(2)})
    fresh.close()


def test_it_tells_what_gymnasium_tells_of_the_robot():
    ours, theirs = build("HalfCheetah", 1).spec, make("gym/HalfCheetah-v5", EnvSettings()).spec
    for fact in ("control_dt", "deployment", "channels", "action", "max_episode_steps"):
        assert getattr(ours, fact) == getattr(theirs, fact) is not None
    assert ours.observation == theirs.observation


def test_it_draws_the_state_it_is_in():
    env = build("HalfCheetah", 2, render=True)
    first = env.render()
    for action in actions(env, 20):
        env.step(action)
    assert first.shape == (480, 480, 3)
    assert (env.render() != first).any()
    step = env.step(actions(env, 1)[0])
    env.render()
    again = build("HalfCheetah", 2, render=True)
    with pytest.raises(NotImplementedError, match="made without render=True"):
        build("HalfCheetah", 1).render()
    assert step["valid"].all()
    again.close()
    env.close()


def test_tasks_are_listed_and_misspelled_ones_named():
    assert "Walker2d" in known_tasks()["mujoco"].tasks
    with pytest.raises(InputError, match="did you mean mujoco/HalfCheetah"):
        build("HalfCheeta")
