"""Can it still learn? Networks trained on new targets, and what old and new features serve.

``fit_gap`` is the referee: how much worse than untrained twins a network fits new functions. The
targets are residuals on what the network already says, so that the cost of unlearning its scale
does not count as lost plasticity.

Shapes: ``E`` members, ``N`` inputs, ``B`` batch rows, ``W`` outputs, ``J`` target functions, ``D``
and ``H`` widths, ``F`` folds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from supple.agents.adam import Adam
from supple.agents.nets import project_
from supple.diagnostics.reading import Interval
from supple.diagnostics.representation import RIDGE
from supple.diagnostics.views import View
from supple.errors import InputError

HARD = 0.9
"""Error of the fresh network above which a probe says nothing."""
FREE_SUPPORT = 0.8
"""Share of a critic's value range that targets may fill."""
CURVE_POINTS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """How networks are trained on new targets."""

    steps: int = 500
    batch_size: int = 256
    rate: float = 3e-4
    project: bool = False
    """Restore norms after each step, as training does."""
    residual: bool = True
    """Targets are added to what each network says at first."""


def new_targets(output_NW: Tensor, family: str) -> Tensor:
    """A target function from an untrained network: mean 0, variance 1 of each output, (N, W).

    Args:
        output_NW: what the network says of the inputs.
        family: ``smooth``, or ``hash``: the sine of 1e5 times as much, labels without relation.
    """
    value = output_NW.double()
    value = (value - value.mean(0)) / value.std(0, correction=0).clamp_min(1e-12)
    if family == "hash":
        value = torch.sin(1e5 * value)
        value = (value - value.mean(0)) / value.std(0, correction=0).clamp_min(1e-12)
    elif family != "smooth":
        raise InputError(f"families of targets are smooth and hash, got {family}")
    return value.to(output_NW.dtype)


def room_for(output_ENW: Tensor, target_NW: Tensor, scale_W: Tensor, limit: float | None) -> float:
    """What the scale of targets must be multiplied with to stay in 80 % of the value range.

    Raises:
        InputError: the values fill that already.
    """
    if limit is None:
        return 1.0
    reach = (scale_W * target_NW).abs().max()
    room = FREE_SUPPORT * limit - output_ENW.abs().max()
    if room <= 0.02 * limit:
        raise InputError(
            f"values reach {float(output_ENW.abs().max()):.3g} of a range of {limit:g}: no room"
            " for new targets; widen --agent.value-max"
        )
    return min(1.0, float(room / reach))


class Fitted(NamedTuple):
    """What became of one network on one target function."""

    error_E: Tensor
    """Mean squared error over the variance of the targets, on all inputs."""
    curve: list[tuple[int, float]]
    """(step, error, mean over members)."""


