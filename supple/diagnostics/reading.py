"""What a measurement comes to: a number with its interval and sample size, or why there is none.

Names follow ``<network>/<layer>/<member>/<metric>``, with a parameter's value behind the metric:
``critic/block0.inner/0/dormant_0.1``. A metric row writes them under ``diag/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError

ALL = "all"
"""Layer of what concerns a whole network."""
MEAN, WORST = "mean", "worst"
"""Members: over the ensemble."""
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One number, or the reason why there is none."""

    metric: str
    """For example ``dormant``."""
    network: str
    """actor, critic, target_critic, value, flow, or ``run``."""
    layer: str = ALL
    member: str = MEAN
    params: Mapping[str, float | str] = field(default_factory=dict)
    """What the metric was computed with: tau, delta, mode, data."""
    value: float | None = None
    """Finite, or None where ``status`` is not ok."""
    ci95: Interval | None = None
    unit: str = ""
    """Empty for dimensionless numbers."""
    n: int = 0
    """Rows, episodes or draws behind it."""
    status: Literal["ok", "undefined", "skipped", "failed"] = "ok"
    reason: str = ""
    reference: Mapping[str, float] = field(default_factory=dict)
    """What to read it against: ``fresh`` with ``fresh_low`` and ``fresh_high``, of ranks also
    ``width``, the largest they could be."""
    cost_s: float = 0.0
    """Seconds spent on the whole group of readings that were computed together [s]."""

    @property
    def name(self) -> str:
        """``<network>/<layer>/<member>/<metric>[_parameter ...]``."""
        shown = [f"{v:g}" if isinstance(v, float) else str(v) for v in self.params.values()]
        return "/".join((self.network, self.layer, self.member, "_".join((self.metric, *shown))))


def reading(value: Tensor | float, **facts: Any) -> Reading:
    """A finite number; one that is not finite becomes undefined instead."""
    number = float(value)
    if math.isfinite(number):
        return Reading(value=number, **facts)
    doubt = facts.pop("reason", "")
    said = f"the result is {number}, not a finite number"
    return undefined("; ".join(filter(None, (said, doubt))), **facts)


def undefined(reason: str, **facts: Any) -> Reading:
    """No number, and why."""
    facts.pop("ci95", None)
    return Reading(status="undefined", reason=reason, **facts)


def ensemble(
    values_E: Tensor | Sequence[float], *, worst: Literal["high", "low"] = "high", **facts: Any
) -> list[Reading]:
    """The mean over members, and with more than one each member and the worst.

    Args:
        values_E: one number per member; NaN where a member's is undefined.
        worst: whether the highest or the lowest is the worst.
        facts: fields of ``Reading``.
    """
    values = values_E.detach().tolist() if isinstance(values_E, Tensor) else list(values_E)
    found = [reading(sum(values) / len(values), member=MEAN, **facts)]
    if len(values) > 1:
        pick = max if worst == "high" else min
        found += [reading(value, member=str(e), **facts) for e, value in enumerate(values)]
        finite = [value for value in values if math.isfinite(value)]
        found.append(reading(pick(finite, default=math.nan), member=WORST, **facts))
    return found


def require_rows(what: str, rows: int, least: int) -> None:
    """Refuse a sample that is too small for a metric.

    Raises:
        InputError: names both numbers.
    """
    if rows < least:
        raise InputError(f"{what} needs {least} rows, got {rows}: store or draw more")


ROWS_PER_FEATURE, LEAST_PER_FEATURE = 8, 2
"""Rows that ranks and readouts of features want, and without which they say nothing."""


def require_rows_of(what: str, rows: int, width: int) -> str:
    """Refuse a sample too small for features of some width; of one barely large enough, a note.

    Raises:
        InputError: names both numbers.
    """
    require_rows(what, rows, LEAST_PER_FEATURE * width)
    wanted = ROWS_PER_FEATURE * width
    if rows >= wanted:
        return ""
    return f"{rows} rows, {wanted} were better: too low, comparable with as many rows only"


def bootstrap_ci95(
    statistic: Callable[[Tensor], Tensor],
    count: int,
    *,
    generator: torch.Generator,
    draws: int = 500,
) -> Interval:
    """Percentile interval of a statistic over resampled units (rows, episodes, pairs of fits).

    Args:
        statistic: indices of the drawn units, (count,) int64, to a 0-d number.
        count: how many units there are.
        generator: draws them.
        draws: resamples.
    """
    device = generator.device
    index = torch.randint(count, (draws, count), generator=generator, device=device)
    values = torch.stack([statistic(drawn).double().reshape(()) for drawn in index])
    values = values[values.isfinite()]
    if not len(values):
        return (math.nan, math.nan)
    low, high = torch.quantile(values, values.new_tensor([0.025, 0.975])).tolist()
    return (low, high)


class Measured(NamedTuple):
    """All that was measured of one subject, or between two."""

    readings: dict[str, Reading]
    """By ``Reading.name``, in the order of measurement."""
    arrays: dict[str, Tensor]
    """What plots show, on the CPU, by the name of the metric they belong to:
    ``critic/all/0/spectrum``."""
