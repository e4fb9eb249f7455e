import math

import pytest
import torch

from supple.diagnostics import directions as di
from supple.diagnostics import sensitivity
from supple.errors import InputError

CHOICES = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]])


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def same_direction(left, right):
    assert di.squared_cosine(left.double(), right.double()) == pytest.approx(1, abs=1e-6)


def test_two_linear_choices_share_one_direction():
    obs = random(50, 3).float()
    factor = sensitivity.choice_factor(lambda x: x @ CHOICES.T, obs)
    found = di.directions(factor)
    same_direction(found.worst, torch.tensor([1.0, 1.0, -2.0]) / math.sqrt(6))
    assert found.concentration == pytest.approx(1, abs=1e-6)
    shift = di.compare_states(found, di.directions(factor[:7]))
    assert shift == pytest.approx((1, 1, 1), abs=1e-5)


def test_a_linear_command_has_the_directions_of_its_gain():
    gain = torch.diag(torch.tensor([3.0, 1.0]))
    factor = sensitivity.jacobian(lambda x: x @ gain.T, random(20, 2).float())
    found = di.directions(factor)
    assert found.value_D.tolist() == pytest.approx([9, 1])
    assert (found.concentration, found.gain) == pytest.approx((0.9, 3))
    assert found.anisotropy == pytest.approx(1.8)
    assert found.gap == pytest.approx(8 / 9)
    assert found.coordinates == pytest.approx(1)
    # Distance to the tolerance boundary: 0.1 / 3.
    assert (0.1 / di.local(factor).strength_N).tolist() == pytest.approx([0.1 / 3] * 20)


def test_squashing_scales_the_gain():
    gain = torch.tensor([[3.0, 0.5], [0.0, 1.0]])
    obs = random(5, 2).float()
    factor = sensitivity.jacobian(lambda x: torch.tanh(x @ gain.T), obs)
    action = torch.tanh(obs @ gain.T)
    torch.testing.assert_close(factor, (1 - action.square()).unsqueeze(-1) * gain)


def halves():
    """Half the states (2, 0), half (0, 1), two episodes."""
    factor = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).repeat_interleave(10, 0).unsqueeze(1)
    return factor, torch.arange(20) // 10


def test_half_and_half():
    factor, episode = halves()
    found = di.directions(factor)
    torch.testing.assert_close(found.matrix_DD, torch.diag(torch.tensor([2.0, 0.5]).double()))
    assert found.concentration == pytest.approx(0.8)
    other = di.directions(factor[10:])
    assert di.compare_states(found, other) == pytest.approx((0.25, 0, 0))
    split = di.split_half(*di.episode_matrices(factor, episode))
    assert split == pytest.approx((0, 0, 0))
    alike = di.split_half(*di.episode_matrices(factor, torch.arange(20) % 2))
    assert (alike.cosine, alike.quotient) == pytest.approx((1, 1))
    assert not di.identified(split.cosine, found.gap)


def test_strength_over_time():
    alternating = torch.tensor([1.0, 3.0] * 10)
    found = di.over_time(alternating, torch.zeros(20))
    # 19 changes of 2 over a sum of 40; no change counts from one episode to the next.
    assert found["cv"] == pytest.approx(0.5)
    assert found["tv"] == pytest.approx(38 / 40)
    assert found["mean"] == 2
    assert di.over_time(alternating, torch.arange(20) // 10)["tv"] == pytest.approx(36 / 40)
    with pytest.raises(InputError, match="does not respond in most states"):
        di.over_time(torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3))


def test_local_directions_are_those_of_each_matrix():
    factor = random(6, 3, 5)
    found = di.local(factor)
    for state, (strength, vector) in enumerate(zip(found.strength_N, found.vector_ND, strict=True)):
        value, vectors = torch.linalg.eigh(factor[state].T @ factor[state])
        assert strength.item() == pytest.approx(value[-1].sqrt().item())
        same_direction(vector, vectors[:, -1])
    still = di.local(torch.zeros(2, 3, 5))
    assert not still.strength_N.any()
    assert not still.vector_ND.any()


