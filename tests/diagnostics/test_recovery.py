"""Recovery of flows, on analytic fields; acceptance test T3 of the method's specification."""

import math

import pytest
import torch

from supple.agents.critics import CriticSize
from supple.agents.flow_critics import FlowPrediction, FlowRange, PublishedFlowCritic
from supple.agents.flow_settings import FlowSettings
from supple.diagnostics.linalg import rank_correlation
from supple.diagnostics.recovery import (
    fixed_noise,
    injection_gain,
    noisy_target,
    recovery_index,
    slopes,
    stale_prefix,
    step_sweep,
    velocity_corruption,
)
from supple.errors import InputError
from tests.agents.small_agents import generator

START = torch.tensor([[[-0.5, 0.25]], [[0.5, 2.0]]], dtype=torch.float64)  # (E, B, M) = (2, 1, 2)
ZEROS = torch.zeros_like(START)


def towards(end):
    """The exact field of a target without noise."""
    return lambda t, z: (end - z) / (1 - t)


def constant(velocity):
    return lambda t, z: torch.full_like(z, velocity)


def linear(slope, offset=0.0):
    return lambda t, z: slope * z + offset


def gaussian_slope(t, ratio=0.5):
    """Of the exact field of a target with ``ratio`` times the noise's deviation."""
    return (t * ratio**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * ratio**2)


def gaussian(t, z):
    return gaussian_slope(t) * z


@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.parametrize("shift", [0.7, -0.1])
def test_t3_a_shift_vanishes_in_a_field_towards_one_value_and_stays_in_a_constant_one(steps, shift):
    for done in range(steps):
        gone = injection_gain(towards(3), START, shift, steps=steps, done=done)
        torch.testing.assert_close(gone, ZEROS, atol=1e-12, rtol=0)
        kept = injection_gain(constant(1.0), START, shift, steps=steps, done=done)
        torch.testing.assert_close(kept, ZEROS + 1)


@pytest.mark.parametrize(("slope", "expected"), [(-1.0, 0.5129), (1.0, 1.8020)])
def test_a_shift_three_steps_in_is_multiplied_by_each_of_the_five_left(slope, expected):
    found = injection_gain(linear(slope, 2.0), START, 0.3, steps=8, done=3)
    assert found.flatten().tolist() == pytest.approx([expected] * 4, abs=5e-5)


def test_the_gain_from_the_noise_is_that_of_every_step():
    found = injection_gain(gaussian, START, 1.0, steps=8)
    assert found.flatten().tolist() == pytest.approx([0.415] * 4, abs=5e-4)


@pytest.mark.parametrize(("shift", "done"), [(1.0, 8), (1.0, -1), (0.0, 0)])
def test_shifts_that_show_nothing_are_refused(shift, done):
    with pytest.raises(InputError, match=f"a shift != 0 after 0 to 7 steps, got {shift} after"):
        injection_gain(gaussian, START, shift, steps=8, done=done)


def corrupted(velocity, *, rows=1, strength=0.3):
    start = torch.zeros(2, rows, 4, dtype=torch.float64)
    return velocity_corruption(velocity, start, steps=8, strength=strength, generator=generator(0))


def test_corrupted_velocities_add_up_where_nothing_recovers():
    found = corrupted(constant(2.0), rows=5000)
    expected = torch.arange(1.0, 9, dtype=torch.float64).div(8).sqrt()[:, None].expand(-1, 2)
    # 20 000 samples: a root mean square is known to 0.5 %.
    torch.testing.assert_close(found, expected, atol=0, rtol=0.03)
    assert found[-1].tolist() == [1, 1]


def test_only_a_corrupted_last_velocity_survives_in_a_field_towards_one_value():
    found = corrupted(towards(3))
    torch.testing.assert_close(found[:-1], torch.zeros_like(found[:-1]), atol=1e-12, rtol=0)
    with pytest.raises(InputError, match="raise strength"):
        corrupted(towards(3), strength=0.0)


def test_corruption_is_relative_to_each_members_own_velocity():
    pace = torch.tensor([1.0, 10.0], dtype=torch.float64)[:, None, None]
    seen = []

    def moving(t, z):
        seen.append(z)
        return pace + 0 * z

    start = torch.zeros(2, 4000, 2, dtype=torch.float64)
    velocity_corruption(moving, start, steps=2, strength=0.5, generator=generator(0))
    # The field was asked last for z_1, half a noisy velocity away from 0.
    spread = seen[-1].std(dim=(1, 2))
    assert spread.tolist() == pytest.approx([0.25, 2.5], rel=0.04)


