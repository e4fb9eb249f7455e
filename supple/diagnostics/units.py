"""Single units: which are inactive, constant, or receive no gradient.

Activations are taken right behind the non-linearity, before anything is added. Behind a batch norm
about half of a unit's inputs are positive by construction, so that ``dormant`` stays near 0 there
even in a sick network: read ``grad_dormant``, and ``fit_gap``.

Shapes: ``E`` members, ``N`` rows, ``H`` units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.errors import InputError


def dormant_fraction(activations: Tensor, threshold: float = 0.025) -> Tensor:
    """Share of units whose mean |activation| is at most ``threshold`` of the layer's.

    (..., N, H) -> (...); 2048 varied rows or more, else units that fire rarely count.
    Source: Sokar et al., 2023.
    """
    return _low(activations.double().abs().mean(-2), threshold)


def constant_fraction(activations: Tensor, least: float = 0.0) -> Tensor:
    """Share of units that hardly vary over rows, always on ones too, (..., N, H) -> (...).

    Their standard deviation is at most a hundredth of the layer's mean.

    Args:
        activations: of one layer.
        least: standard deviation below which a unit is constant in any case; 1e-3 for tanh.

    Source: the rule for tanh is of Moalla et al., 2024, the rest our own.
    """
    spread = _finite(activations.double().std(-2, correction=0))
    constant = (spread <= 0.01 * spread.mean(-1, keepdim=True)) | (spread < least)
    return constant.double().mean(-1)


NOTHING = 1e-12
"""A mean gradient, or a loss, below it is none."""


def gradient_dormant_fraction(
    gradients: Tensor, threshold: float = 0.01, *, loss: Tensor | float = 0.0
) -> Tensor:
    """Share of units whose mean |d loss / d activation| is at most ``threshold`` of the layer's.

    All of them where the layer receives none at all though there is a loss: the units above it are
    dead.

    Args:
        gradients: of the sum of the rows' losses, (..., N, H).
        threshold: relative to the layer's mean.
        loss: that the gradients are of.

    Raises:
        InputError: no unit receives any gradient to speak of, and there is no loss either.

    Source: after the idea of Liu et al., 2025; the score is our own.
    """
    mean = gradients.double().abs().mean(-2)
    deaf = mean.mean(-1) < NOTHING
    if bool(deaf.any()) and abs(float(loss)) < NOTHING:
        raise InputError("no unit of the layer receives a gradient: the loss is at its minimum")
    return _low(mean, threshold).masked_fill(deaf, 1.0)


def _finite(value: Tensor) -> Tensor:
    """Comparisons with NaN are all false: nothing would look inactive."""
    if not bool(torch.isfinite(value).all()):
        raise InputError("a unit's numbers are not finite")
    return value


def _low(mean: Tensor, threshold: float) -> Tensor:
    mean = _finite(mean)
    return (mean <= threshold * mean.mean(-1, keepdim=True)).double().mean(-1)


def over_layers(share_E: list[Tensor], widths: list[int]) -> Tensor:
    """The share of a whole network's units from those of its layers, (E,).

    Raises:
        InputError: there is no layer.
    """
    if not share_E:
        raise InputError("no layer with a non-linearity: there are no units to count")
    weight = torch.tensor(widths, dtype=torch.float64)[:, None]
    return (torch.stack(share_E).cpu() * weight).sum(0) / weight.sum()
