"""How far one update moves policy and values, and how close outputs are to their limits.

Shapes: ``N`` states, ``A`` actions or choices, ``E`` members, ``K`` atoms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError

SATURATED = 0.97
"""|action| in half ranges beyond which it is at its limit."""
FLIPPED = 0.05
"""Change of an action, relative to its range, that counts as another decision."""


class Churn(NamedTuple):
    """What an update did to a policy on states it did not train on."""

    mean: Tensor
    """|change of the deterministic action| over its range; 1 - agreement of choices."""
    flip: Tensor
    """Share of states where an action moved by more than 5 % of its range, or a choice changed."""


def action_churn(before_NA: Tensor, after_NA: Tensor, span: float = 2.0) -> Churn:
    """Of continuous actions (Schaul et al., 2022; Tang & Berseth, 2024).

    Args:
        before_NA: deterministic actions.
        after_NA: those of the later policy.
        span: width of an action's range.
    """
    share = (after_NA - before_NA).abs() / span
    return Churn(share.mean(), (share > FLIPPED).any(-1).double().mean())


def choice_churn(before_NA: Tensor, after_NA: Tensor) -> Churn:
    """Of discrete policies, from their logits."""
    changed = (before_NA.argmax(-1) != after_NA.argmax(-1)).double().mean()
    return Churn(changed, changed)


def gaussian_divergence(
    mean_NA: Tensor, log_std_NA: Tensor, other_mean_NA: Tensor, other_log_std_NA: Tensor
) -> Tensor:
    """KL(first || other) of diagonal Gaussians [nats], (N,); squashing both changes nothing."""
    ratio = (2 * (log_std_NA - other_log_std_NA)).exp()
    shift = ((mean_NA - other_mean_NA) * (-other_log_std_NA).exp()).square()
    each = other_log_std_NA - log_std_NA + 0.5 * (ratio + shift - 1)
    return each.sum(-1)


def choice_divergence(logits_NA: Tensor, other_NA: Tensor) -> Tensor:
    """KL(first || other) of categorical distributions [nats], (N,)."""
    first, other = logits_NA.log_softmax(-1), other_NA.log_softmax(-1)
    return (first.exp() * (first - other)).sum(-1)


def value_churn(before_EN: Tensor, after_EN: Tensor) -> Tensor:
    """Mean |change| over the standard deviation of values, (E,).

    Raises:
        InputError: values do not vary.
    """
    spread_E = before_EN.std(-1)
    if not spread_E.all():
        raise InputError("the churn of values that do not vary is undefined")
    return (after_EN - before_EN).abs().mean(-1) / spread_E


def saturated_share(action_NA: Tensor) -> Tensor:
    """Share of states where an action, in half ranges, is at either limit, per joint, (A,)."""
    return (action_NA.abs() > SATURATED).double().mean(0)


def pinned_share(action_NA: Tensor) -> Tensor:
    """The same of the limit at which it is more often: bang-bang control has half of it, (A,)."""
    ends = [(sign * action_NA > SATURATED).double().mean(0) for sign in (1, -1)]
    return torch.maximum(*ends)


def edge_share(log_std_NA: Tensor, low: float, high: float) -> Tensor:
    """Share of log standard deviations within 1 % of the ends of their range, 0-d."""
    margin = 0.01 * (high - low)
    return ((log_std_NA < low + margin) | (log_std_NA > high - margin)).double().mean()


def largest_mean(mean_NA: Tensor) -> Tensor:
    """99.9th percentile of |mean| before squashing, 0-d.

    Raises:
        InputError: fewer than 10 000 numbers: the percentile would be one of the largest few.
    """
    if mean_NA.numel() < 10_000:
        raise InputError(f"the 99.9th percentile needs 10000 numbers, got {mean_NA.numel()}")
    return torch.quantile(mean_NA.double().abs().flatten(), 0.999)


def logit_range(logits: Tensor) -> Tensor:
    """Mean of largest minus smallest, (..., N, K) -> (...)."""
    return (logits.amax(-1) - logits.amin(-1)).mean(-1)


def logit_offset(logits: Tensor) -> Tensor:
    """Mean |logsumexp|, which cross-entropy does not hold in place, (..., N, K) -> (...)."""
    return logits.logsumexp(-1).abs().mean(-1)


def joint_entropy(log_std_NA: Tensor) -> Tensor:
    """Mean entropy of each joint's Gaussian before squashing [nats], (A,)."""
    return (log_std_NA + 0.5 * math.log(2 * math.pi * math.e)).mean(0)


class Growth(NamedTuple):
    """A power law through the last logs of a number."""

    slope: float
    """Of log10(number) against log10(update)."""
    r2: float
    crossing: float | None
    """Update at which a limit would be reached; None where it is not on the way."""


def growth(updates: list[float], values: list[float], limit: float) -> Growth:
    """Fit and extrapolate (Wortsman et al., 2023).

    Raises:
        InputError: fewer than 5 positive logs, or all at one update, or a limit of 0.
    """
    if limit <= 0:
        raise InputError(f"a trend of positive logs never reaches a limit of {limit:g}")
    pairs = [(u, v) for u, v in zip(updates, values, strict=True) if u > 0 and v > 0]
    x = torch.tensor([u for u, _ in pairs], dtype=torch.float64).log10()
    y = torch.tensor([v for _, v in pairs], dtype=torch.float64).log10()
    if len(pairs) < 5 or not x.std():
        raise InputError(f"a trend needs 5 positive logs at different updates, got {len(pairs)}")
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx * dy).sum() / dx.square().sum())
    spread = float(dy.square().sum())
    r2 = 1.0 if spread == 0 else 1 - float((dy - slope * dx).square().sum()) / spread
    crossing = None
    if slope > 0:
        at = (math.log10(limit) - float(y.mean())) / slope + float(x.mean())
        crossing = 10.0**at if at < 300 else None
    return Growth(slope, r2, crossing)
