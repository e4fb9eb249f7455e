"""Test-time recovery of flow critics: what integration makes of errors on the way.

Each measurement takes a velocity field, of a critic (``FlowCritic.velocity_at``) or an analytic
one, and integrates it by forward Euler from noise z_0, usually ``fixed_noise``.

Shapes: ``E`` members, ``B`` rows, ``M`` noise samples, ``K`` steps, ``T`` flow times, ``S`` numbers
of steps. Flow states and values are in scaled reward units.
Source: arXiv:2603.04333 and CMU-AIRe/floq (stale prefix, noisy targets); the rest is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from supple.agents.flow_critics import FlowCritic
from supple.errors import InputError
from supple.kernels.critic_integration import euler

Velocity = Callable[[float, Tensor], Tensor]
"""(t, z_EBM) -> v_EBM."""


def fixed_noise(critic: FlowCritic, rows: int, samples: int = 8) -> Tensor:
    """Evenly spaced noise, the same for every row and member, (1, B, M)."""
    device = next(critic.parameters()).device
    uniform_M = torch.linspace(0.01, 0.99, samples, device=device)
    return critic.noise(uniform_M).expand(1, rows, -1)


@torch.no_grad()
def injection_gain(
    velocity: Velocity, start_EBM: Tensor, shift: float, *, steps: int, done: int = 0
) -> Tensor:
    """|change of z_K| / |shift| of each trajectory: 0 forgotten, 1 kept, > 1 amplified, (E, B, M).

    Args:
        velocity: the field.
        start_EBM: noise z_0.
        shift: added to the state [scaled reward]; must keep it inside the encoding's support.
        steps: K.
        done: steps taken before the shift, below K; 0 shifts the noise itself.
    """
    if not (0 <= done < steps and shift):
        raise InputError(f"a shift != 0 after 0 to {steps - 1} steps, got {shift} after {done}")
    at = _on_grid(velocity, steps)

    def shifting(k: int, z_EBM: Tensor) -> Tensor:
        # The velocity that carries a state ``shift`` too far in one step.
        return at(k, z_EBM) + (steps * shift if k == done - 1 else 0)

    begin_EBM = start_EBM + shift if done == 0 else start_EBM
    moved_EBM = euler(shifting, begin_EBM, steps)[-1] - euler(at, start_EBM, steps)[-1]
    return moved_EBM.abs() / abs(shift)


@torch.no_grad()
def velocity_corruption(
    velocity: Velocity,
    start_EBM: Tensor,
    *,
    steps: int,
    strength: float,
    generator: torch.Generator,
) -> Tensor:
    """RMS change of z_K with noise on the first 1 ... K velocities, over that with all, (K, E).

    Args:
        velocity: the field.
        start_EBM: noise z_0.
        steps: K.
        strength: standard deviation of the noise, relative to the member's RMS velocity.
        generator: draws it; what a step gets does not depend on how many steps get any.
    """
    at = _on_grid(velocity, steps)
    *before, clean_EBM = euler(at, start_EBM, steps)
    velocity_KEBM = torch.stack([at(k, z_EBM) for k, z_EBM in enumerate(before)])
    size_E11 = velocity_KEBM.square().mean((0, 2, 3)).sqrt()[:, None, None]
    normal_KEBM = torch.empty_like(velocity_KEBM).normal_(generator=generator)
    noise_KEBM = strength * size_E11 * normal_KEBM

    def change(corrupted: int) -> Tensor:
        def noisy(k: int, z_EBM: Tensor) -> Tensor:
            return at(k, z_EBM) + (noise_KEBM[k] if k < corrupted else 0)

        return (euler(noisy, start_EBM, steps)[-1] - clean_EBM).square().mean((1, 2)).sqrt()

    changes_KE = torch.stack([change(corrupted) for corrupted in range(1, steps + 1)])
    return _relative_to_last(changes_KE, "noise on all velocities changes nothing: raise strength")


@torch.no_grad()
def stale_prefix(fresh: Velocity, stale: Velocity, start_EBM: Tensor, *, steps: int) -> Tensor:
    """What is left at z_K of the first j steps made by an old field, the others by the new one.

    Returns:
        mean|z_K - fresh z_K| / mean|stale z_K - fresh z_K| for j = 0 ... K, (K + 1, E): from 0 to
        1, and j/K where nothing recovers.
    """
    old, new = _on_grid(stale, steps), _on_grid(fresh, steps)
    fresh_EBM = euler(new, start_EBM, steps)[-1]

    def error(j: int) -> Tensor:
        mixed = euler(lambda k, z_EBM: (old if k < j else new)(k, z_EBM), start_EBM, steps)
        return (mixed[-1] - fresh_EBM).abs().mean((1, 2))

    errors_KE = torch.stack([error(j) for j in range(steps + 1)])
    return _relative_to_last(errors_KE, "stale and fresh field read the same values")


def recovery_index(curve_KE: Tensor) -> Tensor:
    """How far a ``stale_prefix`` curve lies below j/K: 1 full recovery, 0 none, < 0 worse, (E,)."""
    if len(curve_KE) < 3:
        raise InputError(f"a recovery index needs K >= 2 steps, got {len(curve_KE) - 1}")
    # The ends are 0 and 1 whatever the fields; between them j/K is 1/2 on average.
    return 1 - 2 * curve_KE[1:-1].mean(0)


class StepSweep(NamedTuple):
    """One field read with several numbers of steps; errors are root mean squares over rows."""

    value_SEB: Tensor
    """Mean over noise."""
    error_SE: Tensor
    """To the true values."""
    coarseness_SE: Tensor
    """To the readout with the most steps."""


@torch.no_grad()
def step_sweep(
    velocity: Velocity,
    start_EBM: Tensor,
    truth_B: Tensor,
    *,
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
    finest: int = 64,
) -> StepSweep:
    """Read with each of ``counts`` steps, and with ``finest`` to stand for the exact flow."""

    def read(steps: int) -> Tensor:
        return euler(_on_grid(velocity, steps), start_EBM, steps)[-1].mean(-1)

    value_SEB = torch.stack([read(steps) for steps in counts])
    errors = [(value_SEB - right).square().mean(-1).sqrt() for right in (truth_B, read(finest))]
    return StepSweep(value_SEB, *errors)


class Slopes(NamedTuple):
    """dv/dz on trajectories, by flow time."""

    slope_TEBM: Tensor
    contraction_TE: Tensor
    """Mean of -(1 - t) dv/dz: 1 where the field points at one value, 0 where it ignores z."""
    expanding_TE: Tensor
    """Share of positive slopes."""


def slopes(
    velocity: Velocity, start_EBM: Tensor, *, steps: int, times: Sequence[float] | None = None
) -> Slopes:
    """How the velocity changes with the state, where K Euler steps lead.

    Args:
        velocity: the field.
        start_EBM: noise z_0.
        steps: K.
        times: in [0, 1); without, the left ends k/K. States between them are interpolated.
    """
    times = [k / steps for k in range(steps)] if times is None else times
    if not all(0 <= t < 1 for t in times):
        raise InputError(f"flow times must be in [0, 1), got {list(times)}")
    with torch.no_grad():
        states = euler(_on_grid(velocity, steps), start_EBM, steps)
        states[0] = start_EBM.expand_as(states[-1])

    def at(t: float) -> Tensor:
        k = int(t * steps)
        z_EBM = torch.lerp(states[k], states[k + 1], t * steps - k).requires_grad_()
        with torch.enable_grad():
            # A field may ignore the state; 0 z gives it a gradient all the same.
            total = (velocity(t, z_EBM) + 0 * z_EBM).sum()
        return torch.autograd.grad(total, z_EBM)[0]

    slope_TEBM = torch.stack([at(t) for t in times])
    left_T1 = 1 - slope_TEBM.new_tensor(times)[:, None]
    expanding_TE = (slope_TEBM > 0).to(slope_TEBM.dtype).mean((2, 3))
    return Slopes(slope_TEBM, -left_T1 * slope_TEBM.mean((2, 3)), expanding_TE)


def noisy_target(
    target_B: Tensor, members: int, largest: float, generator: torch.Generator
) -> Tensor:
    """Targets with uniform noise in [-largest, largest], one draw per member and row, (E, B).

    A scalar critic's loss takes them so, a flow critic's as (E, B, 1). Deviation: CMU-AIRe/floq
    draws once per noise sample for flows only, which averages most of the noise away.
    """
    uniform_EB = target_B.new_empty(members, len(target_B)).uniform_(-1, 1, generator=generator)
    return target_B + largest * uniform_EB


def _on_grid(velocity: Velocity, steps: int) -> Callable[[int, Tensor], Tensor]:
    if steps < 1:
        raise InputError(f"a flow takes at least 1 step, got {steps}")
    return lambda k, z_EBM: velocity(k / steps, z_EBM)


def _relative_to_last(errors_KE: Tensor, undefined: str) -> Tensor:
    if not errors_KE[-1].all():
        raise InputError(undefined)
    return errors_KE / errors_KE[-1]
