"""Does a long run keep its memory and its files? An hour of the laptop preset, seen from outside.

A training run with frequent rows, checkpoints and evaluations is sampled every ten seconds: its
resident memory and its open files. A line is fitted to what comes after the first quarter, in which
compiling ends, and after the ring has been filled once, whichever is later.

    python benchmarks/soak.py --minutes 60

Said before any run: it passes if neither line rises by more than 1 % of the median an hour, or its
rise is within twice its standard error. One row in ``benchmarks/results/soak.csv``, the curves in
``soak.png``. Needs Linux (``/proc``).
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from supple.bench.table import report
from supple.metrics import METRICS, read_csv

RESULTS = Path(__file__).parent / "results" / "soak.csv"
EVERY = 10.0
"""Between two samples [s]."""
WARM_UP = 0.25
"""Share of the samples that are not fitted, at least."""
RING = 36_000
"""Environment steps until the ring is full, and nothing new is needed."""
MOST = 0.01
"""Rise in an hour, relative to the median, that is not told from none."""
FLAGS = (
    *("--preset", "laptop", "--eval.no-video", "--env-steps", "100000000", "--log.every", "200"),
    *("--eval.every", "4000", "--eval.episodes", "2", "--checkpoint.every", "2000"),
)
OWN = {"flashsac": ("--replay.capacity", str(RING), "--agent.lr-end", "1e-3"), "ppo": ()}


def watch(task: str, agent: str, minutes: float, folder: Path) -> np.ndarray:
    """Train, and sample the process: (S, 4) of hours, MiB, open files and environment steps.

    Raises:
        RuntimeError: the run failed.
    """
    command = [sys.executable, "-m", "supple.cli", "train", task, "--agent", agent]
    flags = [*FLAGS, *OWN[agent], "--max-minutes", str(minutes), "--run-dir", str(folder / "run")]
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    samples, began = [], time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                of = Path("/proc") / str(process.pid)
                try:
                    resident = int((of / "statm").read_text().split()[1]) * page
                    files = len(list((of / "fd").iterdir()))
                except (OSError, IndexError):  # it has just ended
                    break
                hours = (time.monotonic() - began) / 3600
                samples.append((hours, resident, files, steps_of(folder / "run" / METRICS)))
                time.sleep(EVERY)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        raise RuntimeError(f"the run ended with status {process.returncode}: {folder / 'log'}")
    return np.array(samples)


def steps_of(table: Path) -> float:
    """Environment steps of a run in progress."""
    steps = read_csv(table)["step"] if table.exists() else []
    return steps[-1] or 0.0 if steps else 0.0


def warm_up(samples: np.ndarray) -> int:
    """How many samples are not fitted."""
    filled = int(np.argmax(samples[:, 3] >= RING)) if samples[-1, 3] >= RING else 0
    return max(int(WARM_UP * len(samples)), filled)


def line(hours: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of the line of least squares, and its standard error [unit an hour]."""
    x = hours - hours.mean()
    slope = float(x @ values / (x @ x))
    missed = values - values.mean() - slope * x
    return slope, math.sqrt(float(missed @ missed) / max(len(x) - 2, 1) / float(x @ x))


def steady(values: np.ndarray, slope: float, error: float) -> bool:
    """Whether a line counts as not rising."""
    return slope <= MOST * float(np.median(values)) or slope <= 2 * error


def row_of(task: str, agent: str, samples: np.ndarray) -> dict[str, Any]:
    """What was found, in one row."""
    kept = samples[warm_up(samples) :]
    row: dict[str, Any] = {
        "task": task,
        "agent": agent,
        "minutes": f"{60 * samples[-1, 0]:.1f}",
        "samples": len(samples),
        "fitted": len(kept),
        "env steps": int(samples[-1, 3]),
    }
    verdicts = []
    for name, values in (("MiB", kept[:, 1]), ("files", kept[:, 2])):
        slope, error = line(kept[:, 0], values)
        row |= {
            name: f"{np.median(values):.1f}",
            f"{name} an hour": f"{slope:.2f}",
            f"± {name} an hour": f"{error:.2f}",
        }
        verdicts.append(steady(values, slope, error))
    row["passes"] = "yes" if all(verdicts) else "no"
    return row


def draw(samples: np.ndarray, path: Path) -> None:
    """Both curves over minutes."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    for axes, column, name in zip(
        figure.subplots(2, 1, sharex=True),
        (1, 2),
        ("resident memory [MiB]", "open files"),
        strict=True,
    ):
        axes.plot(60 * samples[:, 0], samples[:, column], lw=1.2)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(name)
        axes.grid(color="#e4e6ea")
        axes.axvline(60 * samples[warm_up(samples), 0], color="#8a8f98", ls=":")
    axes.set_xlabel("minutes; the line is fitted right of the dots")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run, fit, draw, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="gym/HalfCheetah-v5")
    parser.add_argument("--agent", default="flashsac", choices=list(OWN))
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = watch(options.task, options.agent, options.minutes, Path(folder))
    row = row_of(options.task, options.agent, samples)
    draw(samples, RESULTS.with_suffix(".png"))
    report("soak", [row], RESULTS, f"python benchmarks/soak.py --minutes {options.minutes:g}")


if __name__ == "__main__":
    main()
