"""Pictures of learning: a run's own curve, and variants side by side. No display is needed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from supple.files import replace_file
from supple.metrics import METRICS, read_csv

if TYPE_CHECKING:
    from supple.compare_report import Band, Figures

Columns: TypeAlias = Mapping[str, Sequence[float | None]]

# Okabe and Ito's palette: told apart by colour-blind readers and on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8a8f98"
INK = "#30343b"
LARGEST = 1e100
"""Beyond this magnitude a value counts as diverged: axes cannot show it."""


def progress_png(source: Path | Columns, path: Path, *, title: str = "") -> None:
    """Draw a run's learning curve: training and evaluation return, and speed, over env steps.

    Works from the first moment: whatever is missing or not finite is left out.

    Args:
        source: the run's folder, or the columns of its ``metrics.csv``.
        path: the picture, replaced in one step.
        title: by default task, agent and seed, from the folder's settings.

    Raises:
        InputError: the folder's ``metrics.csv`` is not one of ours.
        OSError: the picture cannot be written.
    """
    if isinstance(source, Path):
        title = title or _title(source)
        table = source / METRICS
        source = read_csv(table) if table.exists() else {}
    steps, train, evaluation, interval, speed = (
        _column(source, name)
        for name in (
            "step",
            "train/return_mean",
            "eval/return_mean",
            "eval/return_ci95",
            "time/env_steps_per_s",
        )
    )
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw_line(top, steps, train, GREY, "training")
    interval = np.where(_is_finite(interval), interval, 0)
    low, high = evaluation - interval, evaluation + interval
    _draw_interval(top, steps, evaluation, low, high, COLOURS[0], "evaluation, 95 % interval")
    _draw_line(bottom, steps, speed, COLOURS[2], "")
    _style(top, ylabel="return of an episode")
    _style(bottom, xlabel="environment steps", ylabel="env steps/s")
    bottom.set_ylim(bottom=0)
    bottom.set_xlim(0, 1.02 * max(steps.max(initial=0), 1))
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    top.set_title(_plain(title), loc="left", fontsize=11, color=INK, pad=24)
    _legend(top, loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=2)  # hides no point
    if not top.lines:
        _note(top, "no finished episode yet", at=(0.5, 0.5), align="center")
    diverged = _count_diverged(source, "train/return_mean", "eval/return_mean")
    if diverged:
        _note(top, f"{diverged} non-finite values left out", at=(0.995, 0.02), align="right")
    _write(figure, path)


def comparison_png(shown: Figures, path: Path) -> None:
    """Draw variants side by side: a row of curves per task, then profiles and means.

    Args:
        shown: what ``supple.compare_report`` made of the runs.
        path: the picture, replaced in one step.

    Raises:
        OSError: the picture cannot be written.
    """
    variants = list(dict.fromkeys(name for of in shown.over_steps.values() for name in of))
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(variants)}
    rows = len(shown.over_steps) + bool(shown.profiles)
    figure = Figure(figsize=(11, 3.6 * max(rows, 1)), layout="constrained")
    grid = figure.subplots(max(rows, 1), 2, squeeze=False)
    for (task, over_steps), (left, right) in zip(shown.over_steps.items(), grid, strict=False):
        _draw_bands(left, over_steps, colours, xlabel="environment steps", ylabel="return")
        left.set_title(_plain(task), loc="left", fontsize=11, color=INK)
        over_minutes = shown.over_minutes.get(task, {})
        _draw_bands(right, over_minutes, colours, xlabel="minutes of wall-clock")
        left.sharey(right)
        _legend(left, loc="best")
    if shown.profiles:
        what = "return" if len(shown.over_steps) == 1 else "normalised return"
        left, right = grid[-1]
        _draw_bands(left, shown.profiles, colours, xlabel=what, ylabel="share of runs above")
        _draw_means(
            right, shown.means, colours, xlabel=f"{what}, interquartile mean, 95 % interval"
        )
    _write(figure, path)


# --- data ------------------------------------------------------------------------------------


def _title(folder: Path) -> str:
    try:
        record = json.loads((folder / "settings.json").read_text())
        return f"{record['task']} · {record['agent_name']} · seed {record['seed']}"
    except (OSError, ValueError, LookupError, TypeError):
        return folder.name


def _column(source: Columns, name: str) -> np.ndarray:
    """A column as float64, NaN where it is missing."""
    length = len(source.get("step", ()))
    return np.array(source.get(name, [None] * length), dtype=np.float64)


def _is_finite(values: np.ndarray) -> np.ndarray:
    ok: np.ndarray = np.abs(values) < LARGEST  # False for NaN too
    return ok


def _count_diverged(source: Columns, *names: str) -> int:
    """How many values are there but cannot be drawn."""
    present = sum(value is not None for name in names for value in source.get(name, ()))
    return present - sum(int(_is_finite(_column(source, name)).sum()) for name in names)


# --- drawing ---------------------------------------------------------------------------------


def _draw_line(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    ok = _is_finite(values)
    if ok.any():
        marker = "o" if ok.sum() == 1 else ""
        axes.plot(steps[ok], values[ok], color=colour, lw=1.2, marker=marker, ms=3, label=label)


def _draw_interval(
    axes: Axes,
    steps: np.ndarray,
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    colour: str,
    label: str,
) -> None:
    """A line in its band; a single point gets a bar."""
    ok = _is_finite(mean) & _is_finite(low) & _is_finite(high)
    if not ok.any():
        return
    steps, mean, low, high = steps[ok], mean[ok], low[ok], high[ok]
    axes.plot(steps, mean, color=colour, lw=2, marker="o", ms=4, label=label, zorder=3)
    if len(steps) == 1:
        axes.vlines(steps, low, high, color=colour, lw=1.5)
    else:
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)


def _draw_bands(
    axes: Axes,
    bands: Mapping[str, Band],
    colours: Mapping[str, str],
    *,
    xlabel: str,
    ylabel: str = "",
) -> None:
    for name, band in bands.items():
        _draw_interval(axes, band.x, band.middle, band.low, band.high, colours[name], _plain(name))
    _style(axes, xlabel=xlabel, ylabel=ylabel)
    if not bands:
        axes.set_axis_off()
        _note(axes, "no wall-clock is known", at=(0.5, 0.5), align="center")


def _draw_means(
    axes: Axes,
    means: Mapping[str, tuple[float, float, float]],
    colours: Mapping[str, str],
    *,
    xlabel: str,
) -> None:
    for at, (name, (middle, low, high)) in enumerate(means.items()):
        axes.hlines(at, low, high, color=colours[name], lw=6, alpha=0.3)
        axes.plot([middle], [at], "o", color=colours[name])
    _style(axes, xlabel=xlabel)
    axes.set_yticks(range(len(means)), [_plain(name) for name in means])
    axes.invert_yaxis()


class _Thousands(EngFormatter):
    """10k for ten thousand; smaller numbers as they are, not in thousandths."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return str(super().__call__(x, pos)) if abs(x) >= 1000 else f"{x:g}"


def _style(axes: Axes, *, xlabel: str = "", ylabel: str = "") -> None:
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(_Thousands(sep=""))
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(color="#e4e6ea", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9bec7")
    axes.margins(x=0.02, y=0.1)


def _legend(axes: Axes, **place: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, frameon=False, fontsize=9, labelcolor=INK, **place)


def _note(axes: Axes, text: str, *, at: tuple[float, float], align: str) -> None:
    axes.text(*at, text, transform=axes.transAxes, ha=align, color=GREY, fontsize=9)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read mathematics between two of them


def _write(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    replace_file(path, picture.getvalue())
