"""Brax for real; runs where it is installed (``make sim-brax``)."""

from typing import Any

import pytest
import torch

from supple.envs import EnvSettings, make
from supple.envs.jax_sim import place_of
from supple.errors import InputError
from tests.envs.real import assert_seed_fixes_the_starts

pytestmark = pytest.mark.sim("brax")


@pytest.fixture(scope="module")
def pendulum():
    env: Any = make("brax/inverted_pendulum", EnvSettings(num_envs=2), seed=0, render=True)
    yield env
    env.close()


def test_a_fall_is_an_end_that_keeps_the_last_observation(pendulum):
    first = pendulum.reset(1)["observation", "policy"]
    for _ in range(200):
        step = pendulum.step(torch.ones(2, 1))
        if step["terminated"].any():
            break
    row = int(step["terminated"].nonzero()[0])
    assert not step["truncated"].any()
    assert torch.equal(step["observation", "policy"][row], first[row])
    # Its pole may lean by 0.2 rad.
    assert step["final_observation", "policy"][row, 1].abs() > 0.2


def test_a_time_limit_that_brax_leaves_to_others_truncates(pendulum):
    import jax

    first = pendulum.reset(2)["observation", "policy"]
    assert pendulum.spec.max_episode_steps == 1000
    state, start, _ = pendulum._carry
    pendulum._carry = (state, start, jax.numpy.array([999, 0], dtype=jax.numpy.int32))
    step = pendulum.step(torch.full((2, 1), 0.1))
    assert step["truncated"].tolist() == [True, False]
    assert not step["terminated"].any()
    assert torch.equal(step["observation", "policy"][0], first[0])
    assert not torch.equal(step["final_observation", "policy"][0], first[0])
    assert pendulum._carry[2].tolist() == [0, 1]


def test_episodes_begin_at_random_counts_of_steps_where_asked(pendulum):
    pendulum.reset(0)
    pendulum.spread_ends(1)
    begun = pendulum._carry[2].tolist()
    assert len(set(begun)) == 2
    assert all(0 <= count < 1000 for count in begun)
    pendulum.step(torch.zeros(2, 1))
    assert pendulum._carry[2].tolist() == [count + 1 for count in begun]
    pendulum.reset(0)
    assert pendulum._carry[2].tolist() == [0, 0]


def test_a_seed_fixes_the_starts_and_none_moves_on(pendulum):
    assert_seed_fixes_the_starts(pendulum)


def test_a_picture_is_drawn(pendulum):
    pendulum.reset(0)
    picture = pendulum.render()
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 1


def test_a_gpu_that_jax_does_not_see_is_refused(monkeypatch):
    import jax

    def none(kind):
        raise RuntimeError(f"Unknown backend {kind}")

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(InputError, match=r"brax/ant on cuda: JAX has no such device here; pip"):
        place_of(torch.device("cuda"), "brax/ant")
