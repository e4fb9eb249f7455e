"""The documentation's figures, from committed rows and from the agents' own functions.

    python -m benchmarks.figures

writes ``docs/_static/*.svg``. The same rows give the same files: no date, no random name.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from torch import Tensor

from benchmarks.experiments import reproduction as experiment
from benchmarks.experiments import utd_plasticity
from supple.agents.critics import project_to_atoms
from supple.agents.exploration import HeldNoise, NoiseSettings, zeta_cdf
from supple.agents.flashsac_settings import CRITICS
from supple.agents.flow_critics import FlowRange
from supple.agents.flow_settings import FlowSettings
from supple.agents.ppo_settings import PPOSettings
from supple.bench.table import read
from supple.files import replace_file
from supple.kernels.critic_integration import euler
from supple.plots import COLOURS, GREY, INK

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STATIC = ROOT / "docs" / "_static"
PUBLISHED_PPO = {"HalfCheetah": 3511, "Hopper": 3393, "Walker2d": 1615}
"""Means of PPO at 1 M steps in FlashSAC's paper, arXiv:2604.04539."""

Row: TypeAlias = Mapping[str, str]


def rows(name: str, **wanted: str) -> list[Row]:
    """Committed rows of a table, those whose columns begin with the wanted values.

    Raises:
        LookupError: there is none.
    """
    found: list[Row] = [
        row
        for row in read(RESULTS / f"{name}.csv")
        if all(row[key].startswith(value) for key, value in wanted.items())
    ]
    if not found:
        raise LookupError(f"{name}.csv has no row with {wanted}")
    return found


