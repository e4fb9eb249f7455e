import copy

import pytest
import torch

from supple.agents.exploration import HeldNoise, NoiseSettings, zeta_cdf
from supple.errors import InputError
from tests.agents.small_agents import (
    RandomReplay,
    assert_same_bits,
    generator,
    random_obs,
    small_agent,
    small_spec,
    snapshot,
)

WEIGHTS = torch.arange(1, 17, dtype=torch.float64) ** -2.0
ZETA = WEIGHTS / WEIGHTS.sum()
CHI_SQUARE_15_AT_0999 = 37.70


def held(num_envs, actions=1, seed=0, **settings):
    return HeldNoise(num_envs, actions, NoiseSettings(**settings), generator(seed))


def first_holds(noise, envs, longest):
    """How many steps each environment used its first draw."""
    first = noise.next().clone()
    length = torch.ones(envs, dtype=torch.int64)
    still = torch.ones(envs, dtype=torch.bool)
    for _ in range(longest):
        still &= (noise.next() == first).all(dim=1)
        length += still
    return length


def chi_square(lengths, law):
    count = torch.bincount(lengths - 1, minlength=len(law))
    assert len(count) == len(law)
    expected = law * len(lengths)
    return ((count - expected) ** 2 / expected).sum().item()


def test_cumulative_law_is_the_published_one():
    probability = torch.diff(zeta_cdf(2.0, 16), prepend=torch.zeros(1))
    published = torch.tensor([0.631, 0.158, 0.070, 0.039])
    torch.testing.assert_close(probability[:4], published, atol=6e-4, rtol=0)
    assert probability[15].item() == pytest.approx(0.0025, abs=1e-4)
    assert (probability * torch.arange(1, 17)).sum().item() == pytest.approx(2.134, abs=1e-3)
    assert zeta_cdf(2.0, 16)[-1] == 1


def test_hold_lengths_follow_the_zeta_law():
    lengths = first_holds(held(100_000, schedule="per_env"), 100_000, 17)
    assert lengths.min() == 1
    assert lengths.max() == 16
    assert chi_square(lengths, ZETA) < CHI_SQUARE_15_AT_0999


def test_another_exponent_fails_the_same_check():
    """Negative control: 1e5 draws tell exponent 2 from 2.05."""
    noise = held(100_000, schedule="per_env", exponent=2.05)
    assert chi_square(first_holds(noise, 100_000, 17), ZETA) > CHI_SQUARE_15_AT_0999


@pytest.mark.parametrize("schedule", ["shared", "per_env"])
def test_a_draw_is_used_for_exactly_its_hold(schedule):
    envs, steps = 5, 400
    noise = held(envs, 2, schedule=schedule)
    values, left = [], []
    for _ in range(steps):
        values.append(noise.next().clone())
        left.append(noise.state_dict()["left"].expand(envs).clone())
    for env in range(envs):
        at = 0
        while at < steps - 17:
            remaining = int(left[at][env])
            for offset in range(1, remaining + 1):
                assert torch.equal(values[at + offset][env], values[at][env])
            assert not torch.equal(values[at + remaining + 1][env], values[at][env])
            at += remaining + 1


def redraws(noise, envs, steps):
    before = noise.next().clone()
    fresh = torch.zeros(steps, envs, dtype=torch.bool)
    for step in range(steps):
        now = noise.next().clone()
        fresh[step] = (now != before).any(dim=1)
        before = now
    return fresh


def test_another_schedule_is_not_taken_for_the_shared_one():
    with pytest.raises(InputError, match=r"schedule must be one of shared, per_env, got per-env"):
        NoiseSettings(schedule="per-env")  # type: ignore[arg-type]


def test_shared_schedule_redraws_all_environments_together():
    fresh = redraws(held(6), 6, 300)
    assert (fresh.all(dim=1) == fresh.any(dim=1)).all()
    assert 0.3 < fresh[:, 0].float().mean() < 0.65  # 1 / 2.134
    noise = held(6).next()
    assert len(noise.unique()) == noise.numel()


def test_per_environment_schedule_redraws_independently():
    fresh = redraws(held(500, schedule="per_env"), 500, 200)
    rate = fresh.float().mean().item()
    assert rate == pytest.approx(1 / 2.134, abs=0.02)
    assert (fresh.any(dim=1) & ~fresh.all(dim=1)).all()


def test_shared_hold_lengths_follow_the_zeta_law_over_time():
    noise = held(1)
    fresh = redraws(noise, 1, 20_000)[:, 0]
    ends = fresh.nonzero()[:, 0]
    lengths = torch.diff(ends)
    assert lengths.max() <= 16
    assert chi_square(lengths, ZETA) < CHI_SQUARE_15_AT_0999


def test_a_longest_hold_of_one_is_fresh_noise_every_step():
    assert redraws(held(4, max_hold=1), 4, 50).all()


