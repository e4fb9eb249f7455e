from typing import Literal

import numpy as np
import pytest
import torch

from supple.agents.reward_scaling import RewardScaler, RewardScalerSettings
from supple.errors import InputError

GAMMA, G_MAX = 0.97, 5.0


def scaler(num_envs, **settings):
    return RewardScaler(
        num_envs,
        gamma=GAMMA,
        value_max=G_MAX,
        settings=RewardScalerSettings(**settings),
        device=torch.device("cpu"),
    )


class Transcript:
    """The scaling rule written out in float64 NumPy, one environment at a time."""

    def __init__(self, num_envs, reset):
        self.sums = np.zeros(num_envs)
        self.reset = reset
        self.peak, self.mean, self.var, self.count = 0.0, 0.0, 1.0, 0.0
        self.everything = []

    def observe(self, reward, done, valid):
        new = []
        for i in np.flatnonzero(valid):
            if done[i] and self.reset == "before":
                self.sums[i] = 0.0
            self.sums[i] = GAMMA * self.sums[i] + float(reward[i])
            new.append(self.sums[i])
        self.everything += new
        if new:
            self.peak = max(self.peak, np.abs(new).max())
            mean, var, number = np.mean(new), np.var(new), len(new)
            delta, total = mean - self.mean, self.count + number
            weight = number / total
            self.mean += delta * weight
            self.var = (
                self.var * (self.count + 1e-4) + var * number + delta**2 * self.count * weight
            ) / total
            self.count = total
        if self.reset == "after":
            self.sums[np.asarray(valid) & np.asarray(done)] = 0.0

    def denominator(self):
        return max(np.sqrt(self.var + 1e-8), self.peak / G_MAX)


def test_the_variance_does_not_grow_by_counting():
    ours, never = scaler(1), torch.tensor([False])
    ours._mean.fill_(1.0)
    ours._count.fill_(2.0**25)
    for value in (2.0, 0.0) * 50:
        ours._sum_N.zero_()
        ours.observe(torch.tensor([value]), never, ~never)
    assert ours._count == 2**23
    assert float(ours._var) == pytest.approx(1, abs=1e-5)


def random_steps(num_envs, steps, *, seed=0, scale=1.0, shift=0.3, valid_rate=0.85):
    random = np.random.default_rng(seed)
    for _ in range(steps):
        valid = random.random(num_envs) < valid_rate
        done = (random.random(num_envs) < 0.05) & valid
        reward = (scale * random.standard_normal(num_envs) + shift).astype(np.float32)
        yield reward, done, valid


def feed(ours, reward, done, valid):
    ours.observe(torch.from_numpy(reward), torch.from_numpy(done), torch.from_numpy(valid))


