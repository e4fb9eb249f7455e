"""Linear algebra that several measurements share: spectra, their ranks, curvature by products.

Spectra are in float64 whatever goes in: a Gram matrix in float32 resolves singular values only down
to 3e-4 of the largest, in float64 to 1e-8.

Shapes: ``N`` rows, ``H`` features, ``E`` members, ``P`` parameters of one, ``S`` Lanczos steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix of each member times a vector of each, (E, P) -> (E, P)."""


def singular_values(features: Tensor) -> Tensor:
    """Largest first, (..., N, H) -> (..., H), down to 1e-8 of the largest.

    Raises:
        InputError: fewer than two rows per feature (8 are better), no feature at all, or a number
            that is not finite.
    """
    rows, width = features.shape[-2:]
    if rows < 2 * width:
        raise InputError(f"the rank of {width} features needs {2 * width} rows, got {rows}")
    exact = features.double()
    if not exact.isfinite().all():
        raise InputError("the rank of features that are not finite is undefined")
    try:
        square = torch.linalg.eigvalsh(exact.mT @ exact)
        values: Tensor = square.clamp(min=0).sqrt().flip(-1)
    except RuntimeError:  # slower, but it converges where the other may not
        values = torch.linalg.svdvals(exact)
    if not values[..., 0].all():
        raise InputError("the rank of features that are all 0 is undefined")
    return values


def entropy_rank(weights: Tensor) -> Tensor:
    """Exponential of the entropy of non-negative weights brought to sum 1, (..., H) -> (...)."""
    share = weights / weights.sum(-1, keepdim=True)
    entropy: Tensor = -torch.xlogy(share, share).sum(-1)
    return entropy.exp()


def leading(weights: Tensor, share: float) -> Tensor:
    """How many of the weights, largest first, hold this share of their sum, (..., H) -> (...)."""
    held = weights.cumsum(-1) / weights.sum(-1, keepdim=True)
    return (held < share - 1e-12).sum(-1) + 1


class Extremes(NamedTuple):
    """What Lanczos found of a symmetric matrix, one per member."""

    high_E: Tensor
    """Largest eigenvalue."""
    low_E: Tensor
    """Smallest eigenvalue."""
    residual_E: Tensor
    """Of the largest, relative to its size: below 0.02 it can be relied upon."""
    vector_EP: Tensor
    """Unit vector of the largest, to start the next call from."""


def lanczos(product: Product, start_EP: Tensor, steps: int) -> Extremes:
    """Extreme eigenvalues from ``steps`` products, with full reorthogonalisation.

    The products are in the dtype of ``start_EP``, the small problem in float64.

    Raises:
        InputError: the start is 0 or a product is not finite.
    """
    norm = torch.linalg.vector_norm(start_EP, dim=-1, keepdim=True)
    if not norm.all() or steps < 1:
        raise InputError("Lanczos needs a start that is not 0 and at least one step")
    basis = [start_EP / norm]
    alphas, betas = [], []
    width = start_EP.shape[-1]
    for _ in range(min(steps, width)):
        w_EP = product(basis[-1])
        alphas.append((w_EP * basis[-1]).double().sum(-1))
        stack_SEP = torch.stack(basis)
        for _again in range(2):  # once is not enough in float32
            along_SE1 = (stack_SEP * w_EP).sum(-1, keepdim=True)
            w_EP = w_EP - (along_SE1 * stack_SEP).sum(0)
        beta_E = torch.linalg.vector_norm(w_EP, dim=-1)
        betas.append(beta_E.double())
        scale = torch.stack(alphas).abs().amax(0) + betas[0]
        # Where the space is exhausted the rest is 0: those members keep what they have.
        alive = (beta_E > 1e-6 * scale.to(beta_E.dtype)).unsqueeze(-1)
        if not alive.any():
            break
        basis.append(torch.where(alive, w_EP / beta_E.clamp_min(1e-30).unsqueeze(-1), 0.0))
    return _extremes(torch.stack(alphas, -1), torch.stack(betas, -1), basis)


