"""Measurements of features; the numbers are those of the diagnostics' specification."""

import pytest
import torch

from supple.diagnostics.linalg import singular_values
from supple.diagnostics.representation import (
    changed_units,
    effective_rank,
    feature_norm,
    linear_cka,
    srank,
    stable_rank,
    subspace_overlap,
)
from supple.diagnostics.units import dormant_fraction
from supple.errors import InputError
from tests.agents.small_agents import generator


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def orthonormal(rows, width, seed=0):
    return torch.linalg.qr(normal(rows, width, seed=seed)).Q


def features_of(*values, rows, seed=0):
    """With these singular values."""
    width = len(values)
    scale = torch.tensor(values, dtype=torch.float64)
    return orthonormal(rows, width, seed) * scale @ orthonormal(width, width, seed + 1).mT


def centred(x):
    return x - x.mean(0)


def test_feature_norm_is_the_mean_length():
    found = feature_norm(torch.tensor([[[3.0, 4], [0, 1]], [[0, 0], [0, 0]]]))
    assert found.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("sigma", "rows", "srank_", "effective", "stable"),
    [
        ((4.0, 2.0, 1.0, 1.0), 8, 4, 3.3636, 1.375),
        ((100.0, 1.0, 0.5, 0.01), 64, 2, 1.0913, 1.000125),
        ((3.0,) * 100, 200, 99, 100.0, 100.0),
    ],
)
def test_ranks_are_those_worked_out_by_hand(sigma, rows, srank_, effective, stable):
    values = singular_values(features_of(*sigma, rows=rows))
    torch.testing.assert_close(values, torch.tensor(sigma, dtype=torch.float64))
    assert srank(values) == srank_
    assert effective_rank(values).item() == pytest.approx(effective, abs=5e-5)
    assert stable_rank(values).item() == pytest.approx(stable, abs=1e-6)


def test_rounding_does_not_add_a_direction():
    # 0.99 of the sum is reached with 99 of 100 equal values, though not quite when added up.
    assert srank(torch.full((100,), 0.1, dtype=torch.float64)) == 99


def test_equal_rows_have_rank_one_and_members_are_ranked_apart():
    same = torch.tensor([[1.0, 2, 3]]).expand(6, -1)
    values = singular_values(torch.stack((same, features_of(2.0, 2.0, 2.0, rows=6).float())))
    assert srank(values).tolist() == [1, 3]
    for rank in (effective_rank, stable_rank):
        assert rank(values).tolist() == pytest.approx([1, 3], abs=1e-5)


def test_ranks_that_are_undefined_are_refused():
    with pytest.raises(InputError, match="rank of 4 features needs 8 rows, got 7"):
        singular_values(normal(7, 4))
    with pytest.raises(InputError, match="all 0 is undefined"):
        singular_values(torch.stack((normal(8, 4), torch.zeros(8, 4))))


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 0.2), (0.025, 0.2), (0.1, 0.4)])
def test_dormant_units_are_those_far_below_the_layers_mean(threshold, expected):
    mean = torch.tensor([1, -1, 1, 0.05, 0])
    sign = torch.tensor([[1.0], [-1.0]])
    found = dormant_fraction(torch.stack((sign * mean, 0 * sign * mean)), threshold)
    assert found.tolist() == pytest.approx([expected, 1])


def test_representations_are_similar_up_to_rotation_and_scale():
    x = normal(64, 5)
    turned = 3 * x @ orthonormal(5, 5, seed=2) + 7
    assert linear_cka(x, turned).item() == pytest.approx(1)
    # One column each: the squared correlation.
    y = 0.6 * x[:, :1] + normal(64, 1, seed=3)
    squared = torch.corrcoef(torch.cat((x[:, :1], y), 1).mT)[0, 1].square()
    assert linear_cka(x[:, :1], y).item() == pytest.approx(squared.item())
    with pytest.raises(InputError, match="same in every row"):
        linear_cka(x, torch.full((64, 5), 0.1))


def test_subspaces_overlap_by_the_directions_they_share():
    base = orthonormal(64, 6)
    base = torch.linalg.qr(centred(base)).Q
    first, half, other = base[:, :2], base[:, 1:3], base[:, 3:5]
    mix = torch.tensor([[2.0, 1.0], [0.5, -3.0]], dtype=torch.float64)
    assert subspace_overlap(first, first @ mix + 5, 2).item() == pytest.approx(1)
    assert subspace_overlap(first, half, 2).item() == pytest.approx(0.5)
    assert subspace_overlap(first, other, 2).item() == pytest.approx(0, abs=1e-12)
    # 45 degrees between two lines.
    assert subspace_overlap(first[:, :1], first.sum(1, True), 1).item() == pytest.approx(0.5)
    with pytest.raises(InputError, match="directions must be 1 to the features' rank 1, got 2"):
        subspace_overlap(first, first[:, :1].expand(-1, 2), 2)


def test_units_change_when_they_follow_their_past_no_more():
    before = centred(normal(200, 7))
    now = before.clone()
    now[:, 0] = 4 * before[:, 0] + 1
    now[:, 1] = -before[:, 1]
    now[:, 2] = 0.1  # died
    before[:, 3] = 0.1  # came to life
    before[:, 4] = now[:, 4] = 0.1  # never lived
    noise = torch.linalg.qr(torch.stack((before[:, 5], centred(normal(200, seed=4))), 1)).Q[:, 1]
    unit = before[:, 5] / before[:, 5].norm()
    now[:, 5] = 0.49 * unit + (1 - 0.49**2) ** 0.5 * noise
    now[:, 6] = before[:, 6]
    assert changed_units(before, now).item() == pytest.approx(4 / 6)
    assert changed_units(before, now, threshold=0.48).item() == pytest.approx(3 / 6)
