"""Wall-clock to a return: our presets beside other libraries' learners, from one machine.

One run at a time, learners in turn for every task and seed, so that a noisy neighbour hits all of
them. Every learner is judged by ten deterministic episodes. Our clock runs on meanwhile, and
through compiling; the clock of the others stands still. Ours run their preset's steps; the others
end when three evaluations in a row reached the task's higher level; all end at the limit.

    python -m benchmarks.time_to_return --peers-python /path/to/venv/bin/python

What has rows already is left out, so that the command can be stopped and given again; Ctrl-C loses
the run in progress. A run that fails, or is not evaluated within the limit, is said, leaves no row
and holds nothing up. The others want an environment of their own, with "gymnasium[mujoco]",
"stable-baselines3" and "rsl-rl-lib". Every evaluation becomes a row of
``benchmarks/results/wall_clock.csv``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from supple.bench.table import append, read
from supple.cli import DONE, FAILED
from supple.metrics import METRICS, complete, read_csv

RESULTS = Path(__file__).parents[1] / "results" / "wall_clock.csv"
LEVELS = {
    "HalfCheetah-v5": (1500.0, 3000.0),
    "Hopper-v5": (1000.0, 2000.0),
    "Walker2d-v5": (1000.0, 2000.0),
}
"""Returns that are timed, chosen before any run."""
OURS = {
    "supple flashsac laptop": ("--preset", "laptop"),
    "supple flow laptop": ("--preset", "laptop", "--agent.critic", "flow"),
    "supple ppo laptop": ("--agent", "ppo", "--preset", "laptop"),
    "supple flashsac cpu": ("--preset", "cpu"),
}
EVERY = {"ppo": 10_000, "flashsac": 1_800}
"""Environment steps between our evaluations, as for the others' SAC and PPO."""
THEIRS = {
    "stable-baselines3 SAC": ("sb3", "SAC"),
    "stable-baselines3 PPO": ("sb3", "PPO"),
    "rsl_rl PPO": ("rsl", "PPO"),
    "CleanRL-style PPO": ("cleanrl_style", "PPO"),
}
COLUMNS = ("seconds", "env_steps", "return_mean", "return_std")
Curve = Sequence[dict[str, float]]


def ours(options: argparse.Namespace, learner: str, task: str, seed: int) -> tuple[Curve, str]:
    """Evaluations of one run of ours."""
    flags = OURS[learner]
    every = EVERY["ppo" if "ppo" in flags else "flashsac"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "supple", "train", f"gym/{task}", *flags]
        command += ["--seed", str(seed), "--threads", str(options.threads), "--eval.no-video"]
        command += ["--eval.every", str(every), "--eval.episodes", "10"]
        command += ["--max-minutes", str(options.limit / 60)]
        command += ["--run-dir", f"{folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        columns = read_csv(Path(folder) / "run" / METRICS)
    names = ("time/seconds", "step", "eval/return_mean", "eval/return_std")
    return [dict(zip(COLUMNS, row, strict=True)) for row in complete(columns, *names)], ""


def theirs(options: argparse.Namespace, learner: str, task: str, seed: int) -> tuple[Curve, str]:
    """Evaluations of one run of another library's learner, and versions."""
    module, algorithm = THEIRS[learner]
    command = [options.peers_python, "-W", "ignore", "-m", f"benchmarks.time_to_return.{module}"]
    told = (algorithm, task, seed, options.threads, LEVELS[task][-1], options.limit)
    done = subprocess.run(
        [*command, *map(str, told)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    *rows, last = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    return rows, last["versions"]


def time_to(level: float, curve: Curve) -> str:
    """Seconds until the first evaluation at the level, or more than the last one's."""
    for row in curve:
        if row["return_mean"] >= level:
            return f"{row['seconds']:.0f} s, {row['env_steps']:,.0f} steps"
    best = max(row["return_mean"] for row in curve)
    return f"> {curve[-1]['seconds']:.0f} s (best {best:.0f})"


def measure(options: argparse.Namespace, learner: str, task: str, seed: int) -> int:
    """One run and its rows; the exit status."""
    name = f"{task}, {learner}, seed {seed}"
    try:
        curve, versions = (ours if learner in OURS else theirs)(options, learner, task, seed)
    except subprocess.CalledProcessError as error:
        print(f"{name}: failed with exit status {error.returncode}", flush=True)
        return FAILED
    if not curve:
        print(f"{name}: no evaluation within {options.limit:g} s", flush=True)
        return DONE
    facts = {"learner": learner, "task": task, "seed": seed}
    rows = [
        {**facts, **{name: round(row[name], 1) for name in COLUMNS}, "peer": versions}
        for row in curve
    ]
    append(rows, RESULTS, "python -m benchmarks.time_to_return")
    said = "; ".join(f"{level:g}: {time_to(level, curve)}" for level in LEVELS[task])
    print(f"{name}: {said}", flush=True)
    return DONE


def main() -> int:
    """Run what has no rows yet; fails if a run did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    learners = [*OURS, *THEIRS]
    parser.add_argument("--learners", nargs="+", choices=learners, default=learners)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1200.0, help="of every run [s]")
    parser.add_argument("--peers-python", default="", help="a python with the other libraries")
    options = parser.parse_args()
    if not options.peers_python and set(options.learners) & THEIRS.keys():
        raise SystemExit("the others need --peers-python PYTHON; or name ours with --learners")
    known = {(row["learner"], row["task"], row["seed"]) for row in read(RESULTS)}
    return max(
        (
            measure(options, learner, task, seed)
            for task, seed, learner in product(options.tasks, options.seeds, options.learners)
            if (learner, task, str(seed)) not in known
        ),
        default=DONE,
    )


if __name__ == "__main__":
    raise SystemExit(main())