def _extremes(alpha_ES: Tensor, beta_ES: Tensor, basis: list[Tensor]) -> Extremes:
    if not (alpha_ES.isfinite().all() and beta_ES.isfinite().all()):
        raise InputError("the curvature of a loss that is not finite is undefined")
    found = []
    for member, (alpha_S, beta_S) in enumerate(zip(alpha_ES, beta_ES, strict=True)):
        # A member whose space is exhausted has a last beta of about 0: what follows is padding.
        size = int((beta_S[:-1] > 1e-6 * (alpha_S.abs().max() + beta_S[0])).cumprod(0).sum()) + 1
        off = torch.diag(beta_S[: size - 1], 1)
        values, vectors = torch.linalg.eigh(torch.diag(alpha_S[:size]) + off + off.mT)
        top = vectors[:, -1]
        residual = beta_S[size - 1] * top[-1].abs() / values[-1].abs().clamp_min(1e-30)
        stack = torch.stack([each[member] for each in basis[:size]])
        vector = (top[:, None].to(stack.dtype) * stack).sum(0)
        found.append((values[-1], values[0], residual, vector / vector.norm()))
    return Extremes(*(torch.stack(parts) for parts in zip(*found, strict=True)))


class Trace(NamedTuple):
    """Hutchinson's estimates, one per member."""

    trace_E: Tensor
    error_E: Tensor
    """Standard error."""
    square_E: Tensor
    """Squared Frobenius norm, from the same probes."""
    probes: int


def hutchinson(
    product: Product,
    shape: torch.Size,
    *,
    generator: torch.Generator,
    tolerance: float = 0.05,
    dtype: torch.dtype = torch.float32,
    most: int = 100,
) -> Trace:
    """Trace from products with random signs, until the standard error is ``tolerance`` of it.

    Signs have the smaller variance, 2 (|H|_F^2 - sum of H_ii^2), of normal numbers 2 |H|_F^2.
    """
    traces, squares = [], []
    for count in range(1, most + 1):
        sign = torch.randint(0, 2, shape, generator=generator, device=generator.device)
        z_EP = 2 * sign.to(dtype) - 1
        found_EP = product(z_EP)
        traces.append((z_EP * found_EP).double().sum(-1))
        squares.append(found_EP.double().square().sum(-1))
        if count >= 8:  # fewer say little of their own error
            stack_SE = torch.stack(traces)
            error_E = stack_SE.std(0) / math.sqrt(count)
            if (error_E < tolerance * stack_SE.mean(0).abs()).all():
                break
    stack_SE = torch.stack(traces)
    error_E = stack_SE.std(0) / math.sqrt(len(stack_SE))
    return Trace(stack_SE.mean(0), error_E, torch.stack(squares).mean(0), len(stack_SE))


def ranks(x: Tensor) -> Tensor:
    """Ranks along the last dimension from 0.5, ties sharing their average, float64."""
    ordered, order = x.sort(-1)
    if bool((ordered.diff(dim=-1) == 0).any()):
        x = x.contiguous()
        below, through = (torch.searchsorted(ordered, x, right=right) for right in (False, True))
        return (below + through).double() / 2
    place = torch.arange(x.shape[-1], dtype=torch.float64, device=x.device) + 0.5
    return torch.empty_like(place.expand(x.shape)).scatter_(-1, order, place.expand(x.shape))


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's, along the last dimension; ties share their average rank.

    Raises:
        InputError: all values of one are equal.
    """
    both = torch.stack([ranks(one) for one in torch.broadcast_tensors(x, y)])
    both -= both.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(both, dim=-1)
    if not norm.all():
        raise InputError("the rank correlation of equal values is undefined")
    correlation: Tensor = both.prod(0).sum(-1) / norm.prod(0)
    return correlation
