"""Experiment 9: does another MuJoCo step the published tasks as ours does?

From the same states the same random actions are taken in both, one step each. Where the results
differ by more than rounding, returns of one version say little of the other's.

    python -m venv other && other/bin/pip install "mujoco==3.3.3" "gymnasium[mujoco]==1.2.0"
    python -m benchmarks.experiments.physics --other-python other/bin/python

Half a minute; rows are appended to ``benchmarks/results/physics.csv``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import command
from supple.bench.table import append, read
from supple.errors import InputError

ROWS = Path(__file__).parents[1] / "results" / "physics.csv"
COMMAND = "python -m benchmarks.experiments.physics --other-python PYTHON"
TASKS = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")
STATES, AT_A_STRETCH = 3000, 300
"""States to step from; those of a stretch follow each other from one reset."""
# Run by either Python, which need have no more than Gymnasium: the first call finds the states.
STEPS = """
import os, sys, warnings
import gymnasium, mujoco, numpy as np
warnings.simplefilter("ignore")
task, file, states, stretch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
env = gymnasium.make(task).unwrapped
if not os.path.exists(file):
    random, found = np.random.default_rng(0), []
    for index in range(states):
        if index % stretch == 0 or ended:
            env.reset(seed=index)
        action = random.uniform(-1, 1, env.action_space.shape)
        found.append((env.data.qpos.copy(), env.data.qvel.copy(), action))
        ended = env.step(action)[2]
    np.savez(file, **dict(zip(("qpos", "qvel", "action"), map(np.array, zip(*found)))))
given = np.load(file)
after, rewards = [], []
for qpos, qvel, action in zip(given["qpos"], given["qvel"], given["action"]):
    env.reset(seed=0)
    env.set_state(qpos, qvel)
    _, reward, *_ = env.step(action)
    after.append(np.concatenate((env.data.qpos, env.data.qvel)))
    rewards.append(reward)
versions = f"mujoco {mujoco.__version__}, gymnasium {gymnasium.__version__}"
np.savez(sys.argv[5], state=after, reward=rewards, versions=versions)
"""


def compared(task: str, other: str) -> dict[str, Any]:
    """One row: how far one step of one task differs between this Python and another.

    Raises:
        InputError: the other has no Gymnasium with MuJoCo.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for name, python in (("here", sys.executable), ("other", other)):
            out = Path(folder) / f"{name}.npz"
            numbers = (str(STATES), str(AT_A_STRETCH))
            arguments = (task, str(Path(folder) / "states.npz"), *numbers, str(out))
            asked = [python, "-c", STEPS, *arguments]
            try:
                done = subprocess.run(asked, check=False, capture_output=True, text=True)
            except OSError as error:
                raise InputError(f"cannot run {python}: {error.strerror}") from error
            if done.returncode:
                said = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
                raise InputError(f"{python} cannot step {task}: {said}; it needs gymnasium[mujoco]")
            with np.load(out) as arrays:
                found.append({key: arrays[key] for key in arrays})
    here, there = found
    worst_M = np.abs(here["state"] - there["state"]).max(axis=1)
    return {
        "task": task,
        "here": str(here["versions"]),
        "other": str(there["versions"]),
        "states": STATES,
        "median": f"{np.median(worst_M):.1e}",
        "largest": f"{worst_M.max():.1e}",
        "largest of reward": f"{np.abs(here['reward'] - there['reward']).max():.1e}",
    }


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The newest row of each task and pair of versions, without where it was measured."""
    shown = ("task", "here", "other", "median", "largest", "largest of reward")
    newest = {(row["task"], row["here"], row["other"]): row for row in rows}
    return [{name: row[name] for name in shown} for row in newest.values()]


def main() -> None:
    """Compare, then report."""
    parser = command.parser(__doc__)
    parser.add_argument("--other-python", help="of an environment with the other versions")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    options = parser.parse_args()
    if not options.report:
        if not options.other_python:
            parser.error("give --other-python, or --report")
        found = [compared(task, options.other_python) for task in options.tasks]
        append(found, ROWS, COMMAND)
    command.say(
        "one step from the same states, largest difference of a coordinate", summary(read(ROWS))
    )


if __name__ == "__main__":
    command.start(main)
