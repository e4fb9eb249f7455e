"""Experiment 6: FlashSAC's published curves, a tenth of the way.

The ``cpu`` preset, whose settings are those of the published runs, on their tasks, evaluated every
10,000 steps. ``--agent.lr-decay 10`` lets the learning rate fall over the million steps of those
runs, of which 100,000 are a tenth.

Said before any run: a task is *reached* if the mean over our seeds at 100,000 steps is at least the
published mean less its standard deviation over seeds, and HalfCheetah, which varies little, if it
is at least 9000.

    python -m benchmarks.experiments.reproduction --out runs/reproduction
    python -m benchmarks.experiments.reproduction --tasks dmc/dog-stand --seeds 0 1
    python -m benchmarks.experiments.reproduction --report

About two hours of one core a run where it multiplies bfloat16 in hardware, seven elsewhere. Ctrl-C
saves; the same command continues, and every finished run's evaluations become rows of
``benchmarks/results/reproduction.csv``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import command
from supple import compare
from supple.bench.table import read

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "reproduction.csv"
PUBLISHED = ROOT / "docs" / "data" / "published_cpu.csv"
COMMAND = "python -m benchmarks.experiments.reproduction"
STEPS = 100_000
FLAGS = ("--preset", "cpu", "--env-steps", str(STEPS), "--agent.lr-decay", "10")
TASKS = (
    *("gym/HalfCheetah-v4", "gym/Hopper-v4", "gym/Walker2d-v4", "gym/Ant-v4", "gym/Humanoid-v4"),
    *("dmc/dog-stand", "dmc/pendulum-swingup", "dmc/humanoid-walk"),
)
GATES = {"gym/HalfCheetah-v4": 9000.0}
"""Where not the published mean less its standard deviation."""


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A line per task: our return at 100,000 steps beside the published one."""
    ends: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if int(row["step"]) == STEPS:
            ends[row["task"]][row["seed"]] = float(row["return"])
    lines = []
    for task in (task for task in TASKS if task in ends):
        mean, std, count = published(task)
        own = np.array(list(ends[task].values()))
        gate = GATES.get(task, mean - std)
        lines.append(
            {
                "task": task,
                "return at 100,000 steps, each seed": ", ".join(f"{value:.0f}" for value in own),
                "published": f"{mean:.0f} ± {std:.0f} ({count} seeds)",
                "of published": f"{own.mean() / mean:.2f}",
                "expected": f">= {gate:.0f}",
                "said": "reached" if own.mean() >= gate else "missed",
            }
        )
    return lines


def published(task: str) -> tuple[float, float, int]:
    """Mean, standard deviation and number of seeds at 100,000 steps, in FlashSAC's own results."""
    name = task.partition("/")[2]
    (row,) = [
        row
        for row in read(PUBLISHED)
        if (row["env"], row["method"], row["env_steps"]) == (name, "FlashSAC", str(STEPS))
    ]
    return float(row["mean"]), float(row["std"]), int(row["n_seeds"])


def main() -> int:
    """Run what is missing, then report."""
    status = 0
    parser = command.parser(__doc__, runs="reproduction", seeds=(0,))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    options = parser.parse_args()
    if not options.report:
        planned = [
            job
            for seed in dict.fromkeys(options.seeds)
            for task in dict.fromkeys(options.tasks)
            for job in compare.plan(task, [seed], [], FLAGS, options.out / task.replace("/", "-"))
        ]
        status = compare.run_queue(planned, options.jobs)
        command.record(planned, ROWS, COMMAND)
    command.say("FlashSAC beside its published curves", summary(read(ROWS)))
    return status


if __name__ == "__main__":
    command.start(main)
