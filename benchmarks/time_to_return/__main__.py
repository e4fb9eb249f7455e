"""Wall-clock to a return: our presets beside other libraries' learners, from one machine.

One run at a time, learners in turn for every task and seed, so that a noisy neighbour hits all of
them; ``--core`` holds runs and their compilers to one core. Every learner is judged by ten
deterministic episodes. Our clock runs on meanwhile, and through compiling, which each run does
afresh; the clock of the others stands still. Ours run their preset's steps; the others end with the
first evaluation at the task's higher level; all end at the limit. Ours and RL Zoo's settings were
chosen on tasks like these; the others' are their defaults, or said in their files.

    python -m benchmarks.time_to_return --peers-python /path/to/venv/bin/python --core 1

What has rows already is left out, so that the command can be stopped and given again; Ctrl-C loses
the run in progress. A run that fails keeps the evaluations it had; one that has none within the
limit is said and leaves no row. Neither holds anything up. The others want an environment of their
own, with "gymnasium[mujoco]", "stable-baselines3" and "rsl-rl-lib"; ``--reference`` takes a
checkout of the published FlashSAC. Every evaluation becomes a row of
``benchmarks/results/wall_clock.csv``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from supple.bench.table import append, read
from supple.cli import DONE, FAILED
from supple.metrics import METRICS, complete, read_csv
from supple.run import RESULT

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "wall_clock.csv"
LEVELS = {
    "HalfCheetah-v5": (1000.0, 3000.0),
    "Hopper-v5": (1000.0, 2000.0),
    "Walker2d-v5": (1000.0, 2000.0),
}
"""Returns that are timed. HalfCheetah's lower one lies below its slow gait's, which is 1500."""
OURS = {
    "supple flashsac laptop": ("--preset", "laptop"),
    "supple flow laptop": ("--preset", "laptop", "--agent.critic", "flow"),
    "supple flashsac cpu": ("--preset", "cpu"),
    "supple ppo laptop": ("--agent", "ppo", "--preset", "laptop"),
    "supple ppo cpu": ("--agent", "ppo", "--preset", "cpu"),
}
EVERY = {"ppo": 10_000, "flashsac": 1_800}
"""Environment steps between our evaluations, as for the others' SAC and PPO."""
THEIRS = {
    "Stable-Baselines3 SAC": ("sb3", "SAC"),
    "Stable-Baselines3 SAC, sized as laptop": ("sb3", "SAC-laptop"),
    "Stable-Baselines3 PPO": ("sb3", "PPO"),
    "Stable-Baselines3 PPO, RL Zoo": ("sb3", "PPO-zoo"),
    "rsl_rl PPO": ("rsl", "PPO"),
    "CleanRL-style PPO": ("cleanrl_style", "PPO"),
}
OFFICIAL = "official FlashSAC"
ONLY = dict.fromkeys(("supple flow laptop", "supple flashsac cpu", OFFICIAL), ("HalfCheetah-v5",))
"""Learners with few tasks: those whose steps take long would find no level of the others within the
limit (``benchmarks/results/reproduction.csv``)."""
COLUMNS = ("seconds", "env_steps", "return_mean", "return_std")
Curve = Sequence[Mapping[str, float]]


class Run(NamedTuple):
    """What a run came to."""

    curve: Curve
    ended: str
    """``reached`` the higher level, at the ``limit``, with its ``steps``, or ``failed``."""
    versions: str = ""
    """Of another library."""


def ours(options: argparse.Namespace, learner: str, task: str, seed: int) -> Run:
    """One run of ours; nothing compiled before is found."""
    flags = OURS[learner]
    every = EVERY["ppo" if "ppo" in flags else "flashsac"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "supple", "train", f"gym/{task}", *flags]
        command += ["--seed", str(seed), "--threads", str(options.threads), "--eval.no-video"]
        command += ["--eval.every", str(every), "--eval.episodes", "10"]
        command += ["--max-minutes", str(options.limit / 60)]
        command += ["--run-dir", f"{folder}/run"]
        done = subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"},
        )
        metrics, result = (Path(folder) / "run" / name for name in (METRICS, RESULT))
        columns = read_csv(metrics) if metrics.exists() else {}
        seconds = json.loads(result.read_text())["seconds"] if result.exists() else 0.0
    names = ("time/seconds", "step", "eval/return_mean", "eval/return_std")
    curve = [dict(zip(COLUMNS, row, strict=True)) for row in complete(columns, *names)]
    if done.returncode:
        return Run(curve, f"failed, exit status {done.returncode}")
    if first_at(LEVELS[task][-1], curve):
        return Run(curve, "reached")
    return Run(curve, "limit" if seconds >= options.limit else "steps")