@pytest.mark.parametrize("schedule", ["shared", "per_env"])
def test_values_are_standard_normal(schedule):
    values = held(20_000, 3, schedule=schedule).next()
    assert values.mean().abs() < 4 / 60_000**0.5
    assert (values.square().mean() - 1).abs() < 4 * (2 / 60_000) ** 0.5
    assert (values.pow(4).mean() - 3).abs() < 4 * (96 / 60_000) ** 0.5


@pytest.mark.parametrize("schedule", ["shared", "per_env"])
def test_forgetting_episodes_draws_afresh(schedule):
    noise = held(4, 2, schedule=schedule, exponent=0.0, max_hold=1000)
    before = noise.next().clone()
    assert torch.equal(noise.next(), before)
    noise.forget_episodes()
    assert (noise.next() != before).all()


@pytest.mark.parametrize("ended", ["terminated", "truncated"])
@pytest.mark.parametrize("schedule", ["shared", "per_env"])
def test_holds_of_their_own_end_with_the_episode_and_shared_ones_do_not(schedule, ended):
    noise = NoiseSettings(schedule=schedule, exponent=0.0, max_hold=1000)
    agent = small_agent(noise=noise)
    before = agent.noise.next()
    done, never = torch.tensor([False, True, False, True]), torch.zeros(4, dtype=torch.bool)
    flags = {"terminated": never, "truncated": never, "valid": ~never}
    agent.observe({"reward": torch.zeros(4)} | flags | {ended: done})
    redrawn = (agent.noise.next() != before).any(1)
    assert torch.equal(redrawn, done if schedule == "per_env" else never)


def test_returned_noise_is_not_overwritten_later():
    noise = held(4, 2, max_hold=1)
    first = noise.next()
    copy_of_first = first.clone()
    noise.next()
    assert torch.equal(first, copy_of_first)


# --- acting -------------------------------------------------------------------------------------


def learning_agent(**changes):
    agent = small_agent(**changes)
    agent.update(RandomReplay(small_spec()))
    return agent


def test_evaluation_touches_neither_noise_nor_generators_nor_statistics():
    agent = learning_agent()
    random = generator(1)
    for _ in range(3):
        agent.act(random_obs(random, small_spec()), explore=True)
    before = snapshot(agent)
    obs = random_obs(random, small_spec())
    first, extras = agent.act(obs, explore=False)
    second, _ = agent.act(obs, explore=False)
    assert torch.equal(first, second)
    assert extras == {}
    torch.testing.assert_close(first, agent.policy()(obs["policy"]))
    assert_same_bits(agent.state_dict(), before)


def test_evaluation_between_two_acts_does_not_change_the_second():
    obs = random_obs(generator(2), small_spec())
    interrupted = learning_agent()
    quiet = copy.deepcopy(interrupted)
    for _ in range(10):
        interrupted.act(obs, explore=False)
        assert torch.equal(interrupted.act(obs, explore=True)[0], quiet.act(obs, explore=True)[0])


def test_exploring_actions_are_the_policy_plus_held_noise():
    agent = learning_agent(noise=NoiseSettings(exponent=0.0, max_hold=1000))
    random = generator(3)
    agent.act(random_obs(random, small_spec()), explore=True)
    held_noise = agent.noise.state_dict()["noise"].clone()
    obs = random_obs(random, small_spec())
    action, _ = agent.act(obs, explore=True)
    mean, log_std = agent.actor(obs["policy"], train=False)
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * held_noise).detach())
    assert not action.requires_grad


def test_actions_stay_in_range_even_with_wild_weights():
    agent = learning_agent()
    with torch.no_grad():
        agent.actor.mean.bias.fill_(40.0)
        agent.actor.log_std.bias.fill_(40.0)
    for explore in (True, False):
        action, _ = agent.act(random_obs(generator(4), small_spec()), explore=explore)
        assert action.shape == (4, 3)
        assert action.abs().max() <= 1


def test_warm_up_actions_are_uniform():
    spec = small_spec(num_envs=20_000)
    agent = small_agent(spec)
    obs = random_obs(generator(5), spec)
    before = copy.deepcopy(agent.noise.state_dict())
    actions = torch.cat([agent.act(obs, explore=True)[0] for _ in range(2)]).flatten()
    assert actions.min() >= -1
    assert actions.max() <= 1
    count = torch.histc(actions, bins=16, min=-1, max=1)
    expected = len(actions) / 16
    assert ((count - expected) ** 2 / expected).sum() < CHI_SQUARE_15_AT_0999
    assert_same_bits(agent.noise.state_dict(), before)


def test_warm_up_evaluation_is_the_policy():
    agent = small_agent()
    obs = random_obs(generator(6), small_spec())
    action, _ = agent.act(obs, explore=False)
    torch.testing.assert_close(action, agent.policy()(obs["policy"]))
