"""The one entry point: everything a suite measures of one subject, or between two.

``measure`` never changes the subject, nor any random stream or statistic of its agent. A group of
measurements that fails or means nothing on the data at hand leaves a reading that says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from supple.diagnostics.context import SUITES, Context, Suite, attempt
from supple.diagnostics.data import DataSets
from supple.diagnostics.isolation import isolated
from supple.diagnostics.reading import Measured, Reading
from supple.diagnostics.subject import Subject
from supple.diagnostics.suite import features, flow, learning, outputs, pairs, steps, values
from supple.errors import first_line

TWINS = 3
"""Untrained networks that a reading is compared with."""


class Group(NamedTuple):
    """Measurements that share their work."""

    name: str
    suite: Suite
    """The smallest suite it is part of."""
    measure: Callable[[Context], Iterator[Reading]]
    fresh: bool = False
    """Whether it is read against untrained twins."""


GROUPS: tuple[Group, ...] = (
    Group("unit_health", "quick", features.unit_health, fresh=True),
    Group("dimensionality", "quick", features.dimensionality, fresh=True),
    Group("consecutive", "quick", features.consecutive, fresh=True),
    Group("weights", "quick", steps.weights, fresh=True),
    Group("saturation", "quick", outputs.saturation),
    Group("support", "quick", outputs.support),
    Group("next_step", "standard", steps.movement_of_next_step),
    Group("per_sample", "standard", steps.per_sample, fresh=True),
    Group("excitation", "standard", values.excitation),
    Group("curvature", "standard", steps.bend),
    Group("value_bias", "standard", values.bias),
    Group("flow", "standard", flow.flow),
    Group("robustness", "standard", learning.robustness),
    Group("fit_gap", "standard", learning.fit_gap),
    Group("descriptors", "full", learning.descriptors),
)
WHOLE = ["fit_gap"]
"""Groups that the full suite measures at greater length than the smaller one they are part of."""

UNREMARKED = ("value_", "w_", "eps_frac")
"""Beginnings of metrics that do not depend on what a recurrent network remembers, or know it."""


def measure(
    subject: Subject,
    data: DataSets,
    suite: Suite = "quick",
    *,
    groups: Sequence[str] | None = None,
    on_group: Callable[[str], None] = lambda name: None,
) -> Measured:
    """Everything that a suite measures of one subject.

    Args:
        subject: ``subject.subject_of(agent, ...)``.
        data: what to measure on; groups that need what is missing say so.
        suite: quick, standard or full; each holds the one before.
        groups: only these; all of the suite by default.
        on_group: told each group's name before it is measured, for progress and time limits.

    Returns:
        Readings by name, with the same of untrained twins as ``reference``, and arrays for plots.
    """
    readings: dict[str, Reading] = {}
    context = Context(subject=subject, data=data, suite=suite)
    with isolated(subject.agent):
        twins: list[Context] = []
        for group in chosen(suite, groups):
            on_group(group.name)
            began = time.perf_counter()
            found = _run(group, context)
            if group.fresh:
                twins = twins or _twins(subject, data, suite)
                found = _with_reference(found, [_run(group, twin) for twin in twins])
            cost_s = time.perf_counter() - began
            found = _remarked(found, subject)
            readings |= {each.name: replace(each, cost_s=cost_s) for each in found}
    return Measured(readings, context.arrays)


def compare(before: Subject, after: Subject, data: DataSets) -> Measured:
    """What changed between two checkpoints of one architecture, on the same states.

    Args:
        before: the earlier one.
        after: the later one; its device and observation groups count.
        data: of which ``anchor`` is used, or ``common`` rows in its place.
    """
    states = data.comparable()
    readings: dict[str, Reading] = {}
    with isolated(before.agent), isolated(after.agent):
        for group in (pairs.drift, pairs.overwriting, pairs.noise_consistency):
            began = time.perf_counter()
            facts: dict[str, Any] = {"metric": group.__name__, "network": "run"}
            found = _remarked(attempt(partial(group, before, after, states), **facts), after)
            cost_s = time.perf_counter() - began
            readings |= {each.name: replace(each, cost_s=cost_s) for each in found}
    return Measured(readings, {})


def chosen(suite: Suite, names: Sequence[str] | None = None) -> list[Group]:
    """The groups of a suite, or those of the given names among them, in their order."""
    held = SUITES[: SUITES.index(suite) + 1]
    found = [group for group in GROUPS if group.suite in held]
    return found if names is None else [group for group in found if group.name in names]


def _run(group: Group, context: Context) -> list[Reading]:
    facts: dict[str, Any] = {"metric": group.name, "network": "run"}
    try:
        return attempt(lambda: group.measure(context), **facts)
    except RuntimeError as error:  # out of memory, no convergence
        reason = first_line(error)
        return [Reading(metric=group.name, network="run", status="failed", reason=reason)]


def _remarked(found: list[Reading], subject: Subject) -> list[Reading]:
    """With what the networks' views have to say of them."""

    def remarked(each: Reading) -> Reading:
        view = subject.views.get(each.network)
        if view is None or not view.remark or each.metric.startswith(UNREMARKED):
            return each
        return replace(each, reason="; ".join(filter(None, (each.reason, view.remark))))

    return [remarked(each) for each in found]


def _twins(subject: Subject, data: DataSets, suite: Suite) -> list[Context]:
    found = data.current()
    return [
        Context(subject=subject.fresh(number, found), data=data, suite=suite)
        for number in range(TWINS)
    ]


def _with_reference(found: list[Reading], of_twins: Iterable[Iterable[Reading]]) -> list[Reading]:
    values: dict[str, list[float]] = {}
    for readings in of_twins:
        for each in readings:
            # An optimiser is not part of a twin: what it says of one is of the trained network.
            if each.value is not None and each.metric != "eps_frac":
                values.setdefault(each.name, []).append(each.value)
    return [
        replace(each, reference={**each.reference, **_summary(values[each.name])})
        if each.name in values
        else each
        for each in found
    ]


def _summary(values: list[float]) -> dict[str, float]:
    mean = sum(values) / len(values)
    return {"fresh": mean, "fresh_low": min(values), "fresh_high": max(values)}
