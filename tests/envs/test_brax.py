"""Brax for real; runs where it is installed (``make sim-brax``)."""

from typing import Any

import pytest
import torch

from supple.envs import EnvSettings, make

pytestmark = pytest.mark.sim("brax")


def test_a_fall_is_an_end_that_keeps_the_last_observation():
    env: Any = make("brax/inverted_pendulum", EnvSettings(num_envs=2), seed=0)
    first = env.reset(1)["observation", "policy"]
    for _ in range(200):
        step = env.step(torch.ones(2, 1))
        if step["terminated"].any():
            break
    env.close()
    row = int(step["terminated"].nonzero()[0])
    assert not step["truncated"].any()
    assert torch.equal(step["observation", "policy"][row], first[row])
    assert not torch.equal(step["final_observation", "policy"][row], first[row])
