"""Churn, saturation and trends on numbers worked out by hand."""

import math

import pytest
import torch

from supple.diagnostics.movement import (
    action_churn,
    choice_churn,
    choice_divergence,
    edge_share,
    gaussian_divergence,
    growth,
    joint_entropy,
    largest_mean,
    logit_offset,
    logit_range,
    pinned_share,
    saturated_share,
    value_churn,
)
from supple.errors import InputError


def test_a_joint_that_moves_a_tenth_of_its_range_flips_the_state():
    found = action_churn(torch.zeros(1, 2), torch.tensor([[0.2, 0.0]]))
    assert found.mean == pytest.approx(0.05)
    assert found.flip == 1
    assert action_churn(torch.zeros(1, 2), torch.tensor([[0.09, 0.09]])).flip == 0


def test_choices_churn_where_the_best_changes():
    before, after = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[9.0, 0], [0, 1]])
    assert [float(part) for part in choice_churn(before, after)] == [0.5, 0.5]
    assert choice_divergence(before, before).tolist() == [0, 0]
    assert choice_divergence(before, after)[1] == pytest.approx(math.tanh(0.5), rel=1e-5)


def test_divergence_of_unit_gaussians_one_apart_is_a_half():
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    assert gaussian_divergence(zero, zero, one, zero) == pytest.approx(0.5)
    assert gaussian_divergence(one, zero, one, zero) == 0


def test_value_churn_is_relative_to_the_values_spread():
    before = torch.tensor([[0.0, 2.0]])
    assert value_churn(before, before + 1)[0] == pytest.approx(1 / math.sqrt(2))
    with pytest.raises(InputError, match="do not vary"):
        value_churn(torch.ones(1, 2), torch.ones(1, 2))


def test_saturation_counts_joints_and_states():
    means = torch.atanh(torch.tensor([[0.98], [0.5]], dtype=torch.float64))
    assert saturated_share(means.tanh()).tolist() == [0.5]
    both = torch.tensor([[1.0, 1], [1, -1], [1, 1], [0, -1]])
    assert saturated_share(both).tolist() == [0.75, 1]
    assert pinned_share(both).tolist() == [0.75, 0.5]
    assert edge_share(torch.tensor([[-10.0, 0], [1.99, 2]]), -10, 2) == 0.75


def test_logits_offset_and_range():
    assert logit_offset(torch.zeros(3, 2)) == pytest.approx(math.log(2))
    assert logit_range(torch.tensor([[1.0, 4], [0, 1]])) == 2
    assert joint_entropy(torch.zeros(2, 1)).tolist() == pytest.approx([1.4189385])


def test_a_rare_percentile_needs_many_numbers():
    assert largest_mean(torch.linspace(-1, 1, 10_001)[:, None]) == pytest.approx(0.9995, abs=1e-3)
    with pytest.raises(InputError, match="needs 10000 numbers, got 10"):
        largest_mean(torch.zeros(10, 1))


def test_a_power_law_is_extrapolated_to_its_limit():
    updates = [1000.0 * k for k in range(1, 21)]
    found = growth(updates, [u**0.5 / 100 for u in updates], limit=10)
    assert found.slope == pytest.approx(0.5)
    assert found.r2 == pytest.approx(1)
    assert found.crossing == pytest.approx(1e6)
    falling = growth(updates, [1 / u for u in updates], limit=10)
    assert falling.crossing is None
    with pytest.raises(InputError, match="5 positive logs"):
        growth([1.0, 2], [1.0, 2], limit=10)
