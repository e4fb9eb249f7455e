"""Several processes that learn as one: what it costs, and whether they learn as well.

    python benchmarks/processes.py speed --processes 1 2 4
    python benchmarks/processes.py curves --processes 1 2 --seeds 0 1 2

``speed`` times training between its first gradient step and its end; start, evaluation and
checkpoints are left out. On a machine that others use, or with fewer cores than processes, the
clock on the wall says little: ``cpu ms/gradient step`` is what a process itself took, its waiting
for the others left out, and ``rows/s, a core each`` what all would learn from if none had to wait.
``curves`` gives every run the same number of environment steps in all. Rows go to
``benchmarks/results/process_speed.csv`` and ``process_curves.csv``.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from supple import cli, distributed, launch
from supple.bench.table import append
from supple.display import Display
from supple.metrics import complete, read_csv
from supple.train import train
from supple.trained import read_settings

RESULTS = Path(__file__).parent / "results"
TASK = "gym/HalfCheetah-v5"
SPEED = {
    "flashsac": ["--env-steps", "560", "--agent.min-replay", "400"],
    "ppo": ["--agent", "ppo", "--env-steps", "24576", "--agent.epochs", "2"],
}
"""Enough for some seconds of learning in one process."""
UNDISTURBED = ["--eval.every", "1000000", "--checkpoint.every", "1000000", "--eval.episodes", "1"]
UNDISTURBED += ["--diagnostics.no-enabled", "--eval.no-video", "--compute.compile", "off"]


def start(processes: int, arguments: list[str]) -> str:
    """One or several processes with these arguments; returns the command, to be typed again."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(several if processes > 1 else []), *arguments]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{processes} processes failed:\n{done.stderr[-3000:]}")
    return " ".join(["python", *command]).replace(__file__, "benchmarks/processes.py")


def timed(folder: Path, flags: list[str]) -> None:
    """A run, in each of its processes; the first writes what its learning took."""
    settings = cli.train_settings([TASK, "--preset", "laptop", *UNDISTURBED, *flags])
    settings.run_dir = str(folder / "run")
    run = launch.new_run(settings)
    marks: list[tuple[float, float, int, int]] = []

    def mark() -> None:
        if run.agent.updates:
            now = (time.monotonic(), time.process_time())
            marks.append((*now, run.env_steps, run.agent.updates))

    run.diagnose = mark  # type: ignore[method-assign]
    with run.display, run:
        train(run)
    if distributed.world().first:
        taken = [last - first for first, last in zip(marks[0], marks[-1], strict=True)]
        (folder / "taken.json").write_text(json.dumps(taken))
    distributed.leave(in_peace=True)


def speed(agent: str, processes: int) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as parent:
        command = start(processes, [__file__, "timed", parent, *SPEED[agent]])
        seconds, cpu, steps, updates = json.loads((Path(parent) / "taken.json").read_text())
        settings = read_settings(Path(parent) / "run")
    own: Any = settings.agent
    rollout = settings.env.num_envs * getattr(own, "rollout_steps", 0)
    rows = processes * (rollout // own.minibatches if agent == "ppo" else own.batch_size)
    return {
        "agent": agent,
        "processes": processes,
        "environments": settings.env.num_envs * processes,
        "joined minibatch": rows,
        "gradient steps": updates,
        "cpu ms/gradient step": f"{1e3 * cpu / updates:.2f}",
        "env steps/s, a core each": f"{steps / cpu:.0f}",
        "rows/s, a core each": f"{rows * updates / cpu:.0f}",
        "wall env steps/s": f"{steps / seconds:.1f}",
        "training command": command.replace(parent, "FOLDER"),
    }


def curve(processes: int, seed: int, flags: list[str]) -> list[dict[str, Any]]:
    """A row per evaluation of one run."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        given = ["--preset", "laptop", "--eval.no-video", "--seed", str(seed), *flags]
        arguments = ["-m", "supple", "train", TASK, *given, "--run-dir", str(folder)]
        command = start(processes, arguments)
        columns, settings = read_csv(folder / "metrics.csv"), read_settings(folder)
    names = ("step", "time/seconds", "eval/return_mean", "eval/return_std")
    keys = ("env steps", "seconds", "return mean", "return std")
    return [
        {
            "agent": settings.agent_name,
            "processes": processes,
            "seed": seed,
            **dict(zip(keys, values, strict=True)),
            "training command": command.replace(parent, "FOLDER"),
        }
        for values in complete(columns, *names)
    ]


def main() -> None:
    """Measure what the command line asks for."""
    if sys.argv[1:2] == ["timed"]:
        timed(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=["speed", "curves"])
    parser.add_argument("--agents", nargs="+", choices=list(SPEED), default=list(SPEED))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--flags", default="", help="of every run of curves, in quotes")
    options = parser.parse_args()
    command = f"python benchmarks/processes.py {shlex.join(sys.argv[1:])}"
    if options.what == "speed":
        for agent in options.agents:
            for count in options.processes:
                found = speed(agent, count)
                append([found], RESULTS / "process_speed.csv", command)
                found.pop("training command")
                Display.print_rows(agent, [{name: str(value) for name, value in found.items()}])
        return
    for seed in options.seeds:
        for count in options.processes:
            rows = curve(count, seed, options.flags.split())
            append(rows, RESULTS / "process_curves.csv", command)
            print(count, seed, [(row["env steps"], row["return mean"]) for row in rows], flush=True)


if __name__ == "__main__":
    main()
