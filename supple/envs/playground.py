"""MuJoCo Playground: ``playground/<task>``, MJX in JAX, or Warp on a GPU.

Locomotion and manipulation tasks fetch their robots from GitHub as they are first loaded. States
named ``privileged_state`` become the critic's group; they begin with the policy's own numbers.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from supple.envs import installed
from supple.envs.jax_sim import JaxSim
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = (
    *("CartpoleBalance", "CheetahRun", "HumanoidWalk", "WalkerRun"),
    *(f"{robot}Joystick{ground}Terrain" for robot in ("G1", "T1") for ground in ("Flat", "Rough")),
    *("Go1JoystickFlatTerrain", "Go1JoystickRoughTerrain"),
)
"""Where Playground is not installed; its own registry knows more."""


class Playground(JaxSim):
    """A Playground environment under the contract of ``envs/base.py``."""

    def render(self) -> np.ndarray:
        """A picture of environment 0, (H, W, 3) uint8."""
        (picture,) = self._env.render([self._first_state()])
        return np.ascontiguousarray(picture)


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    return installed.status("mujoco_playground", "playground")


@functools.cache
def tasks() -> tuple[str, ...]:
    """Its own registry where it is installed."""
    if not installed.is_installed("mujoco_playground"):
        return TASKS
    from mujoco_playground import registry

    return tuple(sorted(registry.ALL_ENVS))


def exists(name: str) -> bool:
    """Whether it is registered."""
    return name in tasks()


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Playground:
    """Environments of a registered task; pushes and domain randomisation are as it ships them.

    Raises:
        InputError: Playground is not installed, or cannot fetch the task's robot.
    """
    task_id = f"playground/{name}"
    installed.require("mujoco_playground", "playground", task_id)
    if render and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    from mujoco_playground import registry

    config: Any = registry.get_default_config(name)
    # Warp on a CPU compiles for a minute and then steps a hundred times slower than JAX.
    overrides = {"impl": "jax"} if device.type == "cpu" and "impl" in config else None
    try:
        env = registry.load(name, config=config, config_overrides=overrides)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{task_id} cannot be loaded: {' '.join(str(error).split())}; robots of locomotion and"
            " manipulation are fetched from GitHub at first use"
        ) from error
    return Playground(
        env,
        "data",
        task_id=task_id,
        num_envs=settings.num_envs,
        limit=int(config.episode_length) // int(config.action_repeat),
        action_repeat=int(config.action_repeat),
        device=device,
    )
