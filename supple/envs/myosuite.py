"""MyoSuite: ``myosuite/<id>``, muscles; success is its own ``solved`` flag."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from supple.envs import installed
from supple.envs.gym import GymVector, registered

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = tuple(
    f"myoHand{task}{kind}-v0"
    for task in ("Reach", "Pose", "ObjHold", "KeyTurn", "PenTwirl")
    for kind in ("Fixed", "Random")
)
"""The published benchmark, named where MyoSuite is not installed."""
TAKES_CONFIG = TAKES_ASYNC = True


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    return installed.status("myosuite", "myosuite")


@functools.cache
def tasks() -> tuple[str, ...]:
    """Every registered id where it is installed."""
    if not installed.is_installed("myosuite"):
        return TASKS
    import myosuite

    return tuple(sorted(myosuite.myosuite_env_suite))


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> GymVector:
    """Environments of a registered id.

    Raises:
        InputError: MyoSuite is not installed.
    """
    task_id = f"myosuite/{name}"
    installed.require("myosuite", "myosuite", task_id)
    import myosuite  # noqa: F401 - registers its ids

    return registered(name, settings, task_id=task_id, device=device, render=render)
