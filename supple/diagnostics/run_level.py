"""Was training steady? Series of evaluation returns, and sensitivity to the learning rate.

Source: adapted from De Lange et al., 2023 (stability gap); Wortsman et al., 2023.
Shapes: ``n`` evaluations in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from supple.diagnostics.reading import Reading, reading, undefined
from supple.errors import InputError

WINDOWS = (10, 100)
"""Evaluations of a window."""
FLOORS = ((10, 4.17), (20, 4.78), (50, 5.42), (100, 5.87))
"""95 % quantile of the largest drawdown of so many evaluations of constant performance with
independent noise of deviation 1 [simulated, Gaussian]."""
LEARNED = 0.9
"""Share of the learned range from which a task counts as learned."""
RECOVERED = 0.95
LEAST_RATES, LEAST_DECADES = 5, 2
"""Of a grid of learning rates that says anything of the sensitivity to them."""


class Drawdown(NamedTuple):
    """The deepest fall below the best so far."""

    depth: float
    peak: int
    """Last evaluation with the best return before it."""
    bottom: int
    recovered: int | None
    """First later evaluation that made good 95 % of the fall; None where there was none."""
    low: int
    """Evaluations at the end that lie below that best by more than half the depth."""


def drawdown(returns: Sequence[float]) -> Drawdown:
    """Of a series of returns.

    Raises:
        InputError: fewer than two evaluations.
    """
    value_n = _series(returns)
    best_n = value_n.cummax(0).values
    fall_n = best_n - value_n
    bottom = int(fall_n.argmax())
    best = float(best_n[bottom])
    peak = int((value_n[: bottom + 1] == best).nonzero()[-1])  # the fall begins behind a plateau
    # Deviation from the spec of the diagnostics, 10.1, which asks for 95 % of the best return: what
    # a constant bonus adds to every return would decide then. Shares are of what can be lost.
    enough = best - (1 - RECOVERED) * float(fall_n[bottom])
    later = (value_n[bottom:] >= enough).nonzero()
    recovered = bottom + int(later[0]) if len(later) else None
    high = (fall_n <= fall_n[bottom] / 2).nonzero()
    low = len(value_n) - 1 - int(high[-1])
    return Drawdown(float(fall_n[bottom]), peak, bottom, recovered, low)


def largest_change(returns: Sequence[float], window: int) -> tuple[float, float]:
    """Largest fall and largest rise between two evaluations of one window.

    Rises are counted on their own: skipping what lies below the running best, as falls may, would
    miss them.

    Args:
        returns: in order.
        window: evaluations it holds, >= 2.
    """
    value_n = _series(returns)
    fall = rise = 0.0
    for start in range(max(1, len(value_n) - window + 1)):
        part = value_n[start : start + window]
        fall = max(fall, float((part.cummax(0).values - part).max()))
        rise = max(rise, float((part - part.cummin(0).values).max()))
    return fall, rise


def worst_after_learned(returns: Sequence[float], random_return: float) -> float:
    """Lowest return from the first evaluation on that reached 90 % of the learned range.

    Raises:
        InputError: nothing was learned.
    """
    value_n = _series(returns)
    span = _span(value_n, random_return)
    first = int((value_n - random_return >= LEARNED * span).nonzero()[0])
    return float(value_n[first:].min())


def worst_case(tasks: Sequence[tuple[Sequence[float], float, int]]) -> float:
    """Of a curriculum: mean of the current task's return and of every earlier one's worst since.

    Args:
        tasks: returns, random return and number of the evaluation at which the task ended, in
            order; the last is the current one. Each is brought to its own learned range.
    """
    parts = []
    for place, (returns, random_return, ended) in enumerate(tasks):
        value_n = _series(returns)
        scaled = (value_n - random_return) / _span(value_n, random_return)
        parts.append(float(scaled[-1] if place == len(tasks) - 1 else scaled[ended:].min()))
    return sum(parts) / len(parts)


def noise_floor(count: int) -> float:
    """Drawdown, in deviations of one evaluation, that noise alone exceeds once in 20 series."""
    if count <= FLOORS[0][0]:
        return FLOORS[0][1]
    if count >= FLOORS[-1][0]:
        # Gaussian extremes grow as sqrt(2 log n); beyond the table that is slow enough.
        return FLOORS[-1][1] * math.sqrt(math.log(count) / math.log(FLOORS[-1][0]))
    for (n0, floor0), (n1, floor1) in pairwise(FLOORS):
        if count <= n1:
            share = (math.log(count) - math.log(n0)) / (math.log(n1) - math.log(n0))
            return floor0 + share * (floor1 - floor0)
    raise AssertionError


def return_readings(
    returns: Sequence[float],
    steps: Sequence[float],
    errors: Sequence[float],
    *,
    random_return: float | None,
    episodes: int = 10,
) -> list[Reading]:
    """Everything of 10.1 for one run.

    Args:
        returns: mean of each evaluation, in order.
        steps: environment steps at each.
        errors: standard error of each.
        random_return: of a random policy; None leaves out what is relative to the learned range.
        episodes: of one evaluation; with fewer than 10 falls are mostly noise.
    """
    facts = {"network": "run", "n": len(returns)}
    if len(returns) < 3 or episodes < 10:
        what = f"{len(returns)} evaluations of {episodes} episodes"
        reason = f"returns over time need 3 evaluations of 10 episodes, got {what}"
        return [undefined(reason, metric="ret_mdd", **facts)]
    fall = drawdown(returns)
    floor = noise_floor(len(returns)) * math.sqrt(sum(e * e for e in errors) / len(errors))
    beyond = {
        "noise_floor": floor,
        "peak_step": steps[fall.peak],
        "bottom_step": steps[fall.bottom],
    }
    found = [reading(fall.depth, metric="ret_mdd", unit="return", reference=beyond, **facts)]
    if random_return is not None and max(returns) > random_return:
        span = max(returns) - random_return
        share = {"noise_floor": floor / span, "low_evaluations": float(fall.low)}
        found.append(reading(fall.depth / span, metric="ret_mdd_share", reference=share, **facts))
        lowest = worst_after_learned(returns, random_return)
        found.append(reading(lowest, metric="ret_min_after", unit="return", **facts))
    for window in WINDOWS:
        params = {"params": {"window": float(window)}, "unit": "return", **facts}
        down, up = largest_change(returns, window)
        found.append(reading(down, metric="ret_wf", **params))
        found.append(reading(up, metric="ret_wp", **params))
    if fall.depth > 0 and fall.recovered is not None:
        needed = steps[fall.recovered] - steps[fall.peak]
        found.append(reading(needed, metric="ret_recover", unit="env steps", **facts))
    else:
        reason = "the return did not fall" if fall.depth == 0 else "it did not come back"
        found.append(undefined(reason, metric="ret_recover", unit="env steps", **facts))
    return found


class Sensitivity(NamedTuple):
    """Of final returns to the learning rate."""

    sensitivity: float
    """Mean shortfall from the best rate, a diverged run counting as no learning: 0 to 1."""
    decades: float
    """Width of the range of rates with at least 90 % of the best return."""
    best_rate: float


def decades(rates: Sequence[float]) -> float:
    """Width of a grid of rates, smallest first."""
    return round(math.log10(rates[-1] / rates[0]), 6) if rates and rates[0] > 0 else 0.0


def rate_sensitivity(returns: Mapping[float, float], random_return: float) -> Sensitivity:
    """From mean final returns by learning rate; compare only numbers of the same grid.

    Raises:
        InputError: fewer than 5 rates, less than 2 decades, or no rate learned anything.
    """
    rates = sorted(returns)
    if len(rates) < LEAST_RATES or decades(rates) < LEAST_DECADES:
        raise InputError(
            f"learning-rate sensitivity needs {LEAST_RATES} rates over {LEAST_DECADES} decades, got"
            f" {len(rates)} over {decades(rates):.2g}"
        )
    best = max(returns.values())
    if best <= random_return:
        raise InputError("no learning rate learned anything: sensitivity is undefined")
    lost = [best - max(value, random_return) for value in returns.values()]
    good = [r for r in rates if returns[r] - random_return >= LEARNED * (best - random_return)]
    width = math.log10(good[-1] / good[0])
    best_rate = max(returns, key=lambda rate: returns[rate])
    return Sensitivity(sum(lost) / len(lost) / (best - random_return), width, best_rate)


def _series(returns: Sequence[float]) -> Tensor:
    value_n = torch.tensor(list(returns), dtype=torch.float64)
    if len(value_n) < 2 or not bool(value_n.isfinite().all()):
        raise InputError("a series of returns needs at least two evaluations, all finite")
    return value_n


def _span(value_n: Tensor, random_return: float) -> float:
    span = float(value_n.max()) - random_return
    if span <= 0:
        raise InputError("no evaluation is better than a random policy: nothing was learned")
    return span
