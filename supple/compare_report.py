"""What ``supple compare`` says of its runs: one table, one figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from supple import scores
from supple.curves import Curve
from supple.display import Display, format_return, print_line
from supple.files import replace_file
from supple.plots import comparison_png

COLUMNS = (
    *("task", "variant", "seeds", "return IQM", "95 % interval", "return mean", "return median"),
    *("P(better than first)", "env steps", "minutes (median)", "MFLOP per update"),
)
EMPTY = dict.fromkeys(COLUMNS, "-")
ALL = "all, 0 to 1"
"""The task of rows over several tasks, whose returns are normalised."""
TABLE = "compare.csv"
FIGURE = "compare.png"
POINTS = 101
"""Levels of a performance profile."""


@dataclass(kw_only=True, slots=True)
class Runs:
    """One variant on one task."""

    task: str
    variant: str
    planned: int
    returns: np.ndarray
    """Of the last evaluation of every finished run, (R,)."""
    curves: Sequence[Curve]
    """Of the finished runs, or one that is a mean already."""
    env_steps: Sequence[int] = ()
    minutes: Sequence[float] = ()
    mflop: float | None = None
    """Of the matrix products in one gradient step [1e6 operations]."""


@dataclass(kw_only=True, slots=True)
class Band:
    """A curve over runs with its interval, each (P,)."""

    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(kw_only=True, slots=True)
class Figures:
    """What the figure shows, by task and variant."""

    over_steps: dict[str, dict[str, Band]] = field(default_factory=dict)
    over_minutes: dict[str, dict[str, Band]] = field(default_factory=dict)
    profiles: dict[str, Band] = field(default_factory=dict)
    """By variant, over returns, or over normalised returns where there are several tasks."""
    means: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Interquartile mean and its interval by variant."""


def report(found: Sequence[Runs], out: Path) -> None:
    """Print the table, and write ``compare.csv`` and ``compare.png``.

    Args:
        found: of every task and variant, in the order they are shown.
        out: their folder.
    """
    rows = table(found)
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [{k: v for k, v in row.items() if k != "task"} for row in rows if row["task"] == task]
        Display.print_rows(task, own)
    for task in flat_tasks(found):
        print_line(
            f'{task} is left out of "{ALL}": no variant ended above where the worst one began'
        )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    replace_file(out / TABLE, text.getvalue().encode())
    comparison_png(figures(found), out / FIGURE)


# --- the table -------------------------------------------------------------------------------


def table(found: Sequence[Runs]) -> list[dict[str, str]]:
    """A row per task and variant, and per variant over all tasks where there are several."""
    rows = []
    for task in _tasks(found):
        own = [runs for runs in found if runs.task == task]
        rows += [_row(runs, own[0]) for runs in own]
    if len(_tasks(found)) > 1:
        whole = normalised(found)
        for variant, own_runs in whole.items():
            row = {"task": ALL, "variant": variant, "seeds": str(sum(map(len, own_runs)))}
            first = whole.get(found[0].variant) if variant != found[0].variant else None
            rows.append(EMPTY | row | _summary(own_runs, first, "{:.3f}".format))
    return rows


def _row(runs: Runs, first: Runs) -> dict[str, str]:
    row = EMPTY | {"task": runs.task, "variant": runs.variant}
    if runs.planned:
        row["seeds"] = f"{len(runs.returns)} of {runs.planned}"
    if len(runs.returns):
        compared = runs is not first and len(first.returns)
        row |= _summary([runs.returns], [first.returns] if compared else None, format_return)
    elif runs.curves and runs.env_steps:  # a published mean
        published = runs.curves[0]
        at = int(np.searchsorted(published.steps, runs.env_steps[0] + 1)) - 1
        row["return mean"] = format_return(published.returns[at])
        if published.half_width is not None and published.half_width[at]:
            row["return mean"] += f" ± {format_return(published.half_width[at])}"
    if runs.env_steps:
        ends = (str(min(runs.env_steps)), str(max(runs.env_steps)))
        row["env steps"] = " to ".join(dict.fromkeys(ends))
    if runs.minutes:
        row["minutes (median)"] = f"{float(np.median(runs.minutes)):.1f}"
    if runs.mflop is not None:
        row["MFLOP per update"] = f"{runs.mflop:.1f}"
    return row


