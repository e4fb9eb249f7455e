"""MuJoCo Playground: ``playground/<task>``, MJX in JAX, or Warp on a GPU.

Locomotion and manipulation tasks fetch their robots from GitHub as they are first loaded. States
named ``privileged_state`` become the critic's group; where they begin with the policy's own
numbers, as all but those of policies with a history do, the critic reads these once. Pushes and
sensor noise are as a task's configuration has them; Playground's domain randomisers, which only its
own trainings apply, are never called.
"""

from __future__ import annotations

import functools
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from supple.envs import installed
from supple.envs.config import override
from supple.envs.gym_packages import prepare_drawing
from supple.envs.jax_sim import HEIGHT, WIDTH, JaxSim, camera_of, computing_on
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = (
    *("CartpoleBalance", "CheetahRun", "HumanoidWalk", "WalkerRun"),
    *(f"{robot}Joystick{ground}Terrain" for robot in ("G1", "T1") for ground in ("Flat", "Rough")),
    *("Go1JoystickFlatTerrain", "Go1JoystickRoughTerrain"),
)
"""Where Playground is not installed; its own registry knows more."""
TAKES_CONFIG = True


class Playground(JaxSim):
    """A Playground environment under the contract of ``envs/base.py``."""

    def render(self) -> np.ndarray:
        """A picture of environment 0, (480, 640, 3) uint8."""
        camera = camera_of(self._env.mj_model)
        # Given a list it would draw a progress bar, too.
        return np.ascontiguousarray(self._env.render(self._first_state(), HEIGHT, WIDTH, camera))


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    return installed.status("mujoco_playground", "playground")


@functools.cache
def tasks() -> tuple[str, ...]:
    """Its own registry where it is installed."""
    if not installed.is_installed("mujoco_playground"):
        return TASKS
    return tuple(sorted(_registry().ALL_ENVS))


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Playground:
    """Environments of a registered task, every one with the same robot.

    Raises:
        InputError: Playground is not installed, or cannot fetch the task's robot.
    """
    task_id = f"playground/{name}"
    installed.require("mujoco_playground", "playground", task_id)
    registry = _registry()
    config: Any = registry.get_default_config(name)
    if device.type == "cpu" and "impl" in config:
        # Warp on a CPU compiles for a minute and then steps a hundred times slower than JAX.
        config["impl"] = "jax"
    override(config, settings.config, task_id, fixed={})
    try:
        with computing_on(device, task_id):
            env = registry.load(name, config=config)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # of git too
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


def _registry() -> Any:
    prepare_drawing()
    from mujoco_playground import registry

    return registry
