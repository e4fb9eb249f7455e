"""Learning curves: of runs in folders, and of other libraries and papers in CSV files.

A CSV file holds one row per evaluation, or per mean over seeds. Its columns may be called

========= ==========================================================================
task      task, env, env_id; without it the rows belong to the only task compared
variant   variant, method, algorithm; without it the file's name
seed      seed
step      env_steps, step, steps, global_step: environment steps
return    return, mean, return_mean, reward, episodic_return, eval/return_mean
deviation std, over ``n_seeds`` seeds: the row is then a mean over them
seconds   seconds, time, wall_time, time/seconds: wall-clock since the start
========= ==========================================================================

in letters of either size.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from supple.errors import InputError
from supple.intervals import half_width95
from supple.metrics import METRICS, read_csv

NAMES: Mapping[str, Sequence[str]] = {
    "task": ("task", "env", "env_id"),
    "variant": ("variant", "method", "algorithm"),
    "seed": ("seed",),
    "step": ("env_steps", "step", "steps", "global_step"),
    "return": ("return", "mean", "return_mean", "reward", "episodic_return", "eval/return_mean"),
    "std": ("std",),
    "runs": ("n_seeds",),
    "seconds": ("seconds", "time", "wall_time", "time/seconds"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The evaluations of one run, or of a mean over runs."""

    task: str
    variant: str
    steps: np.ndarray
    """Environment steps, ascending, (P,)."""
    returns: np.ndarray
    """(P,)."""
    seconds: np.ndarray
    """Wall-clock since the start, NaN where nobody wrote it, (P,)."""
    half_width: np.ndarray | None = None
    """Of a mean's 95 % interval, (P,), 0 where none is known; None for a single run."""


def of_run(folder: Path, task: str, variant: str) -> Curve:
    """The evaluations of a run.

    Raises:
        InputError: its ``metrics.csv`` is not one of ours.
    """
    columns = read_csv(folder / METRICS)
    missing: list[float | None] = [None] * len(columns["step"])
    found = np.array(
        [
            columns["step"],
            columns.get("eval/return_mean", missing),
            columns.get("time/seconds", missing),
        ],
        dtype=np.float64,
    )
    steps, returns, seconds = found[:, ~np.isnan(found[1])]
    return Curve(task=task, variant=variant, steps=steps, returns=returns, seconds=seconds)


def read_curves(path: Path, tasks: Sequence[str]) -> list[Curve]:
    """The curves that a CSV file has of some tasks.

    Args:
        path: the file; its columns are described above.
        tasks: as ``supple train`` takes them; ``HalfCheetah-v5`` in the file is taken for
            ``gym/HalfCheetah-v5``.

    Raises:
        InputError: unreadable, a column is missing, a value is no number, no row is of a task, or
            a variant is several means.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel's, too
            reader = csv.DictReader(file, restval="")
            header = [name.strip().casefold() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    place = {
        meaning: next((name for name in names if name in header), "")
        for meaning, names in NAMES.items()
    }
    for needed in ("step", "return"):
        if not place[needed]:
            raise InputError(
                f"{path} needs a column called {' or '.join(NAMES[needed])}, got"
                f" {', '.join(header) or 'no header'}"
            )
    if not place["task"] and len(tasks) > 1:
        raise InputError(f"{path} needs a column called task: {len(tasks)} tasks are compared")
    grouped: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    seen = set()
    for number, row in enumerate(rows, start=2):
        if not row[place["return"]]:  # a metric row without an evaluation
            continue
        named = (place["task"] and row[place["task"]]) or tasks[0]
        seen.add(named)
        task = next((each for each in tasks if each == named or each.endswith(f"/{named}")), None)
        if task is None:
            continue
        variant = (place["variant"] and row[place["variant"]]) or path.stem
        key = (task, variant, row[place["seed"]] if place["seed"] else "")
        grouped[key].append(_numbers(row, place, f"{path}, line {number}"))
    if not grouped:
        raise InputError(
            f"{path} has no row of {', '.join(tasks)}; it has {', '.join(sorted(seen)) or 'none'}"
        )
    curves = [_curve(path, *key[:2], found) for key, found in grouped.items()]
    for curve in curves:
        own = [each for each in curves if (each.task, each.variant) == (curve.task, curve.variant)]
        if len(own) > 1 and any(each.half_width is not None for each in own):
            raise InputError(
                f"{path} has a mean of {curve.variant} and other rows of it: expected one mean, or"
                " the runs themselves; call them differently in a column variant"
            )
    return curves


def _numbers(row: Mapping[str, str], place: Mapping[str, str], where: str) -> dict[str, float]:
    found = {}
    for meaning in ("step", "return", "std", "runs", "seconds"):
        text = row[place[meaning]] if place[meaning] else ""
        try:
            found[meaning] = float(text) if text else float("nan")
        except ValueError:
            raise InputError(f"{where}: {place[meaning]} must be a number, got {text}") from None
        if meaning in ("step", "return") and not math.isfinite(found[meaning]):
            raise InputError(f"{where}: {place[meaning]} must be a number, got {text or 'nothing'}")
    std, runs = found["std"], found["runs"]
    if not (math.isnan(std) and math.isnan(runs)) and not (
        0 <= std < math.inf and runs >= 1 and runs.is_integer()
    ):
        told = [row[place[name]] if place[name] else "" for name in ("std", "runs")]
        raise InputError(
            f"{where}: a mean needs std >= 0 and n_seeds, a whole number >= 1, got"
            f" {' and '.join(text or 'nothing' for text in told)}; a row of one run has neither"
        )
    return found


def _curve(path: Path, task: str, variant: str, rows: Sequence[Mapping[str, float]]) -> Curve:
    """The rows of one run, or of the mean of several.

    Raises:
        InputError: a step is there twice, or only some rows are means.
    """
    rows = sorted(rows, key=lambda row: row["step"])
    for row, after in pairwise(rows):
        if row["step"] == after["step"]:
            raise InputError(
                f"{path} has step {row['step']:.0f} of {variant} more than once: give runs of their"
                " own a column called seed"
            )
    steps, returns, seconds = (
        np.array([row[name] for row in rows]) for name in ("step", "return", "seconds")
    )
    half_width = None
    means = [row for row in rows if not math.isnan(row["runs"])]
    if len(means) == len(rows):
        half_width = np.array([half_width95(row["std"], int(row["runs"])) for row in rows])
    elif means:
        raise InputError(
            f"{path} has a mean of {variant} and other rows of it: expected std and n_seeds in all"
            " of them or in none; call them differently in a column variant"
        )
    return Curve(
        task=task,
        variant=variant,
        steps=steps,
        returns=returns,
        seconds=seconds,
        half_width=half_width,
    )