def test_concentration_without_a_shared_direction_is_near_its_null():
    factor = random(2000, 1, 10)
    expected = di.isotropic_concentration(2000, 10)
    assert expected == pytest.approx(0.1146, abs=1e-4)
    assert di.directions(factor).concentration == pytest.approx(expected, rel=0.1)


def test_order_of_states_and_units_of_channels_change_nothing():
    raw, scale = random(200, 2, 4), torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    found = di.directions(raw * scale)
    mixed = di.directions((raw * scale)[torch.randperm(200)])
    torch.testing.assert_close(mixed.value_D, found.value_D)
    # A channel in thousandths of its unit: derivatives fall by 1000, its deviation grows by 1000.
    unit = torch.tensor([1.0, 1000.0, 1.0, 1.0], dtype=torch.float64)
    rescaled = di.directions(raw / unit * (scale * unit))
    torch.testing.assert_close(rescaled.value_D, found.value_D)
    same_direction(rescaled.worst, found.worst)


def test_intervals_come_from_episodes():
    steady = random(400, 1, 3) * torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)
    episode = torch.arange(400) // 40
    matrices = di.episode_matrices(steady, episode)
    found = di.directions(steady)
    interval = di.bootstrap(*matrices, torch.Generator().manual_seed(0))
    low, high = interval["concentration"]
    assert low < found.concentration < high < 1
    # Copies of one episode tell nothing new, however many steps there are.
    same = di.episode_matrices(steady[:40].repeat(10, 1, 1), episode)
    low, high = di.bootstrap(*same, torch.Generator().manual_seed(0))["concentration"]
    assert high - low < 1e-9
    with pytest.raises(InputError, match="2 episodes, got 1"):
        di.split_half(matrices[0][:1], matrices[1][:1])


def test_thousands_of_episodes_are_resampled_in_few_blocks():
    random = torch.Generator().manual_seed(0)
    factor, episode = torch.randn(3000, 1, 4, generator=random), torch.arange(3000) // 2
    matrix, states = di.episode_matrices(factor, episode)
    assert len(matrix) == di.MOST_EPISODES and states.sum() == 3000
    odd = di.episode_matrices(factor[episode % 2 == 1], episode[episode % 2 == 1])[1].sum()
    assert states[1::2].sum() == odd == 1500
    whole = torch.einsum("e,eij->ij", states.double() / 3000, matrix)
    torch.testing.assert_close(whole, di.mean_matrix(factor))


def test_subspaces_hold_nine_tenths():
    found = di.decompose(torch.diag(torch.tensor([5.0, 4.0, 0.6, 0.4], dtype=torch.float64)))
    assert found.subspace().shape == (4, 2)
    assert di.squared_cosine(found.subspace(), torch.eye(4, dtype=torch.float64)[:, :2]) == 1
    line = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64) / math.sqrt(2)
    assert di.squared_cosine(found.worst, line) == pytest.approx(0.5)


def test_groups_share_the_energy():
    found = di.decompose(torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)))
    shares = di.by_group(found, ["pos", "pos", "vel"])
    assert shares == {"pos": (1, 1), "vel": (0, 0)}
    assert di.by_group(found, ["a", "b", "b"]) == {"a": (1, 0.75), "b": (0, 0.25)}


def test_policies_overlap_by_direction_and_channels():
    left, right = (
        di.decompose(torch.diag(torch.tensor(v, dtype=torch.float64)))
        for v in ([3.0, 1.0, 0.0], [1.0, 3.0, 0.0])
    )
    assert di.compare_policies(left, left) == (1, 1)
    assert di.compare_policies(left, right) == (0, 0)


def test_a_policy_that_ignores_everything_has_no_direction():
    with pytest.raises(InputError, match="does not respond to any channel"):
        di.directions(torch.zeros(5, 2, 3))


def test_derivatives_that_are_not_finite_have_no_direction():
    with pytest.raises(InputError, match="derivatives are not finite"):
        di.directions(torch.tensor([[[1.0, torch.nan]]]))
