"""Whether healthy agents are called ill: finished runs through ``supple diagnose``.

    supple train gym/Pendulum-v1 --agent flashsac --preset laptop --run-dir runs/flashsac-Pendulum
    python benchmarks/healthy.py runs/flashsac-Pendulum ...

Trains nothing. Every run becomes a row of ``benchmarks/results/healthy.csv``: its return, how many
verdicts of each level, which rules, the share of the training's time that diagnostics took by their
own clock, and the time of the diagnosis, loading included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from supple.bench.table import append
from supple.diagnostics.command import write
from supple.diagnostics.context import SUITES
from supple.diagnostics.diagnose import Options, diagnose
from supple.diagnostics.document import latest
from supple.metrics import read_csv

RESULTS = Path(__file__).parent / "results" / "healthy.csv"


def judged(run: Path, suite: Any, out: Path | None) -> dict[str, Any]:
    """One run, as a row; verdicts as the page shows them, one per rule."""
    wall, processor = time.perf_counter(), time.process_time()
    found = diagnose(Options(paths=[run], suite=suite), lambda text: print(text, file=sys.stderr))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write(found, out)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    verdicts = latest(found.document.to_json())
    for verdict in verdicts:
        print(f"{run.name}: {verdict['level']} {verdict['rule']} {verdict['sentence']}")
    target = found.targets[-1]
    columns = read_csv(run / "metrics.csv")
    spent = [value for value in columns.get("diag/seconds", []) if value is not None]
    result = json.loads((run / "result.json").read_text())
    return {
        "run": run.name,
        "task": target.settings.task,
        "agent": target.settings.agent_name,
        "critic": getattr(target.settings.agent, "critic", ""),
        "env steps": target.env_steps,
        "return": f"{result['return_mean']:.1f}",
        "suite": suite,
        "checkpoints": len(found.targets),
        "bad": sum(verdict["level"] == "bad" for verdict in verdicts),
        "warn": sum(verdict["level"] == "warn" for verdict in verdicts),
        "rules": " ".join(verdict["rule"] for verdict in verdicts),
        "online share": f"{(spent[-1] if spent else 0.0) / result['seconds']:.4f}",
        "processor seconds": f"{processor:.0f}",
        "seconds": f"{wall:.0f}",
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, help="finished run folders")
    parser.add_argument("--suite", choices=SUITES, default="standard")
    parser.add_argument("--reports", type=Path, help="folder for the reports; default: none")
    options = parser.parse_args()
    for run in options.runs:
        out = None if options.reports is None else options.reports / run.name
        command = f"python benchmarks/healthy.py runs/{run.name} --suite {options.suite}"
        append([judged(run, options.suite, out)], RESULTS, command)


if __name__ == "__main__":
    main()
