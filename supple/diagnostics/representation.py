"""Representations: how large, varied and active features are, and what they share.

Features are of one network and member: unit i of two members has nothing in common but its number.
Where ``...`` leads, each entry is measured on its own. Everything but lengths is in float64.

Spectra are ``linalg.singular_values``.

Shapes: ``N`` rows, ``H`` features, ``P`` directions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from supple.diagnostics.linalg import entropy_rank, leading, singular_values
from supple.errors import InputError


def feature_norm(features: Tensor) -> Tensor:
    """Mean length over rows, (..., N, H) -> (...)."""
    norm: Tensor = torch.linalg.vector_norm(features, dim=-1)
    return norm.mean(-1)


def consecutive_likeness(now: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Mean dot product and cosine of rows of two sets of features, (..., N, H) -> (...).

    A dot product that grows without bound while ranks fall is implicit co-adaptation (Kumar et
    al., 2022); a cosine near 1 says that a critic hardly tells a state from the next.
    """
    now, after = now.double(), after.double()
    dot = (now * after).sum(-1)
    length = torch.linalg.vector_norm(now, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    # Rows without any active feature have no direction: they count for the dot product only.
    cosine = torch.where(length > 0, dot / length, math.nan).nanmean(-1)
    return dot.mean(-1), cosine


def srank(values: Tensor, delta: float = 0.01) -> Tensor:
    """How many ``singular_values`` hold 1 - delta of their sum (Kumar et al., 2021), (...)."""
    return leading(values, 1 - delta)


def effective_rank(values: Tensor) -> Tensor:
    """Exponential of the entropy of ``singular_values`` (Roy & Vetterli, 2007), (...)."""
    return entropy_rank(values)


def feature_rank(values: Tensor, rows: int, epsilon: float = 0.01) -> Tensor:
    """How many ``singular_values`` exceed epsilon sqrt(rows) (Lyle et al., 2022), (...)."""
    return (values / math.sqrt(rows) > epsilon).sum(-1)


def relative_rank(values: Tensor, epsilon: float = 0.01) -> Tensor:
    """How many ``singular_values`` exceed epsilon of the largest, whatever the scale, (...)."""
    return (values / values[..., :1] > epsilon).sum(-1)


def pca_rank(features: Tensor, share: float = 0.99) -> Tensor:
    """Principal directions that hold this share of the variance over rows, (..., N, H) -> (...).

    Source: Yang et al., 2020, whose code does not centre; this does.
    """
    exact = features.double()
    centred = exact - exact.mean(-2, keepdim=True)
    # A constant is constant, however its mean was rounded.
    centred *= centred.abs().amax(-2, keepdim=True) > 1e-12 * exact.abs().amax(-2, keepdim=True)
    return leading(singular_values(centred).square(), share)


def participation_ratio(values: Tensor) -> Tensor:
    """(sum of squares)^2 over the sum of fourth powers of ``singular_values``, (...)."""
    square = (values / values[..., :1]).square()
    return square.sum(-1).square() / square.square().sum(-1)


def stable_rank(values: Tensor) -> Tensor:
    """Sum of the squared ``singular_values`` over the largest, (...)."""
    return (values / values[..., :1]).square().sum(-1)


def linear_cka(x_NH: Tensor, y_NH: Tensor) -> Tensor:
    """Similarity of two representations of the same rows, whatever their rotation: 0 to 1, 0-d.

    Source: Kornblith et al., arXiv:1905.00414, linear form.
    """
    x_NH, y_NH = _centred(x_NH), _centred(y_NH)
    shared, own_x, own_y = (
        (left.mT @ right).square().sum()
        for left, right in ((x_NH, y_NH), (x_NH, x_NH), (y_NH, y_NH))
    )
    return shared / (own_x * own_y).sqrt()


def subspace_overlap(x_NH: Tensor, y_NH: Tensor, directions: int) -> Tensor:
    """Mean squared cosine of the principal angles between what the two span over rows, 0-d.

    Args:
        x_NH: features.
        y_NH: others of the same rows.
        directions: how many leading principal directions of each span it.
    """
    x_NP, y_NP = (_principal(features, directions) for features in (x_NH, y_NH))
    return (x_NP.mT @ y_NP).square().sum() / directions


def _principal(x_NH: Tensor, directions: int) -> Tensor:
    left_NH, values_H, _ = torch.linalg.svd(_centred(x_NH), full_matrices=False)
    rank = int((values_H > 1e-8 * values_H[0]).sum())
    if not 1 <= directions <= rank:
        raise InputError(f"directions must be 1 to the features' rank {rank}, got {directions}")
    leading: Tensor = left_NH[:, :directions]
    return leading


def changed_units(before_NH: Tensor, now_NH: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of units whose activation correlates less than ``threshold`` with its own past, 0-d.

    A unit that died or came to life changed; one that never varies is left out.
    """
    before_NH, now_NH = _centred(before_NH), _centred(now_NH)
    varies_H = before_NH.any(0) | now_NH.any(0)
    norm_H = (before_NH.square().sum(0) * now_NH.square().sum(0)).sqrt()
    kept_H = ((before_NH * now_NH).sum(0) >= threshold * norm_H) & (norm_H > 0)
    return (varies_H & ~kept_H).sum() / varies_H.sum()


def _centred(x_NH: Tensor) -> Tensor:
    """In float64, without the mean over rows."""
    x_NH = x_NH.double()
    centred_NH = x_NH - x_NH.mean(0)
    # A constant is constant, however its mean was rounded.
    centred_NH *= centred_NH.abs().amax(0) > 1e-12 * x_NH.abs().amax(0)
    if not centred_NH.any():
        raise InputError("features or values are the same in every row: nothing to compare")
    return centred_NH
