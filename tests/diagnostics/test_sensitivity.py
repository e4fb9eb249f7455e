import math

import pytest
import torch

from supple.diagnostics import sensitivity
from supple.errors import InputError

CHOICES = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]])
GAIN = torch.tensor([[1.0, 0.5], [0.0, 2.0]])


def logits(obs):
    return obs @ CHOICES.T


def gaussian(obs):
    """Mean K s, log std (-1, -0.5) + diag(0.3, -0.2) s."""
    log_std = torch.tensor([-1.0, -0.5]) + torch.tensor([0.3, -0.2]) * obs
    return torch.cat((obs @ GAIN.T, log_std), -1)


def literal_port(policy, obs):
    """The published cost, of a density: -log p(held mode action) at the moved state."""
    held = policy(obs).detach().chunk(2, -1)[0]

    def cost(x):
        mean, log_std = policy(x).chunk(2, -1)
        return (0.5 * ((held - mean) * (-log_std).exp()).square() + log_std).sum(-1, True)

    return sensitivity.jacobian(cost, obs)


def test_the_published_gradient_of_two_linear_choices():
    obs = torch.tensor([[1.0, 0.0, 0.0]])
    p = math.e / (math.e + 1)
    assert p == pytest.approx(0.7311, abs=1e-4)
    factor = sensitivity.choice_factor(logits, obs)
    torch.testing.assert_close(factor[0, 0], -(1 - p) * torch.tensor([1.0, 1.0, -2.0]))
    assert factor.norm().item() == pytest.approx(0.6588, abs=1e-4)


def test_distance_to_the_boundary_of_two_linear_choices():
    obs = torch.tensor([[1.0, 0.0, 0.0]])
    slope = sensitivity.jacobian(logits, obs)
    found = sensitivity.boundary_distance(logits(obs), slope)
    assert found.item() == pytest.approx(1 / math.sqrt(6))
    # The third choice is nearer: 0.5 behind along one channel.
    third = torch.cat((slope, torch.tensor([[[0.0, 2.0, 4.0]]])), 1)
    z = torch.cat((logits(obs), torch.tensor([[0.5]])), 1)
    assert sensitivity.boundary_distance(z, third).item() == pytest.approx(0.5 / math.sqrt(17))
    assert sensitivity.boundary_distance(z, torch.zeros(1, 3, 3)).item() == math.inf


def test_information_of_two_linear_choices():
    factor = sensitivity.information_factor(logits, torch.tensor([[1.0, 0.0, 0.0]]))
    top = torch.linalg.eigvalsh((factor.mT @ factor)[0])[-1]
    assert top.item() == pytest.approx(1.1797, abs=1e-4)


def test_temperature_is_the_typical_spread_of_values():
    obs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    # Values (1, 0) and (0, 2): sample deviations 0.7071 and 1.4142.
    assert sensitivity.typical_spread(logits, obs) == pytest.approx(1.0607, abs=1e-4)
    sharp = sensitivity.choice_factor(lambda x: 100 * logits(x), obs)
    eased = sensitivity.choice_factor(lambda x: 100 * logits(x), obs, temperature=100)
    torch.testing.assert_close(eased, sensitivity.choice_factor(logits, obs))
    assert sharp[0].norm() < 1e-6 < eased[0].norm()


def test_information_of_a_gaussian_is_its_divergence():
    obs = torch.tensor([[0.2, -0.1]], dtype=torch.float64)

    def policy(x):
        log_std = torch.tensor([-1.0, -0.5]) + torch.tensor([0.3, -0.2]) * x
        return torch.cat((x @ GAIN.T.double(), log_std), -1)

    factor = sensitivity.fisher_factor(policy, obs)[0]
    fisher = factor.T @ factor
    expected = torch.tensor([[6.7335, 3.2768], [3.2768, 12.1652]], dtype=torch.float64)
    torch.testing.assert_close(fisher, expected, atol=1e-4, rtol=0)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    for size in (1e-2, 1e-3):
        before, after = (policy(x) for x in (obs, obs + size * direction))
        mean, log_std = before.chunk(2, -1)
        moved_mean, moved_log_std = after.chunk(2, -1)
        ratio = (2 * (log_std - moved_log_std)).exp()
        shift = ((moved_mean - mean) * (-moved_log_std).exp()).square()
        divergence = (moved_log_std - log_std + 0.5 * (ratio + shift - 1)).sum()
        expected_divergence = 0.5 * size**2 * direction @ fisher @ direction
        assert abs(divergence - expected_divergence) < 20 * size**3


def test_the_literal_port_does_not_see_the_mean_and_is_refused():
    obs = torch.tensor([[0.2, -0.1]])
    found = literal_port(gaussian, obs)
    torch.testing.assert_close(found[0, 0], torch.tensor([0.3, -0.2]))
    with pytest.raises(InputError, match="does not see the mean action"):
        sensitivity.require_reads_mean(literal_port)
    sensitivity.require_reads_mean(sensitivity.fisher_factor)


def test_held_actions_are_choices_of_the_critic():
    def value(obs, action):
        return (obs * action).sum(-1)

    obs = torch.tensor([[1.0, 0.0, 0.0]])
    factor = sensitivity.choice_factor(
        sensitivity.over_candidates(value), obs, CHOICES.unsqueeze(0)
    )
    torch.testing.assert_close(factor, sensitivity.choice_factor(logits, obs))
    slopes = sensitivity.candidate_slopes(value, obs, CHOICES.unsqueeze(0))
    torch.testing.assert_close(slopes, CHOICES.unsqueeze(0))


def test_chunks_change_nothing(monkeypatch):
    obs = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    whole = sensitivity.jacobian(gaussian, obs)
    monkeypatch.setattr(sensitivity, "CHUNK", 3)
    assert torch.equal(sensitivity.jacobian(gaussian, obs), whole)


def test_smoothing_averages_a_kink():
    def kinked(x):
        return sensitivity.jacobian(torch.relu, x)

    generator = torch.Generator().manual_seed(0)
    found = sensitivity.smoothed(kinked, torch.zeros(200, 1), torch.ones(1), generator)
    assert found.mean().item() == pytest.approx(0.5, abs=0.05)
    assert set(kinked(torch.zeros(1, 1)).unique().tolist()) == {0.0}
