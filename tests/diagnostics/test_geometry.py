"""Distances between states: what leaves them alone, what does not."""

import pytest
import torch

from supple.diagnostics.geometry import (
    geometry_correlation,
    geometry_interval,
    regression_collapse,
    split_half,
)
from supple.errors import InputError
from tests.agents.small_agents import generator


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def rotation(width, seed=9):
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def test_scale_and_rotation_leave_the_geometry_alone():
    x = normal(50, 6)
    assert geometry_correlation(x, 3 * x) == pytest.approx(1)
    assert geometry_correlation(x, x @ rotation(6)) == pytest.approx(1)
    assert geometry_correlation(x, torch.cat((x, x), dim=-1)) == pytest.approx(1)


def test_independent_representations_share_nothing():
    assert abs(geometry_correlation(normal(200, 16), normal(200, 16, seed=1))) < 0.05


def test_shuffling_the_states_destroys_it():
    x = normal(60, 4)
    assert abs(geometry_correlation(x, x[torch.randperm(60, generator=generator(3))])) < 0.2


def test_the_interval_resamples_states():
    x = normal(60, 4)
    low, high = geometry_interval(x, x + 0.3 * normal(60, 4, seed=2), generator(4))
    middle = float(geometry_correlation(x, x + 0.3 * normal(60, 4, seed=2)))
    assert low < middle < high
    assert 0.02 < high - low < 0.4


def test_what_has_no_geometry_is_undefined():
    with pytest.raises(InputError, match="at least 3 rows, none of them 0"):
        geometry_correlation(torch.zeros(5, 2), normal(5, 2))
    with pytest.raises(InputError, match="equally far apart"):
        geometry_correlation(torch.eye(4), normal(4, 3))
    with pytest.raises(InputError, match="the same states are needed, got 4 and 5"):
        geometry_correlation(normal(4, 2), normal(5, 2))


def test_a_split_measures_redundancy_of_axes():
    half = normal(200, 16)
    doubled = geometry_correlation(*torch.cat((half, half), dim=-1).chunk(2, dim=-1))
    assert doubled == pytest.approx(1)
    assert abs(split_half(normal(200, 64), generator(5))) < 0.02
    latent = normal(200, 4) @ normal(4, 64, seed=1)
    mixed = latent + 0.1 * latent.std() * normal(200, 64, seed=2)
    assert split_half(mixed, generator(6)) == pytest.approx(0.93, abs=0.05)
    axes = mixed @ torch.linalg.svd(mixed).Vh.mT
    assert abs(split_half(axes, generator(6))) < 0.2
    assert geometry_correlation(mixed, axes) == pytest.approx(1, abs=1e-6)


def test_collapse_counts_what_lies_outside_the_actions_directions():
    line = normal(100, 1) @ normal(1, 3, seed=1)
    assert regression_collapse(line, 1) == pytest.approx(0, abs=1e-9)
    assert regression_collapse(normal(20_000, 3), 1) == pytest.approx(2 / 3, abs=0.02)
