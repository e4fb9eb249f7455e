"""Whether ``mujoco/<name>`` steps as Gymnasium's ``<name>-v5`` does, from the same random states.

Both are put into each state, take the same random action, and their observations, rewards and ends
are compared. States scatter around the task's first ones, so that robots fall, hit the ground and
reach their joints' limits.

    python -m benchmarks.experiments.mujoco_equality --states 10000
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch

from supple.bench.table import report
from supple.envs import EnvSettings, make
from supple.envs.gym_packages import quiet_mujoco
from supple.envs.mujoco import MujocoVector
from supple.envs.mujoco_tasks import TASKS

ROWS = Path(__file__).parents[1] / "results" / "mujoco_equality.csv"
COMMAND = "python -m benchmarks.experiments.mujoco_equality"
HEIGHT = {"Hopper": 1, "Walker2d": 1, "Ant": 2, "Humanoid": 2, "HumanoidStandup": 2}
"""Position that is the robot's height."""
FREE = {"Reacher": 2, "Pusher": 7}
"""Joints of the arm; what follows are target and object."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Over all states."""

    worst: float
    """Largest difference of an observation or a reward, relative to 1 + its size; NaN is larger."""
    ends: int
    """States from which the step terminated."""
    other_ends: int
    """Of those and the others, where only one of the two terminated."""


def compare(name: str, states: int, *, chunk: int = 500, seed: int = 0) -> Comparison:
    """Step both from ``states`` random states, ``chunk`` at a time."""
    random = np.random.default_rng(seed)
    with quiet_mujoco():
        single = gymnasium.make(f"{name}-v5", disable_env_checker=True)
    single.reset(seed=0)
    env = make(f"mujoco/{name}", EnvSettings(num_envs=min(chunk, states)))
    assert isinstance(env, MujocoVector)
    worst, ends, other_ends = 0.0, 0, 0
    for _ in range(states // env.spec.num_envs):
        for difference, mine, theirs in _one_step_each(env, single, name, random):
            worst = float(np.maximum(worst, difference))  # unlike max, keeps NaN
            ends += theirs
            other_ends += mine != theirs
    env.close()
    single.close()
    return Comparison(worst, ends, other_ends)


def _one_step_each(
    env: MujocoVector, single: Any, name: str, random: np.random.Generator
) -> list[tuple[float, bool, bool]]:
    count, robot = env.spec.num_envs, single.unwrapped
    qpos, qvel = _scattered(env, name, random)
    env._physics.place(np.arange(count), qpos, qvel)
    action = torch.from_numpy(random.uniform(-1.2, 1.2, (count, env.spec.action.size))).float()
    step = env.step(action)
    found = []
    for row, physical in enumerate(env._physical(action)):
        mujoco.mj_resetData(robot.model, robot.data)
        robot.set_state(qpos[row], qvel[row])
        obs, reward, terminated, _, _ = robot.step(physical)
        # Both as the float32 that agents see; what is left are differences of the simulation.
        expected = np.append(obs, reward).astype(np.float32).astype(float)
        mine = np.append(step["final_observation", "policy"][row], step["reward"][row])
        size = float((np.abs(mine - expected) / (1 + np.abs(expected))).max())
        found.append((size, bool(step["terminated"][row]), bool(terminated)))
    return found


def _scattered(
    env: MujocoVector, name: str, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    count = env.spec.num_envs
    qpos, qvel = env._task.start(random, count)
    far, free = random.uniform(0, 1, (count, 1)), slice(FREE.get(name))
    qpos[:, free] += 0.2 * far * random.standard_normal(qpos[:, free].shape)
    qvel[:, free] += 3 * far * random.standard_normal(qvel[:, free].shape)
    if name in HEIGHT:
        qpos[:, HEIGHT[name]] -= 0.5 * far[:, 0]
    return qpos, qvel


def main() -> None:
    """Compare every task and append its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=10_000)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    for name in options.tasks:
        found = compare(name, options.states)
        row = {
            "task": name,
            "states": options.states,
            "worst difference": f"{found.worst:.2e}",
            "ends": found.ends,
            "other ends": found.other_ends,
            "gymnasium": gymnasium.__version__,
            "mujoco": mujoco.__version__,
        }
        report(f"mujoco/{name}", [row], ROWS, f"{COMMAND} --states {options.states}")


if __name__ == "__main__":
    main()
