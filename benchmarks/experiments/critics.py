"""Experiment 3: four critics under one actor, data and budget.

HalfCheetah-v5 with the ``laptop`` preset, once with each critic, five seeds, everything else the
same; ``flow_official`` takes a next action per target sample, as published, so four there, where
the others take one. Said before any run: two critics are told apart if the 95 % stratified
bootstrap interval of the probability that a run with one ends above a run with the other leaves
out a half.

    python -m benchmarks.experiments.critics --out runs/critics
    python -m benchmarks.experiments.critics --report

20 runs, about three hours of one core. Ctrl-C saves; the same command continues, and every
finished run's evaluations become rows of ``benchmarks/results/critics.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import command
from supple import compare, scores
from supple.agents.flashsac_settings import CRITICS
from supple.bench.table import read

ROWS = Path(__file__).parents[1] / "results" / "critics.csv"
COMMAND = "python -m benchmarks.experiments.critics"
TASK = "gym/HalfCheetah-v5"
COMMON = ("--preset", "laptop", "--eval.every", "1800", "--eval.no-video")
DEFAULT = CRITICS[0]
SEEDS = 3
"""Of fewer nothing is said."""


def jobs(out: Path, seeds: Sequence[int]) -> list[compare.Job]:
    """The runs of these seeds."""
    variants = [f"{critic}: --agent.critic {critic}" for critic in CRITICS]
    return compare.plan_tasks([TASK], seeds, variants, COMMON, out)


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A line per critic, by what was said before."""
    curves = command.curves(rows, lambda row: row["variant"])
    finals = {
        critic: np.array([curve[-1] for curve in curves[critic].values()])
        for critic in CRITICS
        if critic in curves
    }
    lines = []
    for critic, final in finals.items():
        better = interval = apart = "-"
        if critic != DEFAULT and DEFAULT in finals:
            pair = ([final], [finals[DEFAULT]])
            low, high = scores.interval95(scores.improvement, *pair)
            better, interval = f"{float(scores.improvement(*pair)):.2f}", f"{low:.2f} to {high:.2f}"
            apart = "yes" if low > 0.5 or high < 0.5 else "no"
            if min(map(len, (final, finals[DEFAULT]))) < SEEDS:
                apart = "too few seeds"
        lines.append(
            {
                "critic": critic,
                "seeds": str(len(final)),
                "final return": f"{final.mean():.0f}",
                "over the run": f"{np.mean(list(curves[critic].values())):.0f}",
                f"better than {DEFAULT}": better,
                "95 %": interval,
                "told apart": apart,
            }
        )
    return lines


def main() -> int:
    """Run what is missing, then report."""
    status = 0
    options = command.parser(__doc__, runs="critics", seeds=(0, 1, 2, 3, 4)).parse_args()
    for seed in () if options.report else options.seeds:  # a seed's rows as soon as it is done
        planned = jobs(options.out, [seed])
        status = compare.run_queue(planned, options.jobs)
        command.record(planned, ROWS, COMMAND)
        if status:
            break
    command.say("four critics, one budget", summary(read(ROWS)))
    return status


if __name__ == "__main__":
    command.start(main)