def test_a_stale_beginning_stays_in_constant_fields_and_is_forgotten_by_one_towards_a_value():
    kept = stale_prefix(constant(1.0), constant(3.0), START, steps=4)
    expected = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    torch.testing.assert_close(kept, expected[:, None].expand(-1, 2))
    torch.testing.assert_close(recovery_index(kept), torch.zeros(2, dtype=torch.float64))
    gone = stale_prefix(towards(3), towards(-3), START, steps=4)
    expected = torch.tensor([0, 0, 0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(gone, expected[:, None].expand(-1, 2))
    torch.testing.assert_close(recovery_index(gone), torch.ones(2, dtype=torch.float64))


def test_a_field_that_expands_recovers_less_than_nothing():
    # By hand, two steps of factor 3/2: the first stale step adds 3/4, both add 5/4.
    found = stale_prefix(linear(1.0), linear(1.0, 1.0), START, steps=2)
    torch.testing.assert_close(found[1], torch.full_like(found[1], 0.6))
    assert recovery_index(found).tolist() == pytest.approx([-0.2, -0.2])


def test_recovery_that_is_undefined_is_refused():
    with pytest.raises(InputError, match="read the same values"):
        stale_prefix(gaussian, gaussian, START, steps=4)
    with pytest.raises(InputError, match="K >= 2 steps, got 1"):
        recovery_index(torch.tensor([[0.0], [1.0]]))
    with pytest.raises(InputError, match="at least 1 step, got 0"):
        stale_prefix(gaussian, constant(1.0), START, steps=0)


def test_a_step_sweep_compares_with_the_truth_and_with_the_finest_readout():
    # z_K = 1 + (1 - 1/K)^K (z_0 - 1); the noise averages to 2.
    start = torch.tensor([1.0, 3.0], dtype=torch.float64).expand(1, 3, 2)
    truth = torch.ones(3, dtype=torch.float64)
    found = step_sweep(linear(-1.0, 1.0), start, truth, counts=(1, 2))
    assert found.value_SEB.shape == (2, 1, 3)
    assert found.error_SE.flatten().tolist() == pytest.approx([0, 0.25])
    finest = (63 / 64) ** 64
    assert found.coarseness_SE.flatten().tolist() == pytest.approx([finest, finest - 0.25])


def test_rank_correlation_shares_ranks_between_ties():
    x = torch.tensor([1.0, 2, 2, 3])
    y = torch.tensor([[1.0, 2, 3, 4], [-1, -8, -9, -90]])
    # By hand: ranks of x are 0, 1.5, 1.5, 3.
    expected = 4.5 / math.sqrt(4.5 * 5)
    assert rank_correlation(x, y).tolist() == pytest.approx([expected, -expected])
    assert rank_correlation(y[0], y[0].exp()) == pytest.approx(1)
    with pytest.raises(InputError, match="equal values"):
        rank_correlation(x, torch.ones(4))


def test_slopes_of_the_gaussian_field_are_as_derived():
    found = slopes(gaussian, START, steps=8)
    expected = torch.tensor([gaussian_slope(k / 8) for k in range(8)], dtype=torch.float64)
    assert found.slope_TEBM.shape == (8, 2, 1, 2)
    torch.testing.assert_close(found.slope_TEBM[..., 0, 1], expected[:, None].expand(-1, 2))
    left = 1 - torch.arange(8, dtype=torch.float64)[:, None] / 8
    torch.testing.assert_close(found.contraction_TE, -left * expected[:, None].expand(-1, 2))
    # The numerator is negative until t = 1 / (1 + ratio^2) = 0.8, then positive.
    assert found.expanding_TE[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_contraction_is_one_towards_a_value_and_zero_where_the_state_does_not_matter():
    times = (0.0, 0.3, 0.9)
    one = slopes(towards(3), START, steps=4, times=times).contraction_TE
    torch.testing.assert_close(one, torch.ones(3, 2, dtype=torch.float64))
    none = slopes(constant(1.0), START, steps=4, times=times)
    assert not none.slope_TEBM.any()
    assert not none.expanding_TE.any()


def test_slopes_are_taken_where_the_trajectory_is():
    # z_1 = 1 + 1/4; half of the first step is half of the way.
    start = torch.ones(1, 1, 1)
    found = slopes(lambda t, z: z.square(), start, steps=4, times=(0.0, 0.125, 0.25))
    assert found.slope_TEBM.flatten().tolist() == [2, 2.25, 2.5]
    with pytest.raises(InputError, match=r"must be in \[0, 1\), got \[1\.0\]"):
        slopes(gaussian, start, steps=4, times=[1.0])


def test_noisy_targets_are_drawn_once_per_member_and_row():
    target = torch.linspace(-3, 3, 5000)
    noise = noisy_target(target, 2, 0.5, generator(0)) - target
    assert noise.shape == (2, 5000)
    assert 0.49 < noise.abs().max() <= 0.5 + 1e-6
    assert noise.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.03)
    assert abs(torch.corrcoef(noise)[0, 1]) < 0.05
    assert torch.equal(noisy_target(target, 2, 0.0, generator(0)), target.expand(2, -1))


def critic_of(seed=0):
    size = CriticSize(inputs=4, hidden=1, blocks=0, members=2)
    settings = FlowSettings(width=16, train_samples=3)
    return PublishedFlowCritic(
        size, settings=settings, spans=FlowRange.of(settings, 5.0), generator=generator(seed)
    )


def test_slopes_of_a_critic_agree_with_small_differences():
    critic = critic_of().double()
    x = torch.randn(1, 3, 4, generator=generator(1), dtype=torch.float64)
    start, small = fixed_noise(critic, 3).double(), 1e-5
    with torch.no_grad():
        velocity = critic.velocity_at(FlowPrediction(x, critic.net.condition(x)))
        found = slopes(velocity, start, steps=1)
        difference = (velocity(0.0, start + small) - velocity(0.0, start - small)) / (2 * small)
    torch.testing.assert_close(found.slope_TEBM[0], difference, rtol=1e-6, atol=1e-9)


def test_fixed_noise_is_even_and_the_same_everywhere():
    critic = critic_of()
    noise = fixed_noise(critic, 3, samples=3)
    assert noise.shape == (1, 3, 3)
    torch.testing.assert_close(noise[0, 2], torch.tensor([-0.49, 0.0, 0.49]))
