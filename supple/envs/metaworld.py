"""Meta-World 3: ``metaworld/<task>-v3``, one task; an episode has one of its fifty goals (MT1)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import gymnasium
import torch

from supple.envs import installed
from supple.envs.gym import GymVector, wrap_factory

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TAKES_ASYNC = True
TASKS = ("reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-close-v3")
"""Where Meta-World is not installed; it has fifty."""
GOALS = 0
"""Seed of a task's fifty goals: the same in every environment, process and run."""


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    return installed.status("metaworld", "metaworld")


@functools.cache
def tasks() -> tuple[str, ...]:
    """All fifty where it is installed."""
    if not installed.is_installed("metaworld"):
        return TASKS
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return tuple(sorted(ALL_V3_ENVIRONMENTS))


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> GymVector:
    """Environments of one task.

    Raises:
        InputError: Meta-World is not installed.
    """
    task_id = f"metaworld/{name}"
    installed.require("metaworld", "metaworld", task_id)
    import metaworld  # noqa: F401 - registers its ids

    def one(**options: Any) -> gymnasium.Env[Any, Any]:
        made: Any = gymnasium.make(
            "Meta-World/MT1", env_name=name, seed=GOALS, disable_env_checker=True, **options
        )
        return Seeded(made)

    return wrap_factory(
        one,
        settings,
        task_id=task_id,
        device=device,
        render=render,
    )


class Seeded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Meta-World's ``reset`` leaves its seed unread, and draws the goal before it anyway."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Seed what the goal is drawn from, then start."""
        if seed is not None:
            robot: Any = self.unwrapped
            robot.seed(seed)
        return self.env.reset(seed=seed, options=options)