def fit(
    view: View,
    x_ND: Tensor,
    target_NW: Tensor,
    scale_W: Tensor,
    probe: Probe,
    *,
    generator: torch.Generator,
) -> Fitted:
    """Train a copy of a network on scale * target, added to what it says now.

    Args:
        view: the network; it is not changed.
        x_ND: inputs.
        target_NW: mean 0, variance 1.
        scale_W: c of each output.
        probe: how.
        generator: of batches and noise; the same numbers for every network that is compared.
    """
    learner = copy.deepcopy(view.module).requires_grad_(True)
    with torch.no_grad():
        first_ENW = view.outputs(learner, x_ND)
        base = first_ENW if probe.residual else torch.zeros_like(first_ENW)
        goal_ENW = base + scale_W * target_NW
    adam = Adam(list(learner.parameters()))
    curve = []

    @torch.no_grad()
    def error() -> Tensor:
        missed = (view.outputs(learner, x_ND) - goal_ENW) / scale_W
        return missed.square().mean((1, 2))

    for number in range(1, probe.steps + 1):
        shape = (probe.batch_size,)
        rows = torch.randint(len(x_ND), shape, generator=generator, device=x_ND.device)
        with torch.enable_grad():
            loss = view.fit_loss(learner, x_ND[rows], goal_ENW[:, rows], generator)
        adam.begin(probe.rate, number)
        gradients = torch.autograd.grad(
            loss, adam.params, allow_unused=True, materialize_grads=True
        )
        adam.step(gradients)
        if probe.project:
            project_(learner)
        if number % max(1, probe.steps // CURVE_POINTS) == 0:
            curve.append((number, float(error().mean())))
    return Fitted(error(), curve)


class Gap(NamedTuple):
    """The referee's verdict."""

    gap: float
    """0 as plastic as new, 1 nothing learned beyond the mean, below 0 better than new."""
    ci95: Interval
    error: float
    fresh_error: float


def fit_gap(errors_J: Sequence[float], fresh_JT: Tensor, generator: torch.Generator) -> Gap:
    """From the errors of a network and of untrained twins on the same target functions.

    Args:
        errors_J: of the network.
        fresh_JT: of each twin.
        generator: of the interval's resamples, over functions and twins.

    Raises:
        InputError: the twins did not learn either: the probe is too hard.
    """
    own_J = torch.tensor(list(errors_J), dtype=torch.float64)
    fresh_JT = fresh_JT.double()
    fresh = float(fresh_JT.mean())
    if fresh > HARD:
        raise InputError(
            f"untrained networks keep an error of {fresh:.2g} too: the probe is too hard, raise its"
            " steps"
        )

    def gap(of_J: Tensor, of_JT: Tensor) -> Tensor:
        return (of_J.mean() - of_JT.mean()) / (1 - of_JT.mean())

    draws = []
    functions, twins = fresh_JT.shape
    for _ in range(500):
        j, t = (
            torch.randint(count, (count,), generator=generator, device=generator.device).cpu()
            for count in (functions, twins)
        )
        draws.append(gap(own_J[j], fresh_JT[j][:, t]))
    low, high = torch.quantile(torch.stack(draws), torch.tensor([0.025, 0.975]).double()).tolist()
    return Gap(float(gap(own_J, fresh_JT)), (low, high), float(own_J.mean()), fresh)


def linear_r2(x_NH: Tensor, y_N: Tensor, episode_N: Tensor, *, folds: int = 5) -> float:
    """Share of the values' variance that a ridge readout explains on episodes it has not seen.

    Cross-validated over ``folds`` groups of episodes; each chooses its strength, from ``RIDGE``,
    by the same procedure within what it is fitted on.

    Raises:
        InputError: fewer than 8 rows per feature, fewer episodes than folds, or constant values.
    """
    rows, width = x_NH.shape
    if rows < 8 * width:
        raise InputError(f"a probe of {width} features needs {8 * width} rows, got {rows}")
    fold_N = episode_N.unique(return_inverse=True)[1] % folds
    if int(episode_N.unique().numel()) < 2 * folds:
        raise InputError(f"a probe of {folds} folds needs {2 * folds} episodes")
    x_NH, y_N = x_NH.double(), y_N.double()
    variance = y_N.var(correction=0)
    if variance == 0:
        raise InputError("a probe needs values that vary")
    missed = torch.zeros_like(y_N)
    for fold in range(folds):
        held = fold_N == fold
        inner = [other for other in range(folds) if other != fold]
        tried_S = torch.zeros(len(RIDGE), dtype=torch.float64, device=x_NH.device)
        for other in inner:
            fitted = ~held & (fold_N != other)
            left = fold_N == other
            prediction_SN = _ridge(x_NH[fitted], y_N[fitted], x_NH[left])
            tried_S += (prediction_SN - y_N[left]).square().sum(-1)
        best = int(tried_S.argmin())
        missed[held] = y_N[held] - _ridge(x_NH[~held], y_N[~held], x_NH[held])[best]
    return float(1 - missed.square().mean() / variance)


def _ridge(x_NH: Tensor, y_N: Tensor, new_MH: Tensor) -> Tensor:
    """Predictions with each strength, (S, M); the intercept is not shrunk."""
    mean_H, mean = x_NH.mean(0), y_N.mean()
    own_NH = x_NH - mean_H
    square_H, basis_HH = torch.linalg.eigh(own_NH.mT @ own_NH)
    along_H = basis_HH.mT @ (own_NH.mT @ (y_N - mean))
    ridge_S1 = square_H.mean().clamp_min(1e-300) * square_H.new_tensor(RIDGE)[:, None]
    weight_SH = (along_H / (square_H + ridge_S1)) @ basis_HH.mT
    found: Tensor = weight_SH @ (new_MH - mean_H).mT + mean
    return found


class Overwriting(NamedTuple):
    """What the features of two checkpoints, t before t', say of each other's targets."""

    reuse: float
    """How well old features serve later targets."""
    retention: float
    """Share of what old features said of old targets that new ones still say."""
    overwriting: float
    """1 - retention, within 0 to 1."""


def overwriting(own: float, reuse: float, kept: float) -> Overwriting:
    """From ``linear_r2`` of old features and targets, old to new, and new to old.

    Raises:
        InputError: old features did not express old targets in the first place.
    """
    if not own >= 0.2 or math.isnan(kept):
        raise InputError(
            f"old features explain {own:.2g} of old targets: below 0.2 nothing follows"
        )
    retention = kept / own
    return Overwriting(reuse, retention, min(max(1 - retention, 0.0), 1.0))
