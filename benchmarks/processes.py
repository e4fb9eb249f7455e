"""Several processes that learn as one: how fast, and whether they learn as well from as much data.

    python benchmarks/processes.py speed --processes 1 2 4
    python benchmarks/processes.py curves --processes 1 2 --seeds 0 1 2

``speed`` times training between its first gradient step and its end, start, evaluation and
checkpoints left out. ``curves`` gives every run the same number of environment steps in all.
Rows go to ``benchmarks/results/process_speed.csv`` and ``process_curves.csv``.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from supple.bench.table import append
from supple.display import Display
from supple.launch import read_settings
from supple.metrics import read_csv

RESULTS = Path(__file__).parent / "results"
TASK = "gym/HalfCheetah-v5"
SPEED = {
    "flashsac": ["--env-steps", "1000", "--agent.min-replay", "400", "--log.every", "100"],
    "ppo": ["--agent", "ppo", "--env-steps", "40000", "--log.every", "1"],
}
"""Enough for some seconds of learning in one process."""


def train(processes: int, folder: Path, flags: list[str]) -> str:
    """One run; returns the command as a person would type it."""
    command = ["-m", "supple", "train", TASK, "--preset", "laptop", "--eval.no-video", *flags]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    if processes > 1:
        command = [*start[1:], f"--nproc-per-node={processes}", *command]
    done = subprocess.run(
        [sys.executable, *command, "--run-dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"a run of {processes} processes failed:\n{done.stderr[-3000:]}")
    return " ".join(["python", *command])


def speed(agent: str, processes: int) -> dict[str, object]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        quiet = ["--eval.every", "1000000", "--checkpoint.every", "1000000"]
        quiet += ["--eval.episodes", "1", "--diagnostics.no-enabled"]
        command = train(processes, folder, [*SPEED[agent], *quiet])
        columns, settings = read_csv(folder / "metrics.csv"), read_settings(folder)
    # Rates are since the row before. The last row has an evaluation in it.
    rates = ("step", "time/seconds", "time/updates_per_s")
    rows = list(zip(*(columns[name] for name in rates), strict=True))[:-1]
    learning = next(i for i, row in enumerate(rows) if row[2])
    (first, began, _), (last, ended, _) = rows[learning], rows[-1]
    assert None not in (first, began, last, ended)
    per_second = (last - first) / (ended - began)  # type: ignore[operator]
    updates = [row[2] * (b[1] - a[1]) for a, b, row in zip(rows, rows[1:], rows[1:], strict=False)]  # type: ignore[operator]
    updates_per_s = sum(updates[learning:]) / (ended - began)  # type: ignore[operator]
    batch = getattr(settings.agent, "batch_size", 0)
    if not batch:
        batch = settings.agent.rollout_steps * settings.env.num_envs // settings.agent.minibatches  # type: ignore[union-attr]
    return {
        "agent": agent,
        "processes": processes,
        "environments": settings.env.num_envs * processes,
        "joined minibatch": batch * processes,
        "env steps/s": f"{per_second:.1f}",
        "gradient steps/s": f"{updates_per_s:.1f}",
        "rows learned/s": f"{updates_per_s * batch * processes:.0f}",
        "training command": command,
    }


def curve(processes: int, seed: int, flags: list[str]) -> list[dict[str, object]]:
    """A row per evaluation of one run."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        command = train(processes, folder, ["--seed", str(seed), *flags])
        columns, agent = read_csv(folder / "metrics.csv"), read_settings(folder).agent_name
    names = ("step", "time/seconds", "eval/return_mean", "eval/return_std")
    keys = ("env steps", "seconds", "return mean", "return std")
    return [
        {
            "agent": agent,
            "processes": processes,
            "seed": seed,
            **dict(zip(keys, values, strict=True)),
            "training command": command,
        }
        for values in zip(*(columns[name] for name in names), strict=True)
        if values[2] is not None
    ]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=["speed", "curves"])
    parser.add_argument("--agents", nargs="+", choices=list(SPEED), default=list(SPEED))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--flags", default="", help="of every run of curves, in quotes")
    options = parser.parse_args()
    command = f"python benchmarks/processes.py {' '.join(sys.argv[1:])}"
    if options.what == "speed":
        for agent in options.agents:
            for count in options.processes:
                found = speed(agent, count)
                append([found], RESULTS / "process_speed.csv", command)
                found.pop("training command")
                Display.print_rows(agent, [{k: str(v) for k, v in found.items()}])
        return
    for seed in options.seeds:
        for count in options.processes:
            rows = curve(count, seed, options.flags.split())
            append(rows, RESULTS / "process_curves.csv", command)
            print(count, seed, [(row["env steps"], row["return mean"]) for row in rows], flush=True)


if __name__ == "__main__":
    main()
