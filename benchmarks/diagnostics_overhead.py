"""What diagnostics while training cost at the laptop preset.

Runs with and without them take turns, each in a folder that is thrown away. ``accounted`` is what
the diagnostics' own clock says they took, over the run's wall-clock; ``slowdown`` compares the
medians of the processor time of whole runs, evaluation and checkpoints included in both: unlike
the wall-clock it hardly feels what else runs on the machine.

    python benchmarks/diagnostics_overhead.py --env-steps 6000 --rounds 2

Every run becomes a row of ``benchmarks/results/diagnostics_overhead.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from supple import launch
from supple.bench.table import append
from supple.cli import RESUMABLE
from supple.configs import default_settings
from supple.metrics import read_csv
from supple.train import train

RESULTS = Path(__file__).parent / "results" / "diagnostics_overhead.csv"


def measured(
    task: str, agent: str, env_steps: int, *, enabled: bool, folder: Path
) -> dict[str, Any]:
    """One run, as a row.

    Raises:
        SystemExit: it was stopped.
    """
    settings = default_settings(task, agent=agent, preset="laptop")
    settings.env_steps, settings.run_dir, settings.device = env_steps, str(folder), "cpu"
    settings.eval.video, settings.eval.episodes = False, 1
    settings.eval.every = settings.checkpoint.every = env_steps
    settings.diagnostics.enabled = enabled
    run = launch.new_run(settings)
    began, processor = time.perf_counter(), time.process_time()
    with run.display, run:
        train(run)
    if not run.complete:
        raise SystemExit(RESUMABLE)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    columns = read_csv(folder / "metrics.csv")
    spent = [value for value in columns.get("diag/seconds", []) if value is not None]
    stretch = [value for value in columns.get("diag/period", []) if value is not None]
    return {
        "task": task,
        "agent": agent,
        "env steps": env_steps,
        "updates": run.agent.updates,
        "diagnostics": "on" if enabled else "off",
        "seconds": f"{seconds:.2f}",
        "processor seconds": f"{processor:.2f}",
        "accounted": f"{(spent[-1] if spent else 0.0) / seconds:.4f}",
        "period": f"{stretch[-1]:.0f}" if stretch else "",
    }


def main() -> None:
    """Take turns, print and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--task", default="gym/HalfCheetah-v5")
    parser.add_argument("--agent", default="flashsac")
    parser.add_argument("--env-steps", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    rows = []
    for number in range(given.rounds):
        for enabled in (number % 2 == 0, number % 2 != 0):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(
                    measured(
                        given.task,
                        given.agent,
                        given.env_steps,
                        enabled=enabled,
                        folder=Path(folder) / "run",
                    )
                )
            print(rows[-1], flush=True)
    with_, without = (
        statistics.median(
            float(row["processor seconds"]) for row in rows if row["diagnostics"] == kind
        )
        for kind in ("on", "off")
    )
    for row in rows:
        row["slowdown"] = f"{with_ / without - 1:.4f}"
    append(rows, RESULTS, f"python {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