def _summary(
    own: Sequence[np.ndarray], first: Sequence[np.ndarray] | None, number: Callable[[float], str]
) -> dict[str, str]:
    """Cells of runs by task, held against the first variant's."""
    several = any(len(runs) > 1 for runs in own)
    cells = {
        "return IQM": number(float(scores.interquartile_mean(own))),
        "return mean": number(float(scores.mean(own))),
        "return median": number(float(scores.median(own))),
    }
    if several:
        low, high = scores.interval95(scores.interquartile_mean, own)
        cells["95 % interval"] = f"{number(low)} to {number(high)}"
    # Of one run against one it could only be 0, a half or 1.
    if first and max(len(own), len(own[0]), len(first[0])) > 1:
        share = f"{float(scores.improvement(own, first)):.2f}"
        if several:
            low, high = scores.interval95(scores.improvement, own, first)
            share += f" ({low:.2f} to {high:.2f})"
        cells["P(better than first)"] = share
    return cells


def _tasks(found: Sequence[Runs]) -> list[str]:
    return list(dict.fromkeys(runs.task for runs in found))


def normalised(found: Sequence[Runs]) -> dict[str, list[np.ndarray]]:
    """Returns by variant and task, for variants with a finished run of every task that counts.

    0 is the worst first evaluation of a task, 1 the best mean at its end. Tasks of ``flat_tasks``
    do not count; empty where fewer than two others do.
    """
    without = flat_tasks(found)
    tasks = [task for task in _tasks(found) if task not in without]
    if len(tasks) < 2:
        return {}
    scaled: dict[str, list[np.ndarray]] = {}
    for task in tasks:
        own = [runs for runs in found if runs.task == task and len(runs.returns)]
        low, high = _ends(own)
        for runs in own:
            scaled.setdefault(runs.variant, []).append((runs.returns - low) / (high - low))
    return {variant: each for variant, each in scaled.items() if len(each) == len(tasks)}


def flat_tasks(found: Sequence[Runs]) -> list[str]:
    """Of several tasks, those that no returns can be scaled by: nothing ended above 0.

    A task without a finished run is none of them.
    """
    tasks = _tasks(found)
    flat = []
    for task in tasks if len(tasks) > 1 else []:
        own = [runs for runs in found if runs.task == task and len(runs.returns)]
        low, high = _ends(own)
        if own and not (math.isfinite(high - low) and high > low):
            flat.append(task)
    return flat


def _ends(own: Sequence[Runs]) -> tuple[float, float]:
    """The worst first evaluation of a task, mean over a variant's runs, and the best last one."""
    first = [[c.returns[0] for c in runs.curves if len(c.returns)] for runs in own]
    low = min((float(np.mean(each)) for each in first if each), default=math.nan)
    return low, max((float(runs.returns.mean()) for runs in own), default=math.nan)


# --- the figure ------------------------------------------------------------------------------


def figures(found: Sequence[Runs]) -> Figures:
    """What the figure shows."""
    shown = Figures()
    for runs in found:
        if not runs.curves:
            continue
        shown.over_steps.setdefault(runs.task, {})[runs.variant] = band(runs.curves)
        timed = [np.isfinite(curve.seconds).any() for curve in runs.curves]
        if all(timed):
            of_task = shown.over_minutes.setdefault(runs.task, {})
            of_task[runs.variant] = band(runs.curves, over_minutes=True)
    if len(_tasks(found)) > 1:
        whole = normalised(found)
    else:
        whole = {runs.variant: [runs.returns] for runs in found if len(runs.returns)}
    if not whole:
        return shown
    every = np.concatenate([runs for each in whole.values() for runs in each])
    levels = np.linspace(every.min(), every.max(), POINTS)
    for variant, each in whole.items():
        shown.profiles[variant] = _profile(each, levels)
        low, high = scores.interval95(scores.interquartile_mean, each)
        middle = scores.interquartile_mean(each)
        shown.means[variant] = (float(middle), float(low), float(high))
    return shown


