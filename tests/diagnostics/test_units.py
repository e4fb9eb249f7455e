"""Inactive, constant and gradient-less units, on numbers worked out by hand."""

import pytest
import torch

from supple.diagnostics.units import (
    constant_fraction,
    dormant_fraction,
    gradient_dormant_fraction,
    over_layers,
)
from supple.errors import InputError


@pytest.mark.parametrize(("threshold", "percent"), [(0.0, 20), (0.025, 20), (0.1, 40)])
def test_dormant_units_are_those_far_below_their_layers_mean(threshold, percent):
    means = torch.tensor([1.0, 1, 1, 0.05, 0])  # scores 1.639, 1.639, 1.639, 0.0820, 0
    activations = torch.stack((2 * means, 0 * means))
    assert 100 * dormant_fraction(activations, threshold) == pytest.approx(percent)


def test_a_layer_that_is_all_zero_is_all_dormant():
    assert dormant_fraction(torch.zeros(4, 3), 0.0) == 1


def test_a_unit_that_is_always_on_is_constant_though_not_dormant():
    alternating = torch.tensor([1.0, -1, 1, -1])
    activations = torch.stack((alternating, torch.full((4,), 5.0)), dim=-1)
    assert constant_fraction(activations) == 0.5
    assert dormant_fraction(activations, 0.1) == 0
    nearly = torch.stack((alternating * 5e-4, alternating * 5e-4), dim=-1)
    assert constant_fraction(nearly) == 0
    assert constant_fraction(nearly, least=1e-3) == 1


def test_a_unit_without_weight_receives_no_gradient():
    # Q = sum of w_i h_i, squared loss: the gradient of h_i is error * w_i, scores (1.5, 1.5, 0).
    error = torch.tensor([0.5, -2.0, 1.0, 0.3])
    gradients = error[:, None] * torch.tensor([1.0, 1, 0])
    assert gradient_dormant_fraction(gradients, 0.01) == pytest.approx(1 / 3)


def test_without_any_gradient_the_question_is_undefined():
    with pytest.raises(InputError, match="no unit of the layer receives a gradient"):
        gradient_dormant_fraction(torch.full((4, 3), 1e-14))


def test_a_layer_without_any_gradient_is_deaf_as_a_whole_while_there_is_a_loss():
    silent, heard = torch.full((4, 3), 1e-14), torch.ones(4, 3)
    found = gradient_dormant_fraction(torch.stack((silent, heard)), loss=0.5)
    assert found.tolist() == [1, 0]


def test_a_network_counts_each_unit_once():
    shares = [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])]
    assert over_layers(shares, [3, 1]).tolist() == [0.25, 1.0]
    with pytest.raises(InputError, match="no layer with a non-linearity"):
        over_layers([], [])
