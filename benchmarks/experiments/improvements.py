"""Experiment 5: what each of our switches does to FlashSAC as published.

Four regimes, the first two on HalfCheetah and Hopper, three seeds a variant, everything else the
same:

======  =====================================================================================
few     the ``laptop`` preset: one environment, one update per step, 36,000 steps
many    64 environments, 4 updates per 64 transitions, 307,200 steps: the data-rich regime of a GPU
        simulator, made small
mirror  as ``few``, on Walker2d, whose legs may change places
preset  as ``few``, on three tasks and with seeds that ``few`` has not: the two switches that kept
        HalfCheetah from its slow gait there and were not slower on Hopper
======  =====================================================================================

Said before any run: a switch *helps* (or *harms*) in a regime if, over its tasks, the 95 %
stratified bootstrap interval of its normalised final return minus the default's lies above (below)
0; otherwise three seeds show no difference. The mean over all evaluations, which is how fast it
learned, is judged alike. Returns are normalised by task: 0 is the worst first evaluation, 1 the
best variant's mean. Of ``preset`` was said besides: ``laptop`` takes a switch that harms neither,
if fewer of its runs on HalfCheetah end in the slow gait, below a return of 2000; of two such, the
one that takes less time.

    python -m benchmarks.experiments.improvements --out runs/improvements
    python -m benchmarks.experiments.improvements --regimes preset --seeds 3 4 5 6 7
    python -m benchmarks.experiments.improvements --report

147 runs, about twelve hours of one core. Ctrl-C saves; the same command continues, and every
finished run's evaluations become rows of ``benchmarks/results/improvements.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import command
from supple import compare, scores
from supple.bench.table import read

ROWS = Path(__file__).parents[1] / "results" / "improvements.csv"
COMMAND = "python -m benchmarks.experiments.improvements"
DEFAULT = "default"
BOTH = {
    DEFAULT: "",
    "newer rows more often": "--agent.replay-age-decay {span}",
    "one critic": "--agent.num-critics 1",
    "critic not projected": "--agent.no-project-critic",
    "actor not projected": "--agent.no-project-actor",
    "one critic and nothing projected": (
        "--agent.num-critics 1 --agent.no-project-critic --agent.no-project-actor"
    ),
    "published n-step discount": "--agent.no-exact-discount",
}
MANY = {
    "noise per environment": "--agent.noise.schedule per_env",
    "quality made small": (
        "--agent.actor-blocks 2 --agent.critic-blocks 2 --agent.critic-hidden 128"
        " --agent.utd 0.125 --agent.batch-size 256 --agent.target-std 0.2"
    ),
}
"""The ``quality`` preset doubles depth, width, updates and batch of ``gpu``, as this does."""
CANDIDATES = (DEFAULT, "critic not projected", "one critic and nothing projected")
REGIMES: dict[str, tuple[tuple[str, ...], str, dict[str, str]]] = {
    "few": (("gym/HalfCheetah-v5", "gym/Hopper-v5"), "--eval.every 1800", BOTH),
    "many": (
        ("mujoco/HalfCheetah", "mujoco/Hopper"),
        "--env.num-envs 64 --env-steps 307200 --replay.capacity 307200 --agent.utd 0.0625"
        " --agent.update-every 1 --agent.min-replay 6400 --eval.every 15360",
        BOTH | MANY,
    ),
    "mirror": (
        ("mujoco/Walker2d",),
        "--eval.every 1800",
        {DEFAULT: "", "mirror images": "--agent.symmetry docs.examples.my_mirror:mirror"},
    ),
    "preset": (
        ("gym/HalfCheetah-v5", "gym/Hopper-v5", "gym/Walker2d-v5"),
        "--eval.every 1800",
        {name: BOTH[name] for name in CANDIDATES},
    ),
}
SPAN = {"few": 36_000, "many": 4_800, "mirror": 36_000, "preset": 36_000}
"""Vector steps of a run: over them the weight of a row falls to its floor."""
SEEDS = 3
"""Of fewer nothing is said."""


def jobs(regime: str, out: Path, seeds: Sequence[int]) -> list[compare.Job]:
    """The runs of one regime, seed after seed."""
    tasks, flags, variants = REGIMES[regime]
    named = [f"{name}: {own.format(span=SPAN[regime])}" for name, own in variants.items()]
    common = ("--preset", "laptop", "--eval.no-video", "--compute.compile", "on", *flags.split())
    return compare.plan_tasks(tasks, seeds, named, common, out / regime)


Curves = dict[tuple[str, str, str], dict[str, list[float]]]
"""Returns in order by regime, task and variant, then by seed."""


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A line per regime and variant, by what was said before."""
    curves = command.curves(rows, lambda row: (row["regime"], row["task"], row["variant"]))
    lines = []
    for regime, (tasks, _, _) in REGIMES.items():
        names = dict.fromkeys(variant for at, _, variant in curves if at == regime)
        if not all((regime, task, DEFAULT) in curves for task in tasks):
            continue
        lines += [
            _line(regime, variant, tasks, curves)
            for variant in names
            if all((regime, task, variant) in curves for task in tasks)
        ]
    return lines


def _line(regime: str, variant: str, tasks: Sequence[str], curves: Curves) -> dict[str, str]:
    line = {"regime": regime, "switch": variant}
    seeds = min(len(curves[regime, task, name]) for task in tasks for name in (variant, DEFAULT))
    for name, of in (("final return", lambda run: run[-1]), ("over the run", np.mean)):
        own: list[np.ndarray] = []
        default: list[np.ndarray] = []
        for task in tasks:
            low, high = _ends(regime, task, curves)
            for found, which in ((own, variant), (default, DEFAULT)):
                runs = [of(run) for run in curves[regime, task, which].values()]
                found.append((np.array(runs) - low) / (high - low))
        low, high = scores.interval95(scores.difference, own, default)
        said = "helps" if low > 0 else "harms" if high < 0 else "no difference"
        if seeds < SEEDS:
            said = "too few seeds"
        if variant == DEFAULT:
            said = "-"
        line[name] = f"{float(scores.mean(own)):.2f}"
        line[f"difference, {name}"] = f"{low:+.2f} to {high:+.2f}" if said != "-" else "-"
        line[f"verdict, {name}"] = said
    line["seeds"] = str(seeds)
    return line


def _ends(regime: str, task: str, curves: Curves) -> tuple[float, float]:
    """Returns that count as 0 and 1: the worst first evaluation, and the best variant's mean."""
    own = [runs for (at, on, _), runs in curves.items() if (at, on) == (regime, task)]
    low = min(run[0] for runs in own for run in runs.values())
    return low, max(float(np.mean([run[-1] for run in runs.values()])) for runs in own)


def main() -> int:
    """Run what is missing, then report."""
    status = 0
    parser = command.parser(__doc__, runs="improvements", seeds=(0, 1, 2))
    first = [name for name in REGIMES if name != "preset"]  # which has seeds of its own
    parser.add_argument("--regimes", nargs="+", default=first, choices=list(REGIMES))
    options = parser.parse_args()
    if not options.report:
        for regime in options.regimes:
            planned = jobs(regime, options.out, options.seeds)
            status = compare.run_queue(planned, options.jobs)
            command.record(planned, ROWS, COMMAND, regime=regime)
            if status:
                break
    command.say("each switch against the default", summary(read(ROWS)))
    return status


if __name__ == "__main__":
    command.start(main)
