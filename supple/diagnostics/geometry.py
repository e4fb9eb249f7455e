"""The geometry of representations: which states lie close to which, over time and under noise.

A representation is described by the cosine distances of all pairs of rows; two are compared by the
rank correlation of those, row by row the same states (Raju, 2026, and ``shesha-geometry``).

Shapes: ``N`` rows, ``H`` features, ``A`` actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.diagnostics.linalg import ranks
from supple.diagnostics.reading import Interval, bootstrap_ci95
from supple.errors import InputError


def distances(x_NH: Tensor) -> Tensor:
    """Cosine distances of all pairs i < j, (N (N - 1) / 2,), float64.

    Raises:
        InputError: fewer than 3 rows, a row that is 0, or all distances alike.
    """
    found = _square(x_NH)
    upper = torch.triu_indices(len(found), len(found), 1, device=found.device)
    pairs: Tensor = found[upper[0], upper[1]]
    if pairs.std() < 1e-12:
        raise InputError("all rows are equally far apart: there is no geometry to compare")
    return pairs


def _square(x_NH: Tensor) -> Tensor:
    x_NH = x_NH.double()
    norm_N1 = torch.linalg.vector_norm(x_NH, dim=-1, keepdim=True)
    if len(x_NH) < 3 or not norm_N1.all():
        raise InputError("distances need at least 3 rows, none of them 0")
    unit: Tensor = x_NH / norm_N1
    return 1 - unit @ unit.mT


def geometry_correlation(x_NH: Tensor, y_NH: Tensor) -> Tensor:
    """Spearman's of the distances of two representations of the same rows, 0-d, -1 to 1.

    Their widths may differ. The textbook interval does not hold: pairs share rows.
    """
    if len(x_NH) != len(y_NH):
        raise InputError(f"the same states are needed, got {len(x_NH)} and {len(y_NH)}")
    found: Tensor = profile(x_NH) @ profile(y_NH)
    return found


def profile(x_NH: Tensor) -> Tensor:
    """Ranks of the distances, centred and of length 1: two of them multiply to a correlation."""
    found = ranks(distances(x_NH))
    found -= found.mean()
    unit: Tensor = found / found.norm()
    return unit


def geometry_interval(x_NH: Tensor, y_NH: Tensor, generator: torch.Generator) -> Interval:
    """95 %, by resampling states; a state's pair with itself is left out.

    Ranks are those of the whole sample: of its resamples they differ by little.
    """
    rows = len(x_NH)
    upper = torch.triu_indices(rows, rows, 1, device=x_NH.device)
    table = []
    for one in (x_NH, y_NH):
        square = torch.zeros(rows, rows, dtype=torch.float64, device=x_NH.device)
        square[upper[0], upper[1]] = ranks(distances(one))
        table.append(square + square.mT)

    def correlation(drawn: Tensor) -> Tensor:
        other = drawn[upper[0]] != drawn[upper[1]]
        i, j = drawn[upper[0]][other], drawn[upper[1]][other]
        a, b = (each[i, j] for each in table)
        a, b = a - a.mean(), b - b.mean()
        found: Tensor = (a * b).sum() / (a.norm() * b.norm())
        return found

    return bootstrap_ci95(correlation, rows, generator=generator, draws=100)


def split_half(x_NH: Tensor, generator: torch.Generator, *, permutations: int = 30) -> Tensor:
    """How redundantly relations are spread over units: a descriptor of axes, not of geometry, 0-d.

    Raises:
        InputError: fewer than 4 rows or features.
    """
    rows, width = x_NH.shape
    if rows < 4 or width < 4:
        raise InputError(f"a split needs 4 rows and features, got {rows} and {width}")
    x_NH = x_NH[:1600]
    half = width // 2
    found = []
    for _ in range(permutations):
        order = torch.randperm(width, generator=generator, device=x_NH.device)
        found.append(geometry_correlation(x_NH[:, order[:half]], x_NH[:, order[half : 2 * half]]))
    return torch.stack(found).mean()


def regression_collapse(x_NH: Tensor, actions: int) -> Tensor:
    """Share of the features' directions outside their ``actions`` principal ones, 0-d, 0 to 1.

    Near 0 an actor's features have shrunk to the width of its actions: fine once it is done.
    Source: the idea of Andriopoulos et al., 2024; the formula is our own reading.
    """
    centred = x_NH.double() - x_NH.double().mean(0)
    norm_N1 = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    if not norm_N1.any():
        raise InputError("features are the same in every row: there is nothing to collapse")
    unit = centred / norm_N1.clamp_min(1e-300)
    vectors = torch.linalg.eigh(unit.mT @ unit)[1]
    top = vectors[:, -actions:]
    left: Tensor = unit - unit @ top @ top.mT
    return left.square().sum(-1).mean()