@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize(("num_envs", "steps"), [(1, 400), (1024, 40)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_scaler_matches_a_float64_transcript(num_envs, steps, reset, scale):
    ours, theirs = scaler(num_envs, reset=reset), Transcript(num_envs, reset)
    for step in random_steps(num_envs, steps, scale=scale, shift=0.3 * scale):
        feed(ours, *step)
        theirs.observe(*step)
        state = ours.state_dict()
        for name, expected in (
            ("sum", theirs.sums),
            ("peak", theirs.peak),
            ("mean", theirs.mean),
            ("var", theirs.var),
            ("count", theirs.count),
        ):
            np.testing.assert_allclose(
                state[name].numpy(), expected, rtol=1e-4, atol=1e-5 * scale, err_msg=name
            )
        assert ours.denominator().item() == pytest.approx(theirs.denominator(), rel=1e-4)
    # Merging in batches must come to the plain moments of all sums seen.
    assert state["mean"].item() == pytest.approx(np.mean(theirs.everything), rel=1e-3)
    if scale == 1.0:
        assert state["var"].item() == pytest.approx(np.var(theirs.everything), rel=5e-3)


@pytest.mark.parametrize("reset", ["after", "before"])
def test_i13_sums_over_denominator_never_leave_the_support(reset):
    ours, theirs = scaler(64, reset=reset), Transcript(64, reset)
    random = np.random.default_rng(1)
    for reward, done, valid in random_steps(64, 200, seed=2):
        if random.random() < 0.1:
            reward[random.integers(64)] *= 1000
        feed(ours, reward, done, valid)
        theirs.observe(reward, done, valid)
        recent = np.abs(theirs.everything[-max(1, valid.sum()) :]).max()
        assert recent / ours.denominator().item() <= G_MAX + 1e-5
        assert ours.state_dict()["sum"].abs().max() / ours.denominator() <= G_MAX + 1e-5


def test_another_reset_than_the_two_is_refused():
    with pytest.raises(InputError, match=r"reset must be one of after, before, got atfer"):
        RewardScalerSettings(reset="atfer")  # type: ignore[arg-type]


def test_constant_zero_rewards_stay_finite():
    ours = scaler(4)
    for _ in range(1000):
        ours.observe(torch.zeros(4), torch.zeros(4, dtype=torch.bool), torch.ones(4).bool())
        denominator = ours.denominator()
        assert denominator.isfinite()
        assert denominator >= 1e-4 * (1 - 1e-6)
    assert denominator < 1e-2  # the initial variance of one has faded
    assert (torch.zeros(8) / denominator == 0).all()


def test_one_environment_by_hand():
    """gamma 0.97, rewards 1, 2 (end), 4: sums 1, 2.97, then 4 or 0.97 * 2 + 4."""
    rewards, dones = (1.0, 2.0, 4.0), (False, True, False)
    seen: dict[Literal["after", "before"], list[float]] = {"after": [], "before": []}
    for reset, sums in seen.items():
        ours = scaler(1, reset=reset)
        for reward, done in zip(rewards, dones, strict=True):
            ours.observe(torch.tensor([reward]), torch.tensor([done]), torch.tensor([True]))
            sums.append(ours.state_dict()["sum"].item())
        assert ours.state_dict()["peak"].item() == pytest.approx(4.0 if reset == "after" else 5.94)
    assert seen["after"] == pytest.approx([1.0, 0.0, 4.0])
    assert seen["before"] == pytest.approx([1.0, 2.0, 5.94])


def test_the_terminal_reward_counts_before_the_reset():
    ours = scaler(1)
    ours.observe(torch.tensor([30.0]), torch.tensor([True]), torch.tensor([True]))
    assert ours.state_dict()["peak"].item() == 30.0
    assert ours.state_dict()["mean"].item() == 30.0
    assert ours.denominator().item() >= 6.0


@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize("done", [False, True])
def test_invalid_rows_add_nothing_and_where_they_ended_forget_the_sum(reset, done):
    ours = scaler(2, reset=reset)
    ours.observe(torch.tensor([1.0, 2.0]), torch.zeros(2).bool(), torch.ones(2).bool())
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    wild = torch.tensor([float("nan"), 1e9])
    ours.observe(wild, torch.tensor([done, done]), torch.zeros(2).bool())
    if done:
        before["sum"].zero_()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_number_counts_as_a_row_that_is_not_valid(bad):
    ours, theirs = scaler(3), scaler(3)
    for number, (reward, done, _) in enumerate(random_steps(3, 20)):
        valid = np.full(3, True)
        if number == 7:
            reward[1], valid[1] = bad, False
        feed(ours, reward, done, np.full(3, True))
        feed(theirs, np.where(valid, reward, 0).astype(np.float32), done, valid)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert ours.denominator().isfinite()


def test_an_invalid_first_step_leaves_a_usable_denominator():
    ours = scaler(2)
    ours.observe(torch.zeros(2), torch.zeros(2).bool(), torch.zeros(2).bool())
    assert ours.denominator().item() == pytest.approx(1.0)


def test_peak_never_decays_by_default():
    ours = scaler(1)
    ours.observe(torch.tensor([100.0]), torch.tensor([True]), torch.tensor([True]))
    for _ in range(2000):
        ours.observe(torch.zeros(1), torch.zeros(1).bool(), torch.ones(1).bool())
    assert ours.denominator().item() == pytest.approx(20.0)


def test_a_peak_that_decays_is_forgotten_and_returns_still_fit():
    """100, then 1 for ever: 100 * 0.9^k until the sum itself is larger."""
    ours = scaler(1, peak_decay=0.9)
    never, valid = torch.zeros(1).bool(), torch.ones(1).bool()
    ours.observe(torch.tensor([100.0]), ~never, valid)
    total = 0.0
    for step in range(1, 60):
        ours.observe(torch.ones(1), never, valid)
        total = GAMMA * total + 1
        peak = ours.state_dict()["peak"].item()
        assert peak == pytest.approx(max(100 * 0.9**step, total), rel=1e-5)
        assert total / ours.denominator().item() <= G_MAX + 1e-5
    assert peak == pytest.approx(total, rel=1e-5)


def test_switched_off_it_divides_by_one_but_keeps_counting():
    ours = scaler(2, enabled=False)
    for step in random_steps(2, 20, scale=50.0):
        feed(ours, *step)
    assert ours.denominator().item() == 1.0
    assert ours.state_dict()["count"] > 0


def test_forgetting_episodes_keeps_the_moments():
    ours = scaler(3)
    for step in random_steps(3, 20):
        feed(ours, *step)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.forget_episodes()
    after = ours.state_dict()
    assert (after["sum"] == 0).all()
    assert before["sum"].abs().max() > 0
    for name in ("peak", "mean", "var", "count"):
        assert torch.equal(after[name], before[name]), name
