"""Complete steps of CPU simulators beside each other: physics, observation, reward and reset.

Every variant of a task steps the same number of environments with random actions, in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from supple.bench.table import interleaved, quantiles
from supple.envs import EnvSettings, make
from supple.envs.gym_packages import quiet_mujoco

TASKS = ("HalfCheetah", "Ant", "Humanoid")
SIZES = (64, 256)
STEPS = 2_000
"""Environment steps per timing, about."""
OURS = "supple mujoco"


@dataclass(frozen=True, slots=True)
class _Case:
    task: str
    num_envs: int

    @property
    def steps(self) -> int:
        """Vector steps per timing."""
        return max(4, STEPS // self.num_envs)


def bench_envs(options: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A title and the rows of each task and number of environments."""
    for task in TASKS:
        for num_envs in SIZES:
            case = _Case(task, num_envs)
            with ExitStack() as stack:
                variants = _variants(case, stack, peers=options.peers)
                seconds = interleaved(variants, options.rounds)
            yield f"{task}, {num_envs} environments", _rows(case, seconds)


def _variants(case: _Case, stack: ExitStack, *, peers: bool) -> dict[str, Callable[[], object]]:
    found = {
        OURS: _supple(f"mujoco/{case.task}", case, stack),
        "supple gym": _supple(f"gym/{case.task}-v5", case, stack),
        "SyncVectorEnv": _gymnasium(case, stack),
    }
    if peers and importlib.util.find_spec("envpool"):
        found["envpool"] = _envpool(case, stack)
    return found


def _supple(task: str, case: _Case, stack: ExitStack) -> Callable[[], object]:
    env = make(task, EnvSettings(num_envs=case.num_envs))
    stack.callback(env.close)
    random = torch.Generator().manual_seed(0)
    size = (case.steps, case.num_envs, env.spec.action.size)
    actions = torch.rand(size, generator=random) * 2 - 1
    return lambda: [env.step(action) for action in actions]


def _gymnasium(case: _Case, stack: ExitStack) -> Callable[[], object]:
    import gymnasium

    with quiet_mujoco():
        env: Any = gymnasium.make_vec(
            f"{case.task}-v5", num_envs=case.num_envs, vectorization_mode="sync"
        )
    stack.callback(env.close)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(case.steps)]
    return lambda: [env.step(action) for action in actions]


def _envpool(case: _Case, stack: ExitStack) -> Callable[[], object]:
    import envpool

    env: Any = envpool.make_gymnasium(
        f"{case.task}-v5", num_envs=case.num_envs, num_threads=torch.get_num_threads()
    )
    stack.callback(env.close)
    env.reset()
    env.action_space.seed(0)
    actions = [
        np.stack([env.action_space.sample() for _ in range(case.num_envs)])
        for _ in range(case.steps)
    ]
    return lambda: [env.step(action) for action in actions]


def _rows(case: _Case, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row per variant; ``ours over it`` is the median of the rounds' own ratios."""
    per_timing = case.steps * case.num_envs
    return [
        {
            "variant": name,
            "task": case.task,
            "num envs": case.num_envs,
            **quantiles(times),
            "steps per second": f"{per_timing / np.median(times):.0f}",
            "ours over it": f"{np.median(np.array(times) / np.array(seconds[OURS])):.2f}",
        }
        for name, times in seconds.items()
    ]
