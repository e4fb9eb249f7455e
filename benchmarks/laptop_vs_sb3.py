"""What the laptop preset reaches, beside SAC of Stable-Baselines3 in the same training seconds.

Interleaved, one run at a time: supple seed 0, SB3 seed 0, supple seed 1, … Every row goes to
``benchmarks/results/laptop_vs_sb3.csv`` as soon as it is measured.

    python benchmarks/laptop_vs_sb3.py --seeds 0 1 2 --sb3-python /path/to/venv/bin/python

SB3 wants an environment of its own: pip install stable-baselines3 "gymnasium[mujoco]".
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from supple import machine

RESULTS = Path(__file__).parent / "results" / "laptop_vs_sb3.csv"
SB3 = """
import json, sys, time
import gymnasium, numpy, stable_baselines3, torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
task, seconds, seed, threads = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
class Clock(BaseCallback):
    def _on_training_start(self):
        self.begin = time.monotonic()
    def _on_step(self):
        return time.monotonic() - self.begin < seconds
model = SAC("MlpPolicy", gymnasium.make(task), seed=seed, device="cpu")
model.learn(10**9, callback=Clock())
env = gymnasium.make(task)
env.reset(seed=seed + 1000)
returns, _ = evaluate_policy(model, env, n_eval_episodes=10, deterministic=True,
                             return_episode_rewards=True, warn=False)
print(json.dumps({"return_mean": float(numpy.mean(returns)),
                  "return_std": float(numpy.std(returns, ddof=1)),
                  "env_steps": model.num_timesteps, "seconds": seconds,
                  "versions": f"stable-baselines3 {stable_baselines3.__version__},"
                              f" torch {torch.__version__}"}))
"""


def supple_run(task: str, seed: int, threads: int) -> dict[str, object]:
    """Train the laptop preset once; the seconds exclude the final video."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = ["supple.cli", "train", f"gym/{task}", "--preset", "laptop", "--seed", str(seed)]
        command += ["--threads", str(threads), "--run-dir", str(run_dir)]
        subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
        result: dict[str, object] = json.loads((run_dir / "result.json").read_text())
    found = machine.versions()
    result["versions"] = f"supple {found['supple']}, torch {found['torch']}"
    return result


def sb3_run(python: str, task: str, seconds: float, seed: int, threads: int) -> dict[str, object]:
    """Train SB3's SAC with its defaults for so many seconds."""
    command = [python, "-W", "ignore", "-c", SB3, task, str(seconds), str(seed), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def record(who: str, task: str, seed: int, threads: int, result: dict[str, object]) -> None:
    """Append one row."""
    row = {
        "date": time.strftime("%Y-%m-%d"),
        "learner": who,
        "task": task,
        "seed": seed,
        "return_mean": f"{result['return_mean']:.1f}",
        "return_std": f"{result['return_std']:.1f}",
        "episodes": 10,
        "env_steps": result["env_steps"],
        "training_seconds": f"{result['seconds']:.0f}",
        "threads": threads,
        "machine": f"{machine.processor()}, {machine.cores()} shared cores",
        "versions": result["versions"],
        "commit": machine.commit(),
        "command": "python benchmarks/laptop_vs_sb3.py",
    }
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(f"{who} seed {seed}: {row['return_mean']} after {row['training_seconds']} s", flush=True)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="HalfCheetah-v5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--sb3-python", default="", help="a python with stable-baselines3")
    options = parser.parse_args()
    for seed in options.seeds:
        ours = supple_run(options.task, seed, options.threads)
        record("supple flashsac laptop", options.task, seed, options.threads, ours)
        if options.sb3_python:
            seconds = float(str(ours["seconds"]))
            theirs = sb3_run(options.sb3_python, options.task, seconds, seed, options.threads)
            record("stable-baselines3 SAC", options.task, seed, options.threads, theirs)


if __name__ == "__main__":
    main()