def theirs(options: argparse.Namespace, learner: str, task: str, seed: int) -> Run:
    """One run of another library's learner."""
    if learner == OFFICIAL:
        python, module, algorithm = sys.executable, "official", str(options.reference)
    else:
        python, (module, algorithm) = options.peers_python, THEIRS[learner]
    command = [python, "-W", "ignore", "-m", f"benchmarks.time_to_return.{module}"]
    told = (algorithm, task, seed, options.threads, LEVELS[task][-1], options.limit)
    done = subprocess.run([*command, *map(str, told)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    said = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    curve = [line for line in said if "return_mean" in line]
    if done.returncode:
        return Run(curve, f"failed, exit status {done.returncode}")
    return Run(curve, said[-1]["ended"], said[-1]["versions"])


def first_at(level: float, curve: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first evaluation at the level; None where none is."""
    return next((row for row in curve if float(row["return_mean"]) >= level), None)


def time_to(level: float, run: Run) -> str:
    """Seconds until the first evaluation at the level, or more than the last one's."""
    row = first_at(level, run.curve)
    if row:
        return f"{row['seconds']:.0f} s, {row['env_steps']:,.0f} steps"
    best = max(row["return_mean"] for row in run.curve)
    return f"> {run.curve[-1]['seconds']:.0f} s (best {best:.0f}, ended: {run.ended})"


def measure(options: argparse.Namespace, learner: str, task: str, seed: int) -> int:
    """One run and its rows; the exit status."""
    name = f"{task}, {learner}, seed {seed}"
    run = (ours if learner in OURS else theirs)(options, learner, task, seed)
    status = FAILED if run.ended.startswith("failed") else DONE
    if not run.curve:
        print(f"{name}: no evaluation within {options.limit:g} s; ended: {run.ended}", flush=True)
        return status
    facts: dict[str, Any] = {"learner": learner, "task": task, "seed": seed}
    facts |= {"limit": options.limit, "threads": options.threads, "core": options.core}
    numbers = [{name: round(row[name], 1) for name in COLUMNS} for row in run.curve]
    rows = [{**facts, **row, "ended": run.ended, "peer": run.versions} for row in numbers]
    append(rows, options.out, "python -m benchmarks.time_to_return")
    said = "; ".join(f"{level:g}: {time_to(level, run)}" for level in LEVELS[task])
    print(f"{name}: {said}", flush=True)
    return status


def main() -> int:
    """Run what has no rows yet; fails if a run did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    learners = [*OURS, *THEIRS, OFFICIAL]
    parser.add_argument("--learners", nargs="+", choices=learners, default=learners)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", type=int, help="hold everything to one core of the machine")
    parser.add_argument("--limit", type=float, default=1200.0, help="of every run [s]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the rows' file")
    parser.add_argument("--peers-python", default="", help="a python with the other libraries")
    parser.add_argument("--reference", type=Path, help="a checkout of the published FlashSAC")
    options = parser.parse_args()
    if not options.peers_python and set(options.learners) & THEIRS.keys():
        raise SystemExit("the others need --peers-python PYTHON; or name ours with --learners")
    if not options.reference:
        options.learners = [name for name in options.learners if name != OFFICIAL]
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    known = {
        tuple(row[name] for name in ("learner", "task", "seed", "limit", "threads", "core"))
        for row in read(options.out)
    }
    how = (options.limit, options.threads, "" if options.core is None else options.core)
    return max(
        (
            measure(options, learner, task, seed)
            for task, seed, learner in product(options.tasks, options.seeds, options.learners)
            if task in ONLY.get(learner, LEVELS)
            and tuple(map(str, (learner, task, seed, *how))) not in known
        ),
        default=DONE,
    )


if __name__ == "__main__":
    raise SystemExit(main())
