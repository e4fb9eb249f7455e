"""What tests of several real simulators ask alike."""

import torch


def rests_within_limits(deployment):
    """Whether the default pose lies between every joint's limits."""
    low, rest, high = (
        torch.tensor(values)
        for values in (
            deployment.position_limit_low,
            deployment.default_position,
            deployment.position_limit_high,
        )
    )
    return bool(((low < rest) & (rest < high)).all())


def assert_seed_fixes_the_starts(env):
    """A seed gives the same starts every time, and resets without one go on from there."""
    first = env.reset(5)["observation", "policy"]
    then = env.reset()["observation", "policy"]
    assert not torch.equal(first, then)
    assert torch.equal(env.reset(5)["observation", "policy"], first)
    assert torch.equal(env.reset()["observation", "policy"], then)
