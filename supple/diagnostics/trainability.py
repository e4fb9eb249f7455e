"""Can it still learn? Networks trained on new targets, and what old and new features serve.

``fit_gap`` is the referee: how much worse than untrained twins a network fits new functions. The
targets are residuals on what the network already says, so that the cost of unlearning its scale
does not count as lost plasticity.

Shapes: ``E`` members, ``N`` inputs, ``B`` batch rows, ``W`` outputs, ``J`` target functions, ``C``
networks that are compared, ``T`` of them untrained, ``P`` points of a curve, ``D`` and ``H``
widths, ``S`` ridge strengths.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from supple.agents.adam import Adam
from supple.agents.nets import project_
from supple.diagnostics.reading import Interval, require_rows_of
from supple.diagnostics.views import View
from supple.errors import InputError

HARD = 0.9
"""Error of the fresh network above which a probe says nothing."""
FREE_SUPPORT = 0.8
"""Share of a critic's value range that targets may fill."""
CURVE_POINTS, CURVE_ROWS = 10, 512
RIDGE = tuple(10.0**exponent for exponent in range(-6, 1))
"""Strengths tried, relative to the mean sum of squares of a feature."""
FOLDS = 5


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
    """What became of the networks on each target function."""

    error_JCE: Tensor
    """Mean squared error over the variance of the targets, on all inputs."""
    steps: list[int]
    """Where the curve has its points."""
    curve_JCP: Tensor
    """Errors after those steps on some of the inputs, mean over members."""


class _Applied(nn.Module):
    """Lets ``functional_call`` substitute a network's tensors in any function of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Any], *arguments: Tensor) -> Any:
        return function(self.network, *arguments)


class _Copies:
    """Copies of networks of one kind that learn side by side, as one batched network.

    Every operation is started once for all K = J C copies, and the products are larger.

    Args:
        networks: C of them; they are not changed.
        functions: J, how many copies of each.
    """

    def __init__(self, networks: Sequence[nn.Module], functions: int) -> None:
        self._applied = _Applied(copy.deepcopy(networks[0]))

        def side_by_side(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {
                f"network.{name}": torch.stack([each[name].detach() for each in found] * functions)
                for name in found[0]
            }

        self._weights = side_by_side([dict(each.named_parameters()) for each in networks])
        self._statistics = side_by_side([dict(each.named_buffers()) for each in networks])
        self.parameters = [value.requires_grad_(True) for value in self._weights.values()]

    def map(self, function: Callable[..., Any], *arguments: Tensor, at_once: bool = True) -> Any:
        """``function(network, *arguments)`` of every copy; arguments and result are (K, ...)."""

        def one(tensors: dict[str, Tensor], *own: Tensor) -> Any:
            return functional_call(self._applied, tensors, (function, *own))

        mapped = torch.vmap(one, chunk_size=None if at_once else 1)
        return mapped({**self._weights, **self._statistics}, *arguments)

    def project_(self) -> None:
        """Restore every norm of every copy, in place."""

        def projected(network: nn.Module) -> Tensor:
            project_(network)
            return torch.zeros(())  # a mapped function must return something

        self.map(projected)


def fit(
    views: Sequence[View],
    x_ND: Tensor,
    target_JNW: Tensor,
    scale_JW: Tensor,
    probe: Probe,
    *,
    generators: Sequence[torch.Generator],
) -> Fitted:
    """Train copies of networks of one kind on scale * target, added to what each says now.

    Args:
        views: the C networks; they are not changed.
        x_ND: inputs.
        target_JNW: mean 0, variance 1.
        scale_JW: c of each output.
        probe: how.
        generators: of batches and noise of each function, the same for all networks.
    """
    view, functions, networks = views[0], len(target_JNW), len(views)
    copies = _Copies([each.module for each in views], functions)

    def of_each(value_J: Tensor) -> Tensor:
        return value_J.repeat_interleave(networks, 0)

    def outputs(x_MD: Tensor) -> Tensor:
        # Many rows are work enough for one copy at a time.
        found: Tensor = copies.map(lambda network: view.outputs(network, x_MD), at_once=False)
        return found

    scale_K11W = of_each(scale_JW)[:, None, None]
    with torch.no_grad():
        goal_KENW = probe.residual * outputs(x_ND) + scale_K11W * of_each(target_JNW)[:, None]

    @torch.no_grad()
    def error(every: int = 1) -> Tensor:
        missed = (outputs(x_ND[::every]) - goal_KENW[:, :, ::every]) / scale_K11W
        found: Tensor = missed.square().mean((2, 3)).unflatten(0, (functions, networks))
        return found

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (probe.batch_size,)
        rows_B = torch.randint(len(x_ND), shape, generator=generator, device=x_ND.device)
        return rows_B, view.fit_noise(probe.batch_size, generator)

    def loss(network: nn.Module, goal_ENW: Tensor, rows_B: Tensor, noise_BR: Tensor) -> Tensor:
        return view.fit_loss(network, x_ND[rows_B], goal_ENW[:, rows_B], noise_BR)

    adam = Adam(copies.parameters)
    steps, curve = [], []
    for number in range(1, probe.steps + 1):
        draws = [draw(generator) for generator in generators]
        drawn = (of_each(torch.stack(part)) for part in zip(*draws, strict=True))
        with torch.enable_grad():
            loss_K = copies.map(loss, goal_KENW, *drawn)
        adam.begin(probe.rate, number)
        gradients = torch.autograd.grad(
            loss_K.sum(), adam.params, allow_unused=True, materialize_grads=True
        )
        adam.step(gradients)
        if probe.project:
            copies.project_()
        if number % max(1, probe.steps // CURVE_POINTS) == 0:
            steps.append(number)
            curve.append(error(max(1, len(x_ND) // CURVE_ROWS)).mean(-1))
    return Fitted(error(), steps, torch.stack(curve, dim=-1))


class Gap(NamedTuple):
    """The referee's verdict."""

    gap: float
    """0 as plastic as new, 1 nothing learned beyond the mean, below 0 better than new."""
    ci95: Interval
    error: float
    fresh_error: float


def fit_gap(error_J: Tensor, fresh_JT: Tensor, generator: torch.Generator) -> Gap:
    """From the errors of a network and of untrained twins on the same target functions.

    Args:
        error_J: of the network.
        fresh_JT: of each twin.
        generator: of the interval's resamples, over functions and twins.

    Raises:
        InputError: the twins did not learn either: the probe is too hard.
    """
    own_J, fresh_JT = error_J.double(), fresh_JT.double()
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


def linear_r2(x_NH: Tensor, y_N: Tensor, episode_N: Tensor) -> float:
    """Share of the values' variance that a ridge readout explains on episodes it has not seen.

    Cross-validated over ``FOLDS`` groups of episodes; each chooses its strength, from ``RIDGE``,
    by the same procedure within what it is fitted on.

    Raises:
        InputError: fewer than 2 rows per feature, fewer episodes than folds, or constant values.
    """
    rows, width = x_NH.shape
    require_rows_of(f"a probe of {width} features", rows, width)
    fold_N = episode_N.unique(return_inverse=True)[1] % FOLDS
    if int(episode_N.unique().numel()) < 2 * FOLDS:
        raise InputError(f"a probe of {FOLDS} folds needs {2 * FOLDS} episodes")
    x_NH, y_N = x_NH.double(), y_N.double()
    variance = y_N.var(correction=0)
    if variance == 0:
        raise InputError("a probe needs values that vary")
    missed = torch.zeros_like(y_N)
    for fold in range(FOLDS):
        held = fold_N == fold
        inner = [other for other in range(FOLDS) if other != fold]
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
