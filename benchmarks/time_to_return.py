"""Wall-clock to a return: the laptop preset beside SAC and PPO of Stable-Baselines3.

One run at a time, learners in turn for every seed, so that a noisy neighbour hits all of them.
Every learner is evaluated over ten deterministic episodes. supple's clock runs on meanwhile, and
through compiling; the clock of Stable-Baselines3 stands still. supple runs its 36,000 steps; a
learner of Stable-Baselines3 is stopped when three evaluations in a row reached the level, or at
its limit.

    python benchmarks/time_to_return.py --seeds 0 1 2 --sb3-python /path/to/venv/bin/python

Stable-Baselines3 wants an environment of its own, with "gymnasium[mujoco]".
Every evaluation becomes a row of ``benchmarks/results/time_to_return.csv``.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from supple import machine
from supple.metrics import read_csv

RESULTS = Path(__file__).parent / "results" / "time_to_return.csv"
IN_A_ROW = 3
SB3 = """
import json, sys, time
import gymnasium, numpy, stable_baselines3, torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
name, task, limit, seed, threads, level, in_a_row, every = sys.argv[1:]
torch.set_num_threads(int(threads))
env = gymnasium.make(task)
env.reset(seed=int(seed) + 1000)
class Clock(BaseCallback):
    reached = 0
    def _on_training_start(self):
        self.begin = time.monotonic()
    def _on_step(self):
        if self.num_timesteps % int(every) == 0:
            stopped = time.monotonic()
            seconds = stopped - self.begin
            returns, _ = evaluate_policy(self.model, env, n_eval_episodes=10, deterministic=True,
                                         return_episode_rewards=True, warn=False)
            print(json.dumps({"seconds": seconds, "env_steps": self.num_timesteps,
                              "return_mean": float(numpy.mean(returns)),
                              "return_std": float(numpy.std(returns, ddof=1))}), flush=True)
            self.reached = self.reached + 1 if numpy.mean(returns) >= float(level) else 0
            self.begin += time.monotonic() - stopped
        return self.reached < int(in_a_row) and time.monotonic() - self.begin < float(limit)
learner = {"SAC": SAC, "PPO": PPO}[name]
model = learner("MlpPolicy", gymnasium.make(task), seed=int(seed), device="cpu")
model.learn(10**9, callback=Clock())
print(json.dumps({"versions": f"stable-baselines3 {stable_baselines3.__version__},"
                              f" torch {torch.__version__}"}))
"""

Row = Mapping[str, float]


def supple_curve(options: argparse.Namespace, seed: int) -> tuple[list[Row], str]:
    """Evaluations of one run of the laptop preset, and versions."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "supple.cli", "train", f"gym/{options.task}"]
        command += ["--preset", "laptop", "--seed", str(seed), "--threads", str(options.threads)]
        command += ["--eval.every", str(options.every), "--eval.no-video"]
        subprocess.run([*command, "--run-dir", f"{folder}/run"], check=True, capture_output=True)
        columns = read_csv(Path(folder) / "run" / "metrics.csv")
    names = ("time/seconds", "step", "eval/return_mean", "eval/return_std")
    rows: list[Row] = [
        dict(zip(("seconds", "env_steps", "return_mean", "return_std"), values, strict=True))
        for values in zip(*(columns[name] for name in names), strict=True)
        if values[2] is not None
    ]
    found = machine.versions()
    return rows, f"supple {found['supple']}, torch {found['torch']}"


def sb3_curve(options: argparse.Namespace, name: str, seed: int) -> tuple[list[Row], str]:
    """Evaluations of Stable-Baselines3 with its defaults until level or limit, and versions."""
    every = options.every if name == "SAC" else 10_000
    given = (name, options.task, options.limit, seed, options.threads, options.level)
    arguments = [str(value) for value in (*given, IN_A_ROW, every)]
    command = [options.sb3_python, "-W", "ignore", "-c", SB3, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    *rows, last = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    return rows, last["versions"]


def curves(options: argparse.Namespace) -> Iterator[tuple[str, int, list[Row]]]:
    """Run everything in turn, and write down each learner's evaluations as they are known."""
    for seed in options.seeds:
        learners = {"supple flashsac laptop": lambda seed=seed: supple_curve(options, seed)}
        if options.sb3_python:
            for name in ("SAC", "PPO"):
                learners[f"stable-baselines3 {name}"] = lambda name=name, seed=seed: sb3_curve(
                    options, name, seed
                )
        for learner, run in learners.items():
            rows, versions = run()
            record(options, learner, seed, rows, versions)
            yield learner, seed, rows


def record(
    options: argparse.Namespace, learner: str, seed: int, rows: list[Row], versions: str
) -> None:
    """Append one learner's evaluations."""
    where = {
        "date": time.strftime("%Y-%m-%d"),
        "learner": learner,
        "task": options.task,
        "seed": seed,
    }
    how = {
        "threads": options.threads,
        "machine": f"{machine.processor()}, {machine.cores()} shared cores",
        "versions": versions,
        "commit": machine.commit(),
        "command": "python benchmarks/time_to_return.py",
    }
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        for row in rows:
            if new:
                writer.writerow([*where, *row, *how])
                new = False
            writer.writerow([*where.values(), *(round(v, 1) for v in row.values()), *how.values()])


def time_to(level: float, rows: list[Row]) -> str:
    """Seconds until the first evaluation at the level, or more than the last one's."""
    for row in rows:
        if row["return_mean"] >= level:
            return f"{row['seconds']:.0f} s, {row['env_steps']:,.0f} steps"
    best = max(row["return_mean"] for row in rows)
    return f"> {rows[-1]['seconds']:.0f} s (best {best:.0f})"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="HalfCheetah-v5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--level", type=float, default=3000.0)
    parser.add_argument("--every", type=int, default=1800, help="environment steps")
    parser.add_argument("--limit", type=float, default=1200.0, help="of Stable-Baselines3 [s]")
    parser.add_argument("--sb3-python", default="", help="a python with stable-baselines3")
    options = parser.parse_args()
    for learner, seed, rows in curves(options):
        print(f"{learner}, seed {seed}: {time_to(options.level, rows)}", flush=True)


if __name__ == "__main__":
    main()
