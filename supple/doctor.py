"""``supple doctor`` and ``supple list``: what is installed, what works, what there is to train."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from supple import machine
from supple.cli import DONE, FAILED
from supple.configs import PRESET_RULE, PRESETS
from supple.configs.recipes import SIMULATORS, recipes_of
from supple.display import Display
from supple.envs import EnvSettings, known_tasks, make
from supple.envs.base import Env, EnvSpec
from supple.envs.check import check_env
from supple.envs.registry import knows_few
from supple.errors import InputError, say_once

MOST_STEPS = 1100
"""Longest rollout of ``supple doctor --env``."""
NUMBERS_SHOWN = 24
"""Of each field of a bad row in a dump."""
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
    Display.print_table("the same seed gives the same bits, except for", not_deterministic())
    return DONE


def not_deterministic() -> dict[str, str]:
    """What can differ between two runs of one seed, and why.

    On one machine, by the CPU, every agent repeats itself bit for bit on toy/*, mujoco/*, and gym/*
    with MuJoCo or classic control (tests/test_resume.py).
    """
    threads = torch.get_num_threads()
    cuda = "sums over indices are added up in any order, and libraries choose kernels by timing"
    here = "" if torch.cuda.is_available() else " (none here)"
    return {
        "another number of threads": f"sums are split otherwise; --threads fixes it, now {threads}",
        "another processor or torch": "libraries choose other kernels, which round otherwise",
        "compiled or eager, float32 or bfloat16": "they round otherwise; fix --compute.compile and"
        " --compute.precision, whose auto goes by run and machine",
        f"CUDA{here}": cuda,
        "simulators on a GPU": "mjlab, isaaclab, playground, brax, maniskill: their contact solvers"
        " add up forces in any order",
        "resuming simulators that cannot save their state": "all but toy, mujoco, and gym with"
        " MuJoCo or classic control: episodes start afresh, which the run says",
        "resuming FlashSAC after --checkpoint.keep-replay 0": "no rows were written: its ring"
        " starts empty, which the run says",
        "simulators of your own": "whatever they draw apart from the seed; supple doctor --env"
        " compares two rollouts",
        "--max-minutes": "the clock says when training ends",
        "--overlap": "repeats itself, but learns from one vector step less than without",
        "time/* and diag/*": "wall-clock, memory, and samples that depend on when they are taken",
        "videos": "drawn by the machine's graphics driver",
    }


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


def check_environment(
    task: str, settings: EnvSettings, *, device: str, steps: int | None = None
) -> int:
    """Prove a task against the contract.

    Args:
        task: any.
        settings: how its environments are made.
        device: where its tensors are to live, as ``--device`` has it.
        steps: of each rollout; by default past a whole episode, where that is short enough to wait
            for.

    Returns:
        The exit status.

    Raises:
        InputError: no such task or device, or it cannot be built so.
    """
    place = machine.resolve_device(device)
    machine.use(place)

    def build() -> Env:
        return make(task, settings, device=place)

    if steps is None:
        with closing(build()) as env:
            steps = max(200, min((env.spec.max_episode_steps or 0) + 10, MOST_STEPS))
    findings = check_env(build, steps=steps)
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}")
    failed = sum(not finding.ok for finding in findings)
    noted = sum(finding.ok and finding.detail.startswith("note:") for finding in findings)
    notes = f" ({noted} with a note)" if noted else ""
    print(f"{task}: {len(findings) - failed} checks passed{notes}, {failed} failed")
    return FAILED if failed else DONE


def check_dump(path: Path) -> int:
    """Repeat the gradient step of a run's dump; returns the exit status.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from supple import checkpoint
    from supple.agents.care import Caught
    from supple.build import build_agent
    from supple.configs.base import from_json
    from supple.divergence import first_bad
    from supple.trained import on_this_machine

    found = checkpoint.load(path)
    with checkpoint.following_format(path, "use another dump"):
        settings = on_this_machine(from_json(found.header["settings"]), "cpu")
        spec = replace(EnvSpec.from_json(found.header["spec"]), device=torch.device("cpu"))
        state = found.state
        rewards = state["steps"]["reward"]
        rows = {"run": f"{settings.task}, {settings.agent_name}, seed {settings.seed}"}
        if "row" in state:
            rows["said"] = str(found.header["said"])
            rows |= {name: _numbers(value) for name, value in state["row"].items()}
        else:
            caught = Caught(tuple(state["inputs"]), state["agent"])
            rows["first bad number"] = first_bad(build_agent(settings, spec), caught)
            rows["minibatch"] = ", ".join(_extent(value) for value in caught.inputs)
        rows["newest steps"] = (
            f"{len(rewards)} of {rewards.shape[1]} environments, rewards {_extent(rewards)}"
        )
    Display.print_table(f"dump {path}", rows)
    return DONE


def _numbers(value: torch.Tensor) -> str:
    shown = " ".join(f"{number:.6g}" for number in value.flatten()[:NUMBERS_SHOWN].tolist())
    return shown + (f" ... ({value.numel()})" if value.numel() > NUMBERS_SHOWN else "")


def _extent(value: torch.Tensor) -> str:
    """Shape and size of a tensor of the dump."""
    size = value.float().abs()
    bad = int((~torch.isfinite(size)).sum())
    largest = size[torch.isfinite(size)].max() if bool(torch.isfinite(size).any()) else 0.0
    wrong = f" and {bad} not finite" if bad else ""
    return f"{tuple(value.shape)} up to {float(largest):.3g}{wrong}"


def _recipes() -> dict[str, str]:
    return {
        f"{simulator}/{pattern}": _summary(recipe)
        for simulator in SIMULATORS
        for pattern, recipe in recipes_of(simulator).items()
    }


def _summary(function: object) -> str:
    """The first line of its docstring, as a terminal shows it."""
    return (function.__doc__ or "").split("\n")[0].replace("``", "")


def print_list(simulator: str | None) -> None:
    """Print agents, presets, simulators, recipes; with ``simulator``, its tasks, one a line.

    Raises:
        InputError: unknown simulator.
    """
    simulators = known_tasks()
    if simulator is None:
        for agent, presets in PRESETS.items():
            said = {name: _summary(preset) for name, preset in presets.items()}
            said["default"] = PRESET_RULE
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
    if knows_few(simulator):
        say_once(f"{simulator}/ may have more tasks: it is {simulators[simulator].status}")
