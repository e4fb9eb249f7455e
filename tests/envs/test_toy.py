import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from supple.envs.base import Env
from supple.envs.toy import TOY_TASKS, Bandit, Counter, Lqr, make_toy
from supple.envs.toy_hidden import Asymmetric, Disturbed, Recall
from supple.envs.toy_lqr import LQR_Q, lyapunov, riccati
from supple.errors import InputError

CPU = torch.device("cpu")


def actions_for(env: Env, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, env.spec.num_envs, env.spec.action.size)
    return 2 * torch.rand(shape, generator=generator) - 1


def assert_same(one, other):
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key in one.keys(True, True):
        assert torch.equal(one[key], other[key]), key


VARIANTS: dict[str, Callable[[], Env]] = {
    **{name: partial(make_toy, name, 6, CPU) for name in TOY_TASKS},
    "next_step counter": lambda: Counter(6, CPU, autoreset="next_step"),
    "noisy bandit": lambda: Bandit(6, CPU, reward_noise=0.3),
    "privileged": lambda: Asymmetric(6, CPU, critic_contains_policy=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_continues_bit_for_bit_in_a_fresh_environment(variant):
    env, fresh = VARIANTS[variant](), VARIANTS[variant]()
    actions = actions_for(env, 60)
    env.reset(seed=3)
    for action in actions[:30]:
        env.step(action)
    state = env.state_dict()
    expected = [env.step(action) for action in actions[30:]]
    fresh.load_state_dict(state)
    for action, step in zip(actions[30:], expected, strict=True):
        assert_same(fresh.step(action), step)
    assert_same(fresh.reset(), env.reset())  # the random numbers continue too


def test_another_seed_starts_elsewhere():
    env = make_toy("lqr", 3, CPU)
    first = env.reset(seed=1)["observation", "policy"]
    assert torch.equal(env.reset(seed=1)["observation", "policy"], first)
    assert not torch.equal(env.reset(seed=2)["observation", "policy"], first)


def test_counter_schedule_by_hand():
    index = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    length, terminated, truncated = Counter.schedule(index, torch.zeros_like(index))
    assert length.tolist() == [1, 5, 5, 4, 5, 5, 3]
    assert terminated.tolist() == [True, False, True, True, False, True, True]
    assert truncated.tolist() == [False, True, True, False, True, True, False]


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_counter_emits_exactly_its_schedule(autoreset):
    env = Counter(5, CPU, autoreset=autoreset)
    expected: list[dict[str, Any]] = [{"step": 0, "episode": 0, "bridge": False} for _ in range(5)]
    env.reset()
    seen_flags = set()
    for call, action in enumerate(actions_for(env, 40), start=1):
        result = env.step(action)
        for i, row in enumerate(expected):
            schedule = Counter.schedule(torch.tensor(i), torch.tensor(row["episode"]))
            length, terminates, truncates = int(schedule[0]), *map(bool, schedule[1:])
            if row["bridge"]:
                row.update(step=0, episode=row["episode"] + 1, bridge=False)
                flags, reward, valid = (False, False), 0.0, False
            else:
                row["step"] += 1
                ended = row["step"] == length
                flags = (terminates and ended, truncates and ended)
                reward, valid = action[i, 0].item(), True
                if ended:
                    final = [i, row["step"], call, row["episode"]]
                    assert result["final_observation", "policy"][i].tolist() == final
                    if autoreset == "next_step":
                        row["bridge"] = True
                    else:
                        row.update(step=0, episode=row["episode"] + 1)
            now = [i, row["step"], call, row["episode"]]
            assert result["observation", "policy"][i].tolist() == now
            assert (result["terminated"][i].item(), result["truncated"][i].item()) == flags
            assert result["reward"][i].item() == reward
            assert result["valid"][i].item() is valid
            seen_flags.add(flags)
    assert len(seen_flags) == 4


def test_riccati_by_hand_for_one_and_two_steps():
    # One step left: no reason to act, only x^T Q x is paid.
    cost, gain = riccati(steps=1)
    assert torch.equal(cost, torch.tensor(LQR_Q, dtype=torch.float64))
    assert torch.equal(gain, torch.zeros(1, 2, dtype=torch.float64))
    # Two: K = B^T Q A / (R + B^T Q B), B = (0, 1/4), so only Q's 0.1 is seen.
    _, gain = riccati(steps=2)
    assert gain[0].tolist() == pytest.approx([-0.005 / 0.10625, 0.0225 / 0.10625])


@pytest.mark.parametrize("discount", [1.0, 0.97])
def test_riccati_solves_its_fixed_point_and_no_other_gain_is_better(discount):
    cost, gain = riccati(discount)
    assert torch.allclose(lyapunov(gain, discount), cost, rtol=1e-10)
    for shift in ([0.1, 0.0], [0.0, 0.1], [-0.1, 0.0], [0.0, -0.1]):
        worse = lyapunov(gain + torch.tensor([shift], dtype=torch.float64), discount)
        assert torch.linalg.eigvalsh(worse - cost).min() > -1e-12
        assert worse.trace() > cost.trace()


def test_optimal_gain_earns_the_riccati_return():
    env = Lqr(64, CPU)
    discount = 0.9
    cost, gain = riccati(discount)
    observation = env.reset(seed=0)["observation", "policy"]
    start = observation.double()
    earned = torch.zeros(64, dtype=torch.float64)
    for t in range(Lqr.MAX_EPISODE_STEPS):
        action = Lqr.optimal_action(observation, gain)
        assert action.abs().max() <= 1  # a bounded policy can play it
        result = env.step(action)
        earned += discount**t * result["reward"].double()
        assert result["truncated"].all() == (t + 1 == Lqr.MAX_EPISODE_STEPS)
        observation = result["observation", "policy"]
    # What the time limit cut off is the value of the final observation: the bootstrap.
    final = result["final_observation", "policy"].double()
    tail = -(discount**Lqr.MAX_EPISODE_STEPS) * ((final @ cost) * final).sum(1)
    expected = -((start @ cost) * start).sum(1)
    assert torch.allclose(earned + tail, expected, rtol=1e-5)


def test_lqr_without_control_earns_the_lyapunov_return_and_less_than_the_best():
    env = Lqr(4000, CPU)
    start = env.reset(seed=0)["observation", "policy"].double()
    still = torch.zeros(4000, 1)
    earned = sum(env.step(still)["reward"].double() for _ in range(Lqr.MAX_EPISODE_STEPS))
    cost = lyapunov(torch.zeros(1, 2), steps=Lqr.MAX_EPISODE_STEPS)
    assert torch.allclose(earned, -((start @ cost) * start).sum(1), rtol=1e-4)
    assert earned.mean() < 1.5 * Lqr.optimal_episode_return() < 0


def test_bandit_pays_one_at_its_known_optimum():
    env = Bandit(1000, CPU)
    context = env.reset(seed=0)["observation", "policy"]
    best = Bandit.optimal_action(context)
    assert best.abs().max() <= 1
    result = env.step(best)
    assert torch.equal(result["reward"], torch.ones(1000))
    assert result["terminated"].all() and not result["truncated"].any()
    assert result["success"].all()
    assert torch.equal(result["final_observation", "policy"], context)
    context = result["observation", "policy"]
    shifted = env.step(Bandit.optimal_action(context) + torch.tensor([0.3, -0.4]))
    assert torch.allclose(shifted["reward"], torch.full((1000,), 0.75))
    assert not shifted["success"].any()


def test_bandit_noise_has_the_stated_spread():
    env = Bandit(20_000, CPU, reward_noise=0.5)
    context = env.reset(seed=0)["observation", "policy"]
    reward = env.step(Bandit.optimal_action(context))["reward"]
    assert reward.mean().item() == pytest.approx(1, abs=0.02)
    assert reward.std().item() == pytest.approx(0.5, rel=0.03)


def test_asymmetric_rewards_are_those_of_the_known_policies():
    env = Asymmetric(4000, CPU)
    observation = env.reset(seed=0)["observation"]
    rewards: list[list[float]] = [[], [], []]  # of the best blind, the informed, the naive policy
    for t in range(15):
        measured, target = observation["policy"], observation["critic"]
        gain = (Asymmetric.best_gain(), 1.0)[t % 3 == 2]
        action = torch.cat((gain * measured, torch.zeros_like(measured)), dim=1)
        step = env.step(target if t % 3 == 1 else action)
        rewards[t % 3].append(step["reward"].mean().item())
        observation = step["observation"]
    blind, informed, naive = (sum(values) / 5 for values in rewards)
    assert informed == pytest.approx(1, abs=1e-6)
    assert Asymmetric.best_mean_reward() == pytest.approx(1 - 0.0625 / 2 - 0.0625)
    assert blind == pytest.approx(Asymmetric.best_mean_reward(), abs=2e-3)
    # Trusting the measurement fully costs another half of the target's variance.
    assert naive == pytest.approx(1 - 2 * 0.0625, abs=2e-3)


def test_asymmetric_targets_stay_stationary_and_the_limit_truncates():
    env = Asymmetric(4000, CPU, critic_contains_policy=True)
    observation = env.reset(seed=0)["observation"]
    for t in range(Asymmetric.MAX_EPISODE_STEPS):
        assert torch.equal(observation["critic"][:, :1], observation["policy"])
        assert observation["critic"][:, 1:].std().item() == pytest.approx(0.25, rel=0.05)
        noise = observation["policy"] - observation["critic"][:, 1:2]
        assert noise.std().item() == pytest.approx(0.25, rel=0.05)
        step = env.step(torch.zeros(4000, 2))
        assert step["truncated"].all() == (t + 1 == Asymmetric.MAX_EPISODE_STEPS)
        observation = step["observation"]


def test_recall_pays_for_the_cue_it_showed_once():
    env = Recall(2000, CPU)
    cue = env.reset(seed=1)["observation", "policy"][:, :1]
    assert set(cue.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(cue.mean())) < 0.1
    paid = []
    for t in range(Recall.MAX_EPISODE_STEPS):
        remembering = t % 2 == 1
        step = env.step(cue if remembering else torch.zeros_like(cue))
        assert torch.equal(step["reward"], torch.full((2000,), float(remembering)))
        shown = step["final_observation" if t == 7 else "observation", "policy"]
        assert not shown.any()
        assert bool(step["truncated"].all()) == (t == 7)
        assert not step["terminated"].any()
        paid.append(1.0 if t == 0 else 0.0)
    assert (step["observation", "policy"][:, 1] == 1).all()
    assert Recall.best_memoryless_reward() == sum(paid) / len(paid)


def test_disturbance_reaches_the_reward_and_only_the_critic():
    env = Disturbed(4000, CPU)
    obs = env.reset(seed=1)["observation"]
    best = Disturbed.optimal_action(obs["policy"])
    step = env.step(best + 0.5)
    disturbance = obs["critic"][:, 2]
    torch.testing.assert_close(step["reward"], 0.75 + disturbance)
    assert float(disturbance.std()) == pytest.approx(Disturbed.DISTURBANCE_STD, rel=0.05)
    assert torch.equal(obs["critic"][:, :2], obs["policy"])
    assert step["terminated"].all()
    assert not torch.equal(step["observation", "critic"], obs["critic"])


def test_unended_rows_keep_their_observation_as_final():
    env = Asymmetric(4, CPU)
    env.reset(seed=0)
    step = env.step(torch.zeros(4, 2))
    assert torch.equal(step["observation", "policy"], step["final_observation", "policy"])


def test_refusals_say_what_to_do():
    with pytest.raises(InputError, match=r"no toy environment 'cartpole': choose one of toy/count"):
        make_toy("cartpole", 1, CPU)
    with pytest.raises(InputError, match="num_envs=0 for toy/lqr: expected >= 1"):
        make_toy("toy/lqr", 0, CPU)
    env = make_toy("toy/lqr", 2, CPU)
    with pytest.raises(InputError, match=r"step before reset: call reset\(\) first"):
        env.step(torch.zeros(2, 1))
    env.reset()
    with pytest.raises(InputError, match=r"action has shape \(2,\), expected \(2, 1\)"):
        env.step(torch.zeros(2))
    other = make_toy("lqr", 3, CPU)
    with pytest.raises(InputError, match="holds 2 environments, expected 3"):
        other.load_state_dict(env.state_dict())


def test_episode_return_optimum_is_finite_and_beats_doing_nothing():
    still = -float(lyapunov(torch.zeros(1, 2), steps=Lqr.MAX_EPISODE_STEPS).trace()) / 3
    assert math.isfinite(still) and still < Lqr.optimal_episode_return()