def by(column: str, table: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by a column's value, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in table:
        groups.setdefault(row[column], []).append(row)
    return groups


def numbers(column: str, table: Iterable[Row]) -> np.ndarray:
    """A column as float64."""
    return np.array([float(row[column]) for row in table])


# --- what runs returned ------------------------------------------------------------------------


def flashsac_curves() -> Figure:
    """The laptop preset by steps, and by seconds beside other learners."""
    figure, (left, right) = _panels(2)
    preset = rows("critics", variant="categorical")
    _seeds(left, preset, "step", COLOURS[0], "laptop preset, five seeds", of="return")
    _style(left, "environment steps", "evaluation return")
    learners = {
        "FlashSAC, laptop preset": "supple flashsac laptop",
        "PPO, cpu preset": "supple ppo cpu",
        "Stable-Baselines3 SAC": "Stable-Baselines3 SAC",
        "the same, sized as laptop": "Stable-Baselines3 SAC, sized as laptop",
        "Stable-Baselines3 PPO, RL Zoo": "Stable-Baselines3 PPO, RL Zoo",
    }
    timed = by("learner", rows("wall_clock", task="HalfCheetah-v5"))
    for colour, (name, learner) in zip(COLOURS, learners.items(), strict=False):
        early = [row for row in timed[learner] if float(row["seconds"]) <= 600]
        _seeds(right, early, "seconds", colour, name)
    right.axhline(3000, color=GREY, lw=1, ls=":")
    _style(right, "seconds of training", "")
    right.set_xlim(right=800)  # room for the legend
    _legend(right, "upper right")
    return figure


def reproduction() -> Figure:
    """FlashSAC's cpu preset, a tenth of the way, beside the published mean and deviation."""
    every = by("task", rows("reproduction"))
    figure, panels = _panels(len(every))
    for axes, (task, table) in zip(panels, every.items(), strict=True):
        _seeds(axes, table, "step", COLOURS[0], "supple", of="return")
        mean, std, count = experiment.published(task)
        name = f"published, {count} seeds"
        axes.errorbar(experiment.STEPS, mean, std, fmt="o", ms=5, capsize=4, color=GREY, label=name)
        _style(axes, "environment steps", "evaluation return" if axes is panels[0] else "")
        axes.set_title(task.partition("/")[2], fontsize=10, color=INK)
    _legend(panels[0])
    return figure


def critic_curves() -> Figure:
    """Four critics under one actor, data and budget."""
    figure, panels = _panels(4)
    every = by("variant", rows("critics"))
    for axes, critic, colour in zip(panels, CRITICS, COLOURS, strict=False):
        _seeds(axes, every[critic], "step", colour, critic, of="return")
        _style(axes, "environment steps", "evaluation return" if axes is panels[0] else "")
        axes.set_title(critic, fontsize=10, color=INK)
        axes.set_ylim(-900, 5600)
    return figure


def policy_evaluation() -> Figure:
    """Error of a fixed policy's value, with few data and many updates, and with plenty."""
    figure, panels = _panels(2)
    shown = ("scalar", "noise", "categorical", "flow", "zero", "endpoint")
    titles = {"utd 32": "392 transitions, 32 updates each", "plenty": "20,000 transitions"}
    for axes, (setting, title) in zip(panels, titles.items(), strict=True):
        found = by("critic", rows("policy_evaluation", setting=setting))
        for place, critic in enumerate(shown):
            errors = numbers("rmse final", found[critic])
            axes.plot(np.full(len(errors), place), errors, "o", ms=5, color=COLOURS[place])
            axes.hlines(np.median(errors), place - 0.3, place + 0.3, color=COLOURS[place], lw=2)
        _style(axes, "", "RMSE to the true value" if axes is panels[0] else "")
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_yscale("log")
        axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        names = ("scalar", "scalar, noise", "categorical", "flow", "flow, t = 0", "end points")
        axes.set_xticks(range(len(shown)), names, rotation=25, ha="right")
    return figure


def ppo_curves() -> Figure:
    """PPO's cpu preset on three tasks, beside the published mean."""
    figure, panels = _panels(3)
    for axes, (task, published) in zip(panels, PUBLISHED_PPO.items(), strict=True):
        table = rows("ppo_curves", task=f"gym/{task}-v4", commit="e843ddd")
        _seeds(axes, table, "step", COLOURS[1], f"{task}-v4")
        axes.axhline(published, color=GREY, lw=1, ls=":")
        axes.set_ylim(bottom=0)
        _style(axes, "environment steps", "evaluation return" if axes is panels[0] else "")
        axes.set_title(f"{task}-v4", fontsize=10, color=INK)
    return figure


def go1() -> Figure:
    """A Go1 that learns to walk as it is told."""
    figure, (axes,) = _panels(1)
    _seeds(axes, rows("go1"), "step", COLOURS[0], "supple", of="return")
    _style(axes, "environment steps", "evaluation return")
    axes.set_ylim(bottom=0)
    return figure


def plasticity() -> Figure:
    """How much worse than untrained twins each critic learns new functions, as training goes on."""
    found = [
        row
        for row in rows("utd_plasticity", network="critic", targets="smooth")
        if row["fit_gap"] and row["steps of fitting"] != utd_plasticity.WHOLE
    ]
    every = sorted({int(row["utd"]) for row in found})
    figure, panels = _panels(len(every))
    for axes, utd in zip(panels, every, strict=True):
        own = [row for row in found if row["utd"] == str(utd)]
        for colour, (critic, table) in zip(COLOURS, by("critic", own).items(), strict=False):
            _seeds(axes, table, "step", colour, critic, of="fit_gap")
        axes.axhline(utd_plasticity.LOST, color=GREY, lw=1, ls=":")
        _style(axes, "environment steps", "fit_gap" if axes is panels[0] else "")
        axes.set_title(f"{utd} update{'s' * (utd > 1)} per step", fontsize=10, color=INK)
    _legend(panels[0])
    return figure


def instability() -> Figure:
    """How much more a policy's decisions change along its own directions than along random ones."""
    figure, panels = _panels(2)
    shown = (("gym/CartPole-v1", "choice"), ("gym/HalfCheetah-v5", "action"))
    for axes, (task, mode) in zip(panels, shown, strict=True):
        table = rows("instability", task=task, mode=mode, commit="92a7db8")
        steps = numbers("step", table)
        low, high = numbers("random min", table), numbers("random max", table)
        axes.fill_between(steps, low, high, color=GREY, alpha=0.35, lw=0, label="20 random ones")
        worst = numbers("worst", table)
        axes.plot(steps, worst, "o-", ms=4, color=COLOURS[1], label="direction found")
        _style(axes, "step, in standard deviations", "change of the decision")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(f"{task}, {mode}", fontsize=10, color=INK)
    _legend(panels[0])
    return figure


# --- what functions do ---------------------------------------------------------------------------


def flashsac_parts() -> Figure:
    """Held noise, the law of its lengths, and a distribution put back onto its atoms."""
    figure, (trace, law, atoms) = _panels(3)
    settings = NoiseSettings()
    generator = torch.Generator().manual_seed(0)
    noise = HeldNoise(1, 1, settings, generator)
    held = [float(noise.next()) for _ in range(60)]
    trace.step(range(60), held, where="post", color=COLOURS[0], lw=1.5)
    _style(trace, "step", "exploration noise")
    share = np.diff(zeta_cdf(settings.exponent, settings.max_hold).double(), prepend=0)
    law.bar(range(1, len(share) + 1), share, color=COLOURS[0])
    _style(law, "steps that a draw is held", "probability")
    before, after, grid = _moved_distribution()
    atoms.plot(grid, before, color=GREY, lw=1.5, label="next value")
    atoms.plot(grid, after, color=COLOURS[0], lw=2, label="target")
    _style(atoms, "scaled return", "probability of an atom")
    _legend(atoms)
    return figure


def _moved_distribution() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bump on 101 atoms, and where a reward of 1 and a discount of 0.9 put it."""
    grid = torch.linspace(-5, 5, 101)
    bump = torch.exp(-(((grid - 1.5) / 0.8) ** 2) / 2)
    bump = bump / bump.sum()
    moved = project_to_atoms(bump[None], (1 + 0.9 * grid)[None], 5.0)[0]
    return bump.double().numpy(), moved.double().numpy(), grid.double().numpy()


def flow_paths() -> Figure:
    """Noise on its way to a value: the field that the loss asks for, integrated by our Euler."""
    figure, panels = _panels(3)
    settings, value = FlowSettings(), 2.0
    spans = FlowRange.of(settings, 5.0)
    start = torch.linspace(spans.noise_low, spans.noise_high, 9, dtype=torch.float64)
    for axes, steps in zip(panels, (1, 4, 8), strict=True):
        for wrong, colour, name in (
            (0.0, COLOURS[2], "exact"),
            (0.35, COLOURS[1], "with an error"),
        ):
            states = euler(_field(value, steps, wrong), start, steps)
            path = torch.stack(states).numpy()
            lines = axes.plot(np.arange(steps + 1) / steps, path, "o-", ms=2.5, lw=1, color=colour)
            lines[0].set_label(name)
        _style(axes, "flow time", "scaled return" if axes is panels[0] else "")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda at, _: f"{at:g}")
        axes.set_title(f"K = {steps}", fontsize=10, color=INK)
    _legend(panels[0])
    return figure


def _field(value: float, steps: int, wrong: float) -> Callable[[int, Tensor], Tensor]:
    """Towards the value; wrong by a share of the way in the first half of the time."""

    def at(step: int, z: Tensor) -> Tensor:
        t = step / steps
        return (value - z) / (1 - t) * (1 + wrong * (t < 0.5))

    return at


def ppo_parts() -> Figure:
    """The clipped surrogate for a good and a bad action."""
    figure, panels = _panels(2)
    clip = PPOSettings().clip
    ratio = torch.linspace(0.5, 1.5, 201, dtype=torch.float64)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    for axes, advantage in zip(panels, (1.0, -1.0), strict=True):
        surrogate = torch.minimum(advantage * ratio, advantage * clipped)
        axes.plot(ratio, advantage * ratio, color=GREY, lw=1, label="unclipped")
        axes.plot(ratio, surrogate, color=COLOURS[1], lw=2, label="clipped")
        _style(axes, "new over old probability", "objective" if advantage > 0 else "")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(f"advantage {advantage:+g}", fontsize=10, color=INK)
    _legend(panels[0])
    return figure


# --- drawing ---------------------------------------------------------------------------------


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def _seeds(
    axes: Axes,
    table: list[Row],
    along: str,
    colour: str,
    name: str,
    *,
    of: str = "return_mean",
) -> None:
    """Each seed thin; where all seeds have the same steps, their mean thick."""
    curves = [(numbers(along, own), numbers(of, own)) for own in by("seed", table).values()]
    for x, y in curves:
        axes.plot(x, y, color=colour, lw=1, alpha=0.55)
    shared = all(np.array_equal(x, curves[0][0]) for x, _ in curves)
    if shared:
        axes.plot(
            curves[0][0], np.mean([y for _, y in curves], 0), color=colour, lw=2.5, label=name
        )
    else:
        axes.lines[-1].set_label(name)


def _style(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.grid(color="#e4e6ea", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, place: Literal["best", "upper right"] = "best") -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc=place)


FIGURES: Mapping[str, Callable[[], Figure]] = {
    "flashsac_curves": flashsac_curves,
    "flashsac_parts": flashsac_parts,
    "reproduction": reproduction,
    "critic_curves": critic_curves,
    "policy_evaluation": policy_evaluation,
    "flow_paths": flow_paths,
    "ppo_curves": ppo_curves,
    "ppo_parts": ppo_parts,
    "go1": go1,
    "instability": instability,
    "plasticity": plasticity,
}


def draw(name: str) -> str:
    """A figure as SVG, its text as text."""
    settings: dict[Any, Any] = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(settings):
        picture = io.StringIO()
        FIGURES[name]().savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def main() -> None:
    """Write all of them."""
    STATIC.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        replace_file(STATIC / f"{name}.svg", draw(name).encode())
        print(STATIC / f"{name}.svg")


if __name__ == "__main__":
    main()
