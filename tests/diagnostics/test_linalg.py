"""Spectra, Lanczos and Hutchinson against matrices whose answers are known."""

import pytest
import torch

from supple.diagnostics.linalg import (
    entropy_rank,
    hutchinson,
    lanczos,
    leading,
    rank_correlation,
    ranks,
    singular_values,
)
from supple.errors import InputError
from tests.agents.small_agents import generator


def symmetric(*eigenvalues, seed=0):
    width = len(eigenvalues)
    random = torch.randn(width, width, generator=generator(seed), dtype=torch.float64)
    basis = torch.linalg.qr(random).Q
    return basis * torch.tensor(eigenvalues, dtype=torch.float64) @ basis.mT


def product_of(*matrices):
    stack = torch.stack(matrices)
    return lambda v_EP: (stack @ v_EP.unsqueeze(-1)).squeeze(-1)


def start(members, width, seed=5, dtype=torch.float64):
    return torch.randn(members, width, generator=generator(seed), dtype=dtype)


def test_lanczos_finds_the_extremes_of_each_member():
    left, right = symmetric(9.0, 4, 1, -2, 0.5), symmetric(3.0, 2, 1, 0.5, -7)
    found = lanczos(product_of(left, right), start(2, 5), 5)
    assert found.high_E.tolist() == pytest.approx([9, 3], abs=1e-9)
    assert found.low_E.tolist() == pytest.approx([-2, -7], abs=1e-9)
    assert (found.residual_E < 1e-6).all()
    top = found.vector_EP[0]
    torch.testing.assert_close(left @ top, 9 * top, rtol=0, atol=1e-6)


def test_lanczos_stops_where_the_space_is_exhausted():
    # Rank one: after two steps nothing is left to explore.
    found = lanczos(product_of(symmetric(5.0, 0, 0, 0), symmetric(1.0, 2, 3, 4)), start(2, 4), 30)
    assert found.high_E.tolist() == pytest.approx([5, 4], abs=1e-8)
    assert found.low_E[1] == pytest.approx(1, abs=1e-8)


def test_a_run_that_is_too_short_says_so_by_its_residual():
    values = torch.linspace(1, 2, 200).tolist()
    matrix = symmetric(*values)
    short = lanczos(product_of(matrix), start(1, 200), 3)
    assert short.residual_E > 0.02
    again = lanczos(product_of(matrix), start(1, 200), 60)
    assert again.residual_E < 0.02
    assert again.high_E == pytest.approx(2, rel=1e-3)


def test_starting_from_the_last_vector_needs_fewer_steps():
    matrix = symmetric(*torch.linspace(0, 10, 100).tolist())
    first = lanczos(product_of(matrix), start(1, 100), 40)
    warm = lanczos(product_of(matrix), first.vector_EP, 2)
    assert warm.high_E == pytest.approx(10, rel=1e-3)


def test_lanczos_refuses_what_has_no_curvature():
    with pytest.raises(InputError, match="start that is not 0"):
        lanczos(product_of(symmetric(1.0, 2)), torch.zeros(1, 2), 4)
    with pytest.raises(InputError, match="not finite is undefined"):
        lanczos(lambda v: v * torch.nan, start(1, 4), 4)


def test_thirty_probes_of_a_decaying_spectrum_err_by_seven_percent():
    matrix = symmetric(10.0, 5, 1, *[0.1] * 200)
    product = product_of(matrix)
    true = 36.0
    errors, squares = [], []
    for seed in range(40):
        found = hutchinson(
            product,
            torch.Size([1, 203]),
            generator=generator(seed),
            tolerance=0,
            most=30,
            dtype=torch.float64,
        )
        assert found.probes == 30
        errors.append(float(found.trace_E) / true - 1)
        squares.append(float(found.square_E))
    assert sum(squares) / 40 == pytest.approx(128, rel=0.1)
    spread = torch.tensor(errors).square().mean().sqrt()
    # 2 (|H|_F^2 - sum of H_ii^2) <= 256 per probe: at most 0.081 of the trace for 30.
    assert 0.05 < spread < 0.095


def test_hutchinson_is_exact_for_a_diagonal_and_stops_early():
    diagonal = torch.diag(torch.tensor([1.0, 2, 3], dtype=torch.float64))
    found = hutchinson(
        product_of(diagonal, 2 * diagonal),
        torch.Size([2, 3]),
        generator=generator(0),
        dtype=torch.float64,
    )
    assert found.trace_E.tolist() == [6, 12]
    assert found.square_E.tolist() == [14, 56]
    assert found.probes == 8


def test_ranks_of_a_spectrum_count_what_holds_its_sum():
    values = torch.tensor([4.0, 2, 1, 1], dtype=torch.float64)
    assert entropy_rank(values) == pytest.approx(2**1.75)
    assert leading(values, 0.99) == 4
    assert leading(torch.tensor([98.0, 1.5, 0.5]), 0.99) == 2


def test_a_spectrum_needs_rows_and_finite_features():
    with pytest.raises(InputError, match="needs 8 rows, got 7"):
        singular_values(torch.randn(7, 4))
    with pytest.raises(InputError, match="not finite"):
        singular_values(torch.full((8, 4), torch.inf))


def test_ties_share_their_rank():
    assert ranks(torch.tensor([3.0, 1, 3, 0])).tolist() == [3.0, 1.5, 3.0, 0.5]
    assert ranks(torch.tensor([3.0, 1, 2, 0])).tolist() == [3.5, 1.5, 2.5, 0.5]
    rising = rank_correlation(torch.tensor([1.0, 2, 4]), torch.tensor([1.0, 20, 21]))
    assert rising == pytest.approx(1)
