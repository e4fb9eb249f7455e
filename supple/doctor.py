"""``supple doctor`` and ``supple list``: what is installed, what works, what there is to train."""

from __future__ import annotations

import os
from contextlib import closing

import torch

from supple import machine
from supple.cli import DONE, FAILED
from supple.configs import PRESETS
from supple.configs.recipes import SIMULATORS, recipes_of
from supple.display import Display
from supple.envs import EnvSettings, known_tasks, make
from supple.envs.base import Env
from supple.envs.check import check_env
from supple.errors import InputError

MOST_STEPS = 1100
"""Longest rollout of ``supple doctor --env``."""
TASKS_SHOWN = 8
"""Task names per simulator in the overview; ``supple list SIMULATOR`` prints all."""


def check_machine() -> int:
    """Print versions, what this machine offers and every simulator's state."""
    rows = machine.versions()
    rows["CUDA"] = "yes" if torch.cuda.is_available() else "no: training runs on the CPU"
    rows["keeps freed memory"] = "yes" if machine.keep_freed_memory() else "no: not glibc"
    rows["video"] = _video()
    Display.print_table("this machine", rows)
    Display.print_table("simulators", {name: sim.status for name, sim in known_tasks().items()})
    return DONE


def _video() -> str:
    task = "gym/InvertedPendulum-v5"
    try:
        env = make(task, EnvSettings(), device=torch.device("cpu"), render=True)
        try:
            env.reset(0)
            height, width, _ = env.render().shape
        finally:
            env.close()
    except Exception as error:  # whatever a graphics stack may raise is the answer here
        return f"no: {' '.join(str(error).split()) or type(error).__name__}"
    return f"yes, {width} x {height}, MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}"


def check_environment(task: str) -> int:
    """Prove a task against the contract; returns the exit status."""
    settings = EnvSettings(num_envs=4)

    def build() -> Env:
        return make(task, settings, device=torch.device("cpu"))

    with closing(build()) as env:
        limit = env.spec.max_episode_steps or 0
    # Past a whole episode, where that is short enough to wait for.
    findings = check_env(build, steps=max(200, min(limit + 10, MOST_STEPS)))
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}")
    failed = sum(not finding.ok for finding in findings)
    print(f"{task}: {len(findings) - failed} checks passed, {failed} failed")
    return FAILED if failed else DONE


def _recipes() -> dict[str, str]:
    return {
        f"{simulator}/{pattern}": (recipe.__doc__ or "").split("\n")[0]
        for simulator in SIMULATORS
        for pattern, recipe in recipes_of(simulator).items()
    }


def print_list(simulator: str | None) -> None:
    """Print agents, presets, simulators, recipes; with ``simulator``, its tasks, one a line.

    Raises:
        InputError: unknown simulator.
    """
    simulators = known_tasks()
    if simulator is None:
        for agent, presets in PRESETS.items():
            said = {name: (preset.__doc__ or "").split("\n")[0] for name, preset in presets.items()}
            Display.print_table(f"--agent {agent}, --preset", said)
        rows = {}
        for name, found in simulators.items():
            shown = ", ".join(found.tasks[:TASKS_SHOWN])
            more = len(found.tasks) - TASKS_SHOWN
            rest = f", and {more} more: supple list {name}" if more > 0 else ""
            rows[name] = f"{found.status}: {shown}{rest}"
        Display.print_table("simulators", rows)
        Display.print_table("recipes", _recipes())
        return
    if simulator not in simulators:
        raise InputError(f"unknown simulator {simulator}; known: {', '.join(simulators)}")
    for task in simulators[simulator].tasks:
        print(f"{simulator}/{task}")
