"""How a policy's decision moves with what it observes, state by state.

Every kind of decision gives one *factor* R per state. Its sensitivity matrix is M = R^T R, and all
that follows from it (``directions.py``) is the same for every kind. Rows of R are derivatives: the
unit of the decision per unit of each observation channel.

========= ==================================================== =====================================
mode      rows of R                                            what counts as another decision
========= ==================================================== =====================================
choice    gradient of -log softmax(logits / T) at the choice   the favoured choice loses probability
action    Jacobian of the command, in half ranges              the command leaves a ball
fisher    those of the mean / std, and sqrt(2) those of        the distribution moves: divergence
          log std, before squashing                            v^T M v / 2 to second order
critic    as choice, of Q over actions held fixed              the critic prefers another action
========= ==================================================== =====================================

Shapes: ``N`` states, ``D`` observation width, ``H`` memory, ``A`` actions, ``C`` choices, ``J``
held actions, ``R`` rows of a factor, ``W`` outputs of a function.
Source: the choice mode is the published method, Korkmaz 2024, arXiv:2406.16979, as its abstract and
quoted passages say it (the gradient is not scaled to unit length); the others are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from supple.errors import InputError

Function = Callable[..., Tensor]
"""Raw observations (N, D), and tensors held fixed, (N, ...) each, to numbers (N, W)."""
CHUNK = 4096
"""States whose derivatives are taken at once."""
JITTERS, JITTER = 8, 0.01
"""Points that ``smoothed`` averages over, and how far they lie [standard deviations]."""


def jacobian(function: Function, obs_ND: Tensor, *held: Tensor) -> Tensor:
    """Derivatives of a function by the observation of every state, (N, W, D).

    Args:
        function: of each state on its own: batch norms must use recorded statistics.
        obs_ND: raw observations.
        held: what else it takes, not differentiated (a recurrent policy's memory).
    """
    parts = [
        _jacobian(function, obs_ND[first : first + CHUNK], [h[first : first + CHUNK] for h in held])
        for first in range(0, len(obs_ND), CHUNK)
    ]
    return torch.cat(parts)


def _jacobian(function: Function, obs_ND: Tensor, held: list[Tensor]) -> Tensor:
    obs_ND = obs_ND.detach().requires_grad_()
    with torch.enable_grad():
        # A function may ignore its input; 0 x gives it a gradient all the same.
        out_NW = function(obs_ND, *held) + 0 * obs_ND.sum(-1, keepdim=True)
    rows = [
        torch.autograd.grad(out_NW[:, w].sum(), obs_ND, retain_graph=True)[0]
        for w in range(out_NW.shape[1])
    ]
    return torch.stack(rows, dim=1)


def choice_factor(
    logits: Function, obs_ND: Tensor, *held: Tensor, temperature: float = 1.0
) -> Tensor:
    """Gradient of the cross-entropy between the choice held at a state and the moved policy.

    Args:
        logits: (N, D) to (N, C): of a policy, or action values.
        obs_ND: raw observations.
        held: see ``jacobian``.
        temperature: T; 1 for policies and as published. Large action values saturate the softmax,
            and only states near a tie count then: ``typical_spread`` compares such agents fairly.

    Returns:
        (N, 1, D), rank one.
    """

    def cost(x_ND: Tensor, *held: Tensor) -> Tensor:
        log_NC = torch.log_softmax(logits(x_ND, *held) / temperature, dim=-1)
        return -log_NC.gather(-1, log_NC.argmax(-1, keepdim=True))

    return jacobian(cost, obs_ND, *held)


@torch.no_grad()
def typical_spread(logits: Function, obs_ND: Tensor, *held: Tensor) -> float:
    """Mean over states of the standard deviation over choices."""
    return float(logits(obs_ND, *held).std(-1).mean())


def information_factor(logits: Function, obs_ND: Tensor, *held: Tensor) -> Tensor:
    """Fisher information of a categorical policy: rows sqrt(p_a) d log p_a, (N, C, D)."""

    def log_policy(x_ND: Tensor, *held: Tensor) -> Tensor:
        return torch.log_softmax(logits(x_ND, *held), dim=-1)

    with torch.no_grad():
        weight_NC1 = (log_policy(obs_ND, *held) / 2).exp().unsqueeze(-1)
    return weight_NC1 * jacobian(log_policy, obs_ND, *held)


def boundary_distance(z_NC: Tensor, slope_NCD: Tensor) -> Tensor:
    """How far the nearest other choice is, to first order, (N,) [standard deviations].

    Args:
        z_NC: logits or values of C >= 2 choices.
        slope_NCD: their derivatives per standard deviation of each channel.
    """
    best_N1 = z_NC.argmax(-1, keepdim=True)
    margin_NC = z_NC.gather(-1, best_N1) - z_NC
    index_N1D = best_N1.unsqueeze(-1).expand(-1, -1, slope_NCD.shape[-1])
    steepness_NC = (slope_NCD.gather(1, index_N1D) - slope_NCD).norm(dim=-1)
    distance_NC = torch.where(steepness_NC > 0, margin_NC / steepness_NC, math.inf)
    return distance_NC.scatter(-1, best_N1, math.inf).amin(-1)


def fisher_factor(gaussian: Function, obs_ND: Tensor, *held: Tensor) -> Tensor:
    """Of a diagonal Gaussian before squashing, which drops out of the divergence, (N, 2 A, D).

    Args:
        gaussian: (N, D) to means and log standard deviations side by side, (N, 2 A).
        obs_ND: raw observations.
        held: see ``jacobian``.
    """
    with torch.no_grad():
        log_std_NA = gaussian(obs_ND, *held).chunk(2, dim=-1)[1]
    mean_NAD, spread_NAD = jacobian(gaussian, obs_ND, *held).chunk(2, dim=1)
    return torch.cat((mean_NAD * (-log_std_NA).exp().unsqueeze(-1), math.sqrt(2) * spread_NAD), 1)


def over_candidates(value: Function) -> Function:
    """Values (N, J) of held actions (N, J, A) from a function of observation and one action."""

    def values(obs_ND: Tensor, held_NJA: Tensor) -> Tensor:
        states, count = held_NJA.shape[:2]
        return value(obs_ND.repeat_interleave(count, 0), held_NJA.flatten(0, 1)).view(states, count)

    return values


def candidate_slopes(value: Function, obs_ND: Tensor, held_NJA: Tensor) -> Tensor:
    """Derivatives of each held action's value, (N, J, D): every pair is a row of its own."""
    states, count = held_NJA.shape[:2]
    pairs = (obs_ND.repeat_interleave(count, 0), held_NJA.flatten(0, 1))
    slope = jacobian(lambda obs, action: value(obs, action).unsqueeze(-1), *pairs)
    return slope.view(states, count, -1)


def smoothed(
    factor: Callable[[Tensor], Tensor],
    obs_ND: Tensor,
    scale_D: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Mean factor over points close by: what kinks (ReLU) leave of it, (N, R, D)."""
    total = torch.zeros(())
    for _ in range(JITTERS):
        noise_ND = torch.randn(obs_ND.shape, generator=generator, device=obs_ND.device)
        total = total + factor(obs_ND + JITTER * scale_D * noise_ND)
    return total / JITTERS


def require_reads_mean(factor: Callable[[Function, Tensor], Tensor]) -> None:
    """Refuse a measure to which a policy of fixed spread looks perfectly steady.

    The published cost, carried over literally, is one: the density of the held mode action has a
    gradient of sum d log std, and the mean drops out of it to first order.

    Args:
        factor: from a Gaussian (see ``fisher_factor``) and states to (N, R, D).

    Raises:
        InputError: it gives the same for a policy and for one that reacts twice as strongly.
    """
    obs_ND = torch.tensor([[0.2, -0.1], [-0.3, 0.4]])
    gain_DA = torch.tensor([[1.0, 0.0], [0.5, 2.0]])

    def reacting(times: float) -> Function:
        return lambda x_ND: torch.cat((times * x_ND @ gain_DA, torch.zeros_like(x_ND)), -1)

    once, twice = (factor(reacting(times), obs_ND) for times in (1.0, 2.0))
    if torch.allclose(once, twice):
        raise InputError(
            "this measure does not see the mean action: it calls every policy of fixed spread"
            " steady; take the modes action, fisher or critic"
        )
