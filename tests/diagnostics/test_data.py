"""Transitions drawn from a ring: raw, valid, without replacement, whatever was drawn before."""

import pytest
import torch
from tensordict import TensorDict

from supple.diagnostics.data import DataSets, Transitions, draw, generator_for
from supple.errors import InputError
from supple.replay import Replay, ReplaySettings
from tests.agents.small_agents import generator, small_spec

ENVS, EPISODE = 4, 5


def ring_of(steps, *, capacity=400, invalid_every=0):
    """Observations count the vector step; episodes of five steps end by termination."""
    spec = small_spec(observation={"policy": 1})
    replay = Replay(spec, ReplaySettings(capacity=capacity, final_fraction=0.5))
    for t in range(steps):
        ended = torch.full((ENVS,), t % EPISODE == EPISODE - 1)
        now, then = (torch.full((ENVS, 1), float(value)) for value in (t, t + 1))
        step = TensorDict(
            {
                "observation": {"policy": then},
                "final_observation": {"policy": then + 0.5},
                "reward": torch.full((ENVS,), float(t)),
                "terminated": ended,
                "truncated": torch.zeros(ENVS, dtype=torch.bool),
                "valid": torch.full((ENVS,), not (invalid_every and t % invalid_every == 0)),
            },
            batch_size=[ENVS],
        ).to_dict()
        replay.add({"policy": now}, torch.zeros(ENVS, 3), step)
    return replay


def drawn(replay, rows, **options):
    return draw(replay, rows, generator=generator(0), **options)


@pytest.mark.parametrize("steps", [40, 130])  # the ring of 100 rows has wrapped in the second
def test_next_observations_are_those_before_the_reset(steps):
    found = drawn(ring_of(steps), 50)
    now, then = (x["policy"][:, 0] for x in (found.observation, found.next_observation))
    torch.testing.assert_close(now, found.reward)
    torch.testing.assert_close(then, now + 1 + 0.5 * found.terminated)
    torch.testing.assert_close(found.step, now.long() % EPISODE)


def test_no_transition_is_drawn_twice_and_episodes_are_told_apart():
    replay = ring_of(40)
    found = drawn(replay, 10_000)
    assert len(found) == 40 * ENVS
    assert len(found.episode.unique()) == 40 // EPISODE * ENVS
    for episode in found.episode.unique():
        assert (found.step[found.episode == episode].sort().values == torch.arange(EPISODE)).all()
    few = drawn(replay, 12)
    assert len(few) == 12
    keys = few.observation["policy"][:, 0] * 1000 + few.episode
    assert len(keys.unique()) == 12


def test_episodes_as_long_as_the_ring_are_told_apart():
    """The next one's first rows lie where those of the one before did."""
    found = drawn(ring_of(13, capacity=EPISODE * ENVS), 10_000)
    assert len(found.episode.unique()) == 2 * ENVS
    assert found.reward.diff().min() >= 0  # in time order, over the end of the ring


def test_invalid_rows_are_not_drawn():
    found = drawn(ring_of(40, invalid_every=2), 10_000)
    assert len(found) == 20 * ENVS
    assert (found.reward % 2 == 1).all()


def test_the_newest_share_is_the_newest():
    found = drawn(ring_of(130), 8, newest=0.1)
    assert found.reward.min() >= 119


def test_a_rollout_is_still_there_right_after_it_was_forgotten():
    replay = ring_of(100)
    before = drawn(replay, 30)
    replay.clear()
    assert torch.equal(drawn(replay, 30).reward, before.reward)


def test_an_empty_ring_says_so():
    with pytest.raises(InputError, match="no valid transition yet"):
        drawn(ring_of(0), 4)


def test_joined_sets_keep_their_episodes_apart_and_a_checkpoint_gives_them_back():
    one = drawn(ring_of(40), 20)
    both = Transitions.join([one, one])
    assert len(both) == 40
    assert len(both.episode.unique()) == 2 * len(one.episode.unique())
    again = Transitions.from_state(one.state_dict())
    assert torch.equal(again.observation["policy"], one.observation["policy"])


def test_a_part_of_them_is_spread_over_time():
    found = drawn(ring_of(40), 10_000)
    kept = found.spread(4).reward
    assert (kept // 10).tolist() == [0, 1, 2, 3]
    assert len(set((kept % 10).tolist())) > 1  # a stride may meet one environment every time
    assert torch.equal(found.spread(4).reward, kept)
    assert found.spread(10_000) is found


def test_the_generator_of_a_purpose_is_its_own():
    left, right, again = (
        torch.rand(3, generator=generator_for("cpu", 0, name)) for name in ("a", "b", "a")
    )
    assert not torch.equal(left, right)
    assert torch.equal(left, again)


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="no transitions to measure on"):
        DataSets().comparable()
