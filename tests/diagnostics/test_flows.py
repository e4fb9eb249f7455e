"""Flows whose shape, recovery and noise are known in closed form."""

import pytest
import torch

from supple.agents.flow_critics import PublishedFlowCritic
from supple.diagnostics.flows import (
    coarseness,
    endpoint_error,
    in_time_bin,
    loss_by_time,
    noise_consistency,
    noise_share,
    outside_share,
    recovery,
    straightness,
)
from supple.diagnostics.gradients import gradient_cosine
from supple.errors import InputError
from tests.agents.small_agents import generator
from tests.agents.small_flows import ROWS, critic_of, inputs, uniform

START = torch.linspace(-1, 1, 5, dtype=torch.float64).expand(1, 3, -1)


def constant(t, z):
    return torch.full_like(z, 2.0)


def test_a_constant_velocity_is_straight_and_keeps_errors():
    assert straightness(constant, START).tolist() == pytest.approx([0], abs=1e-12)
    assert recovery(constant, START, 0.1, steps=8, done=4).tolist() == pytest.approx([1])


def test_a_quadratic_path_has_straightness_one_third():
    found = straightness(lambda t, z: torch.full_like(z, 2 * t), START)
    assert found.item() == pytest.approx(1 / 3, abs=1e-4)


def test_a_field_that_points_at_one_value_forgets_every_error():
    found = recovery(lambda t, z: (3 - z) / (1 - t), START, 0.1, steps=8, done=4)
    assert found.tolist() == pytest.approx([0], abs=1e-12)


def test_damping_leaves_what_five_steps_leave():
    # The shift enters before step 4 of 8 (counted from 1), so five steps are left.
    found = recovery(lambda t, z: 1 - z, START, 0.1, steps=8, done=3)
    assert found.tolist() == pytest.approx([(1 - 1 / 8) ** 5])
    assert recovery(lambda t, z: z, START, 0.1, steps=8, done=3).item() > 1


def test_coarse_steps_are_compared_with_fine_ones():
    value = torch.tensor([[[0.0], [2.0]]])
    assert coarseness(value, value)[0] == 0
    assert coarseness(value + 1, value)[0] == pytest.approx(1 / 2**0.5)


def test_noise_left_over_is_a_share_of_the_variance_between_rows():
    rows = torch.tensor([[[0.0], [2.0]]])
    noise = torch.tensor([-1.0, 1.0])
    assert noise_share(rows + 0 * noise)[0] == 0
    assert noise_share(rows + noise)[0] == pytest.approx(2 / 2)
    with pytest.raises(InputError, match="at least 2 noise samples"):
        noise_share(rows)


def test_the_same_response_to_noise_is_consistent_a_deaf_flow_undefined():
    random = generator(0)
    q = torch.randn(1, 256, 1, generator=random)
    z, other = torch.randn(2, 1, 256, 16, generator=random)
    assert noise_consistency(q + z, q + 5 + z, q + other)[0] == pytest.approx(1)
    unrelated = noise_consistency(q + z, q + other, q + torch.randn(1, 256, 16, generator=random))
    assert abs(unrelated[0]) < 0.1
    with pytest.raises(InputError, match="nothing to compare"):
        noise_consistency(q + 0 * z, q + z, q + other)


def test_a_flow_that_does_not_move_has_no_straightness():
    with pytest.raises(InputError, match="does not move"):
        straightness(lambda t, z: 0 * z, START)


def test_what_is_left_where_the_field_points_at_the_mean_is_the_spread_of_targets():
    target = torch.tensor([[3.5, 2.5]]).repeat(3, 1).double()  # 3 give or take a half
    start = START[..., :2]
    assert endpoint_error(lambda t, z: (3 - z) / (1 - t), start, target).tolist() == [0.5]
    off = endpoint_error(lambda t, z: 4 - z, start, target)  # (0.5^2 + 1.5^2) / 2
    assert off.tolist() == pytest.approx([1.25**0.5])


def test_the_loss_is_told_apart_by_flow_time():
    target = torch.full((3, 1), 3.0, dtype=torch.float64)
    exact = loss_by_time(lambda t, z: (3 - z) / (1 - t), START, target)
    torch.testing.assert_close(exact, torch.zeros(8, 1).double())
    # It points 2 t too high: 4 t^2 in the middle of each eighth.
    late = loss_by_time(lambda t, z: (3 - z) / (1 - t) + 2 * t, START, target)
    expected = [4 * ((k + 0.5) / 8) ** 2 for k in range(8)]
    assert late[:, 0].tolist() == pytest.approx(expected)


def test_states_on_the_way_are_counted_outside_the_support():
    # Four steps of a half from -1, -0.5, 0, 0.5 and 1: of the last two's states 1 and 2 exceed 2.
    found = outside_share(constant, START, -1.0, 2.0, steps=4)
    assert found.tolist() == pytest.approx([(0 + 0 + 0 + 1 + 2) / 20])
    assert outside_share(constant, START, -9.0, 9.0, steps=4).tolist() == [0]


def test_a_flow_loss_is_taken_apart_by_time():
    critic = critic_of(PublishedFlowCritic)
    draws = uniform(critic, "loss")
    moved = in_time_bin(draws, 0.25, 0.5)
    assert torch.equal(moved[:, :3], draws[:, :3])
    torch.testing.assert_close(moved[:, 3:], 0.25 + 0.25 * draws[:, 3:])
    prediction, target = critic(inputs(), train=True), torch.linspace(-3, 3, ROWS)
    early, late = (
        critic.loss(prediction, target, in_time_bin(draws, low, low + 1e-3)) for low in (0.0, 0.9)
    )
    parameters = list(critic.parameters())
    assert 0 < gradient_cosine(early, late, parameters) < 0.999
    torch.testing.assert_close(
        gradient_cosine(early, early, parameters), torch.ones((), dtype=torch.float64)
    )