def _profile(runs: Sequence[np.ndarray], levels: np.ndarray) -> Band:
    low, high = scores.interval95(partial(scores.profile, levels=levels), runs)
    return Band(x=levels, middle=scores.profile(runs, levels), low=low, high=high)


def band(curves: Sequence[Curve], *, over_minutes: bool = False) -> Band:
    """Interquartile mean over runs with its interval, at the evaluations that all of them have.

    Where they share less than half of a run's, say because each wrote the ends of its own episodes,
    it is taken at all of them, between which the runs' lines are straight.

    Args:
        curves: of single runs, or one that is a mean already.
        over_minutes: the axis is the mean wall-clock of each evaluation, not its step.
    """
    if len(curves) == 1 and (half := curves[0].half_width) is not None:
        own = curves[0].returns
        x = curves[0].seconds / 60 if over_minutes else curves[0].steps
        return Band(x=x, middle=own, low=own - half, high=own + half)
    shared = sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves)))
    if 2 * len(shared) < min(len(curve.steps) for curve in curves):
        first = max(curve.steps[0] for curve in curves)
        last = min(curve.steps[-1] for curve in curves)
        every = np.unique(np.concatenate([curve.steps for curve in curves]))
        shared = every[(every >= first) & (every <= last)].tolist()
    axis = np.array(shared)
    returns_RP = np.array([_on(axis, curve.steps, curve.returns) for curve in curves])
    if over_minutes:
        axis = np.mean([_on(axis, curve.steps, curve.seconds) for curve in curves], axis=0) / 60
    ends = [
        scores.interval95(scores.interquartile_mean, [returns_RP[:, p]]) for p in range(len(shared))
    ]
    return Band(
        x=axis,
        middle=np.array([float(scores.interquartile_mean([column])) for column in returns_RP.T]),
        low=np.array([low for low, _ in ends]),
        high=np.array([high for _, high in ends]),
    )


def _on(x: np.ndarray, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at x, (P,): those of the same step, between two steps on the line through both."""
    at = np.searchsorted(steps, x).clip(max=len(steps) - 1)
    return np.asarray(np.where(steps[at] == x, values[at], np.interp(x, steps, values)))


def foreign(curves: Sequence[Curve], beside: Sequence[Runs]) -> list[Runs]:
    """What a table can say of curves from elsewhere, at the budget of the runs.

    That is the last evaluation of each until the longest run of its task ended.
    """
    ends: dict[str, int] = {}
    for runs in beside:
        ends[runs.task] = max(ends.get(runs.task, 0), *runs.env_steps, 0)
    grouped: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        grouped.setdefault((curve.task, curve.variant), []).append(curve)
    found = []
    for (task, variant), own in grouped.items():
        single = all(curve.half_width is None for curve in own)
        last = [int((c.steps <= (ends.get(task) or np.inf)).sum()) - 1 for c in own]
        at = [(c, n) for c, n in zip(own, last, strict=True) if n >= 0]
        known = [c.seconds[n] / 60 for c, n in at if np.isfinite(c.seconds[n])]
        found.append(
            Runs(
                task=task,
                variant=variant,
                planned=len(own) if single else 0,
                returns=np.array([c.returns[n] for c, n in at] if single else []),
                curves=own,
                env_steps=[int(c.steps[n]) for c, n in at],
                minutes=known,
            )
        )
    return found
