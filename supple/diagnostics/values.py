"""Is the value right? Returns against predictions, bootstrapping, the categorical support.

Shapes: ``T`` steps of whole episodes one after another, ``E`` members, ``N`` rows, ``K`` atoms,
``n`` pairs. Values are in the critic's own units: scaled, and soft where the critic is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from supple.diagnostics.linalg import rank_correlation
from supple.errors import InputError

NEGLIGIBLE = 0.01
"""Discount of what may be left out behind a truncated episode's last usable step."""


def horizon_of(gamma: float) -> int:
    """Steps after which less than 1 % of a reward counts."""
    return math.ceil(math.log(NEGLIGIBLE) / math.log(gamma) - 1e-9)


class Returns(NamedTuple):
    """What really followed each step."""

    return_T: Tensor
    """Discounted, float64."""
    usable_T: Tensor
    """Steps whose return is complete, or complete but for 1 %."""
    bootstrapped: bool
    """Too few steps were complete: the critic's own value stands for what follows the truncations,
    which hides part of its bias."""


def soft_returns(
    reward_T: Tensor,
    cost_T: Tensor,
    episode_T: Tensor,
    terminated_T: Tensor,
    gamma: float,
    tail_T: Tensor | None = None,
    *,
    n_step: int = 1,
    least_episodes: int = 1,
) -> Returns:
    """r_t + sum over k >= 1 of gamma^k (r_{t+k} - cost_{t+k}), a cost only every ``n_step`` steps.

    A critic of (s_t, a_t) takes the action as given: its own entropy does not count, nor does
    that of the steps its targets sum rewards over.

    Args:
        reward_T: in the critic's units.
        cost_T: alpha * log-probability of each action; 0 without an entropy bonus.
        episode_T: episode of each step, steps in order, episodes one after another.
        terminated_T: true ends; an episode that ends otherwise was truncated.
        gamma: discount.
        tail_T: value of the state behind each step, its entropy bonus included; used where too
            few episodes are complete or long enough.
        n_step: rewards that the critic's targets sum.
        least_episodes: so many have to be.

    Raises:
        InputError: too many episodes were truncated early, and there is no ``tail_T``.
    """
    last_T = torch.ones_like(terminated_T)
    last_T[:-1] = episode_T[1:] != episode_T[:-1]
    left_T = _steps_left(last_T)
    ends_T = _at_end(terminated_T, last_T)
    usable_T = ends_T | (left_T >= horizon_of(gamma))
    complete = len(episode_T[usable_T].unique())
    bootstrapped = complete < least_episodes
    if bootstrapped and tail_T is None:
        raise InputError(
            f"all but {complete} episodes were truncated within {horizon_of(gamma)} steps, too"
            f" early for gamma {gamma}: give longer episodes"
        )
    rewards, costs = reward_T.double().tolist(), cost_T.double().tolist()
    tails = (
        tail_T.double().tolist() if bootstrapped and tail_T is not None else [0.0] * len(rewards)
    )
    stops, real_ends = last_T.tolist(), terminated_T.tolist()
    found, charged = [0.0] * len(rewards), [0.0] * len(rewards)
    left = left_T.tolist()
    for t in range(len(rewards) - 1, -1, -1):
        if stops[t]:
            found[t] = rewards[t] + (0.0 if real_ends[t] else gamma * tails[t])
            continue
        if left[t] > n_step:
            charged[t] = gamma**n_step * (costs[t + n_step] + charged[t + n_step])
        found[t] = rewards[t] + gamma * found[t + 1]
    found = [value - cost for value, cost in zip(found, charged, strict=True)]
    if bootstrapped:
        usable_T = torch.ones_like(usable_T)
    returns_T = torch.tensor(found, dtype=torch.float64, device=reward_T.device)
    return Returns(returns_T, usable_T, bootstrapped)


def _steps_left(last_T: Tensor) -> Tensor:
    """Steps of the episode from each on, itself included."""
    place = torch.arange(len(last_T), device=last_T.device)
    end_T = torch.where(last_T, place, len(last_T)).flip(0).cummin(0).values.flip(0)
    return end_T - place + 1


def _at_end(flag_T: Tensor, last_T: Tensor) -> Tensor:
    """The flag of each step's last step."""
    place = torch.arange(len(last_T), device=last_T.device)
    return flag_T[place + _steps_left(last_T) - 1]


