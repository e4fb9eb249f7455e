"""Flow critics: is the flow curved, fine enough, forgiving, and free of its noise at the end?

What integration makes of errors in more detail is in ``recovery.py``.

Shapes: ``E`` members, ``B`` rows, ``M`` noise samples, ``K`` steps, ``R`` uniform
numbers per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.diagnostics.recovery import Velocity, injection_gain
from supple.errors import InputError
from supple.kernels.critic_integration import euler

FINE = 64
"""Steps of a path whose shape is measured."""
TIME_BINS = 8
"""Of flow time, by which the loss is told apart."""


@torch.no_grad()
def straightness(velocity: Velocity, start_EBM: Tensor) -> Tensor:
    """E of the integral of |v - (z_1 - z_0)|^2 over E |z_1 - z_0|^2, (E,).

    0: the path is straight, of a network that ignores time and state and has become a critic of one
    pass, or of one that points at its target all the way: ``recovery`` tells them apart. On the
    path of many steps by the mid-point rule.

    Raises:
        InputError: the flow carries nothing anywhere.
    """
    state, velocities = start_EBM, []
    for k in range(FINE):
        middle = state + velocity(k / FINE, state) / (2 * FINE)
        velocities.append(velocity((k + 0.5) / FINE, middle))
        state = state + velocities[-1] / FINE
    change_EBM = state - start_EBM
    length_E = change_EBM.square().mean((1, 2))
    if not length_E.all():
        raise InputError("the flow does not move: its straightness is undefined")
    missed = [(each - change_EBM).square().mean((1, 2)) for each in velocities]
    return torch.stack(missed).mean(0) / length_E


@torch.no_grad()
def coarseness(value_EBM: Tensor, fine_EBM: Tensor) -> Tensor:
    """Mean |difference| of values read with K and with 4 K steps, over their deviation, (E,).

    Args:
        value_EBM: with K steps.
        fine_EBM: with 4 K, from the same noise.
    """
    mean_EB, fine_EB = value_EBM.mean(-1), fine_EBM.mean(-1)
    return (mean_EB - fine_EB).abs().mean(-1) / _deviation(fine_EB)


@torch.no_grad()
def recovery(
    velocity: Velocity, start_EBM: Tensor, shift: float, *, steps: int, done: int
) -> Tensor:
    """What is left of an error put into the state after ``done`` of ``steps`` steps, (E,).

    Below 1 later steps damp earlier errors, at 1 they keep them, above they amplify them. The mean
    over both signs of the error.
    """
    both = [
        injection_gain(velocity, start_EBM, sign * shift, steps=steps, done=done)
        for sign in (1.0, -1.0)
    ]
    return torch.stack(both).mean((0, 2, 3))


@torch.no_grad()
def endpoint_error(velocity: Velocity, start_EBM: Tensor, end_BM: Tensor) -> Tensor:
    """Root mean square of z_0 + v(0, z_0) - y, (E,): sigma_res.

    At its start a field that fits points at the mean target: what is left is the targets' own
    spread at a state and action, and the error of the fit.

    Args:
        velocity: the field.
        start_EBM: noise z_0.
        end_BM: targets y.
    """
    return (start_EBM + velocity(0.0, start_EBM) - end_BM).square().mean((1, 2)).sqrt()


@torch.no_grad()
def loss_by_time(velocity: Velocity, start_EBM: Tensor, end_BM: Tensor) -> Tensor:
    """Mean (v - (y - z_0))^2 in the middle of each bin of flow time, (TIME_BINS, E)."""
    goal = end_BM - start_EBM
    times = [(k + 0.5) / TIME_BINS for k in range(TIME_BINS)]
    missed = [velocity(t, start_EBM + t * goal) - goal for t in times]
    return torch.stack([each.square().mean((1, 2)) for each in missed])


def in_time_bin(uniform_BR: Tensor, low: float, high: float) -> Tensor:
    """A flow loss's uniform numbers, their half that is flow times moved into [low, high)."""
    noise_BM, t_BM = uniform_BR.chunk(2, dim=-1)
    return torch.cat((noise_BM, low + (high - low) * t_BM), dim=-1)


@torch.no_grad()
def outside_share(
    velocity: Velocity, start_EBM: Tensor, low: float, high: float, *, steps: int
) -> Tensor:
    """Share of the states z_1 ... z_K that lie outside [low, high], (E,)."""
    state_KEBM = torch.stack(euler(lambda k, z: velocity(k / steps, z), start_EBM, steps)[1:])
    return ((state_KEBM < low) | (state_KEBM > high)).double().mean((0, 2, 3))


def noise_share(value_EBM: Tensor) -> Tensor:
    """Variance over noise over that between rows, (E,): 0 for a flow that forgot its noise.

    Raises:
        InputError: one noise sample, or values do not vary between rows.
    """
    if value_EBM.shape[-1] < 2:
        raise InputError("the share of noise needs at least 2 noise samples per row")
    return value_EBM.var(-1).mean(-1) / _deviation(value_EBM.mean(-1)).square()


def noise_consistency(first_EBM: Tensor, second_EBM: Tensor, independent_EBM: Tensor) -> Tensor:
    """How alike two flows respond to the same noise: 1 identical, 0 unrelated, (E,).

    Source: adapted from Briq et al., 2026; the formula is our own.

    Args:
        first_EBM: values of one flow.
        second_EBM: of another from the same noise.
        independent_EBM: of the other from noise of its own.

    Raises:
        InputError: nothing of the noise is left to compare.
    """
    if bool((noise_share(first_EBM) < 1e-3).any()):
        raise InputError("less than 0.001 of the values' variance is noise: nothing to compare")
    first, second, independent = (
        each - each.mean(-1, keepdim=True) for each in (first_EBM, second_EBM, independent_EBM)
    )
    same_E = (first - second).square().mean((1, 2))
    other_E = (first - independent).square().mean((1, 2))
    return 1 - same_E / other_E


def _deviation(value_EB: Tensor) -> Tensor:
    deviation_E = value_EB.std(-1)
    if not deviation_E.all():
        raise InputError("values are the same in every row: nothing to compare with")
    return deviation_E
