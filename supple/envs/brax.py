"""Brax: ``brax/<id>``, its own physics in JAX."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from supple.envs import installed
from supple.envs.gym_packages import prepare_drawing
from supple.envs.jax_sim import HEIGHT, WIDTH, JaxSim, camera_of, computing_on

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = (
    *("ant", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "inverted_double_pendulum"),
    *("inverted_pendulum", "pusher", "reacher", "swimmer", "walker2d"),
)
LIMIT = 1000
"""Steps of an episode; Brax leaves it to whoever trains, and its own trainings use this."""


class Brax(JaxSim):
    """A Brax environment under the contract of ``envs/base.py``."""

    def render(self) -> np.ndarray:
        """A picture of environment 0, (480, 640, 3) uint8."""
        from brax.io import image

        robot, state = self._env.sys, self._first_state().pipeline_state
        camera = camera_of(robot.mj_model)
        return np.ascontiguousarray(image.render_array(robot, state, HEIGHT, WIDTH, camera))


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    return installed.status("brax", "brax")


@functools.cache
def tasks() -> tuple[str, ...]:
    """The locomotion and control tasks it ships."""
    return TASKS


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Brax:
    """Environments of a Brax task, with the physics it takes by default.

    Raises:
        InputError: Brax is not installed.
    """
    task_id = f"brax/{name}"
    installed.require("brax", "brax", task_id)
    prepare_drawing()
    from brax import envs

    with computing_on(device, task_id):
        env = envs.get_environment(name)
    return Brax(
        env,
        "pipeline_state",
        task_id=task_id,
        num_envs=settings.num_envs,
        limit=LIMIT,
        action_repeat=1,
        device=device,
    )