class Bias(NamedTuple):
    """Errors of predictions, all 0-d."""

    bias: Tensor
    """Mean of prediction minus return."""
    norm: Tensor
    """Over |mean return| (Chen et al., 2021), or over the deviation where that is near 0."""
    spread: Tensor
    """Standard deviation of the error, likewise."""
    rank: Tensor
    """Spearman's correlation of predictions and returns."""
    slope: Tensor
    """Of returns on predictions: 1 where the critic's scale is right."""
    by_deviation: bool
    """Whether ``norm`` and ``spread`` are over the returns' deviation."""


def value_bias(value_T: Tensor, return_T: Tensor, *, by_deviation: bool | None = None) -> Bias:
    """How predictions relate to returns.

    Args:
        value_T: predictions.
        return_T: what really followed.
        by_deviation: what errors are read against; None takes the mean unless that is near 0.

    Raises:
        InputError: fewer than two rows, others than a prediction for each return, or returns are
            all alike.
    """
    value_T, return_T = value_T.double(), return_T.double()
    if value_T.dim() != 1 or value_T.shape != return_T.shape:
        raise InputError(
            "value bias needs predictions and returns of one shape (T,), got"
            f" {tuple(value_T.shape)} and {tuple(return_T.shape)}: squeeze them, a member at a time"
        )
    if len(return_T) < 2:
        raise InputError("value bias needs at least two steps with a complete return")
    error_T = value_T - return_T
    mean, deviation = return_T.mean().abs(), return_T.std()
    if by_deviation is None:
        by_deviation = bool(mean < 0.1 * deviation)
    scale = deviation if by_deviation else mean
    if scale == 0:
        raise InputError("value bias relative to returns that are all 0 is undefined")
    moved = value_T - value_T.mean()
    variance = moved.square().mean()
    covariance = (moved * (return_T - return_T.mean())).mean()
    slope = covariance / variance if variance > 0 else torch.full_like(variance, math.nan)
    varies = bool(value_T.std() > 0) and bool(return_T.std() > 0)
    rank = rank_correlation(value_T, return_T) if varies else torch.full_like(variance, math.nan)
    bias = error_T.mean()
    return Bias(bias, bias / scale, error_T.std() / scale, rank, slope, by_deviation)


class Excitation(NamedTuple):
    """Whether bootstrapping amplifies value errors, per member."""

    seem_E: Tensor
    """Largest real part of an eigenvalue, over the number of parameters."""
    norm_E: Tensor
    """The same over the matrix's Frobenius norm: comparable between networks, -1 to 1."""


def self_excitation(
    own_Enn: Tensor, cross_Enn: Tensor, gamma: float, parameters: int
) -> Excitation:
    """Of gamma J(X') J(X)^T - J(X) J(X)^T (Yue et al., 2023).

    Args:
        own_Enn: gradients of Q at the pairs X with each other.
        cross_Enn: gradients at the next pairs X', rows, with those at X; 0 behind terminal ones.
        gamma: discount.
        parameters: of one member.

    Raises:
        InputError: no parameter moves any value, or gradients are not finite.
    """
    matrix = (gamma * cross_Enn - own_Enn).double() / parameters
    norm_E = torch.linalg.matrix_norm(matrix)
    if not norm_E.isfinite().all():  # LAPACK may end the process where it is given NaN
        raise InputError("gradients of values are not finite: self-excitation is undefined")
    if not norm_E.all():
        raise InputError("no parameter moves a value: self-excitation is undefined")
    seem_E = torch.linalg.eigvals(matrix).real.amax(-1)
    return Excitation(seem_E, seem_E / norm_E)


class Support(NamedTuple):
    """How predictions and targets use the atoms of a categorical critic, 0-d."""

    edge: Tensor
    """Mean predicted mass on the two outermost atoms."""
    use: Tensor
    """5th to 95th percentile of values over the width of the support."""
    resolution: Tensor
    """Mean standard deviation of targets over the distance of atoms."""


def support_use(probability_NK: Tensor, target_NK: Tensor, atoms_K: Tensor) -> Support:
    """Of one member's predictions, or of all their rows together."""
    value_N = (probability_NK @ atoms_K).double()
    low, high = torch.quantile(value_N, value_N.new_tensor([0.05, 0.95]))
    width = float(atoms_K[-1] - atoms_K[0])
    mean_N1 = (target_NK @ atoms_K)[:, None]
    deviation_N = (target_NK * (atoms_K - mean_N1).square()).sum(-1).sqrt()
    edge = (probability_NK[:, 0] + probability_NK[:, -1]).mean()
    spacing = width / (len(atoms_K) - 1)
    return Support(edge, (high - low) / width, deviation_N.mean() / spacing)
