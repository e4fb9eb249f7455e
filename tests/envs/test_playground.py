"""MuJoCo Playground for real; runs where it is installed (``make sim-playground``)."""

from typing import Any

import pytest
import torch

from supple.envs import EnvSettings, make, playground
from supple.envs.jax_sim import where_ended
from supple.errors import InputError
from tests.envs.real import assert_seed_fixes_the_starts

pytestmark = pytest.mark.sim("mujoco_playground")


@pytest.fixture(scope="module")
def cartpole():
    env: Any = make("playground/CartpoleBalance", EnvSettings(num_envs=3), seed=0, render=True)
    yield env
    env.close()


def test_a_time_limit_keeps_the_last_observation_and_goes_back_to_the_slots_first(cartpole):
    first = cartpole.reset(2)["observation", "policy"]
    limit = cartpole.spec.max_episode_steps
    state, start, _ = cartpole._carry
    import jax

    cartpole._carry = (state, start, jax.numpy.array([limit - 1, 0, 0], dtype=jax.numpy.int32))
    step = cartpole.step(torch.full((3, 1), 0.7))
    assert step["truncated"].tolist() == [True, False, False]
    assert not step["terminated"].any()
    assert torch.equal(step["observation", "policy"][0], first[0])
    assert not torch.equal(step["final_observation", "policy"][0], first[0])
    assert cartpole._carry[2].tolist() == [0, 1, 1]


def test_a_seed_fixes_the_starts_and_none_moves_on(cartpole):
    assert_seed_fixes_the_starts(cartpole)


def test_tensors_are_float32_on_the_runs_device_and_nobody_elses(cartpole):
    cartpole.reset(0)
    one = cartpole.step(torch.zeros(3, 1))
    kept = one["observation", "policy"].clone()
    cartpole.step(torch.ones(3, 1))
    assert torch.equal(one["observation", "policy"], kept)
    assert one["observation", "policy"].dtype == torch.float32


def test_a_picture_is_drawn_by_the_models_own_camera(cartpole, capfd):
    cartpole.reset(0)
    picture = cartpole.render()
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 1
    assert capfd.readouterr().err == ""


def test_every_task_of_the_list_is_registered():
    assert set(playground.TASKS) <= set(playground.tasks())


def test_a_robot_that_cannot_be_fetched_is_named_in_one_line(monkeypatch, tmp_path):
    from mujoco_playground._src import mjx_env

    monkeypatch.setattr(mjx_env, "EXTERNAL_DEPS_PATH", tmp_path)
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", tmp_path / "missing")
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "none")  # git then asks no network
    with pytest.raises(InputError, match=r"Go1JoystickFlatTerrain cannot be loaded: .*GitHub"):
        make("playground/Go1JoystickFlatTerrain", EnvSettings(num_envs=1))


def test_what_all_environments_share_survives_the_reset_of_one():
    import jax.numpy as jnp

    ended = jnp.array([False, True, False])
    assert where_ended(ended, jnp.zeros((3, 2)), jnp.ones((3, 2)))[:, 0].tolist() == [1, 0, 1]
    # Warp's contacts, of all environments in one list.
    assert where_ended(ended, jnp.zeros((5, 2)), jnp.ones((5, 2))).all()
