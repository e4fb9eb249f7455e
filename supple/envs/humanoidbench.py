"""HumanoidBench: ``humanoidbench/<id>``; only from its repository, with pins of its own.

Version 0.2 asks for torch 2.3.1, Gymnasium 0.29.1 and MuJoCo 3.1.6, the first two older than what
supple runs on: beside it, it can only be installed without its pins. Its environments are ordinary
Gymnasium ones, whose contract the tests hold with the published shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from supple.envs import installed
from supple.envs.gym import GymVector, registered
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = tuple(
    f"h1-{task}-v0"
    for task in (
        *("walk", "stand", "run", "reach", "hurdle", "crawl", "maze", "sit_simple", "sit_hard"),
        *("balance_simple", "balance_hard", "stair", "slide", "pole"),
    )
)
"""The published benchmark: H1 without hands."""
TAKES_CONFIG = TAKES_ASYNC = True


def status() -> str:
    """Whether it can run here, and if not, how to get it."""
    if installed.is_installed("humanoid_bench"):
        return "installed"
    return (
        "not installed: no registry package; git clone"
        " https://github.com/carlosferrazza/humanoid-bench && pip install --no-deps -e"
        " humanoid-bench, which pins torch 2.3.1 and Gymnasium 0.29.1, beside which supple does not"
        " run; with the rest of its setup.py by hand, in an environment of its own: nobody tried"
    )


def tasks() -> tuple[str, ...]:
    """The published benchmark's."""
    return TASKS


def exists(name: str) -> bool:
    """Whether it is a benchmark task, or registered by the installed package."""
    if name in TASKS:
        return True
    if not installed.is_installed("humanoid_bench"):
        return False
    import gymnasium
    import humanoid_bench  # noqa: F401 - registers its ids

    return name in gymnasium.registry


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> GymVector:
    """Environments of a registered id.

    Raises:
        InputError: HumanoidBench is not installed.
    """
    task_id = f"humanoidbench/{name}"
    if not installed.is_installed("humanoid_bench"):
        raise InputError(f"{task_id} needs humanoid_bench, {status()}")
    import humanoid_bench  # noqa: F401 - registers its ids

    return registered(name, settings, task_id=task_id, device=device, render=render)
