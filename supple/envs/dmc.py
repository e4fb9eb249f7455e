"""DeepMind Control Suite: ``dmc/<domain>-<task>``, straight on ``dm_env``.

A time limit is a last step with discount 1, a failure one with discount 0. After a last step
dm_env would reset silently and return no reward; the vector environment resets before that.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as GymSpec

from supple.envs import installed
from supple.envs.base import Channel
from supple.envs.gym import GymVector, wrap_factory
from supple.envs.gym_packages import prepare_drawing

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TAKES_ASYNC = True
HEIGHT, WIDTH = 480, 640
"""Of pictures [pixels]."""
TASKS = (
    *("cartpole-balance_sparse", "cartpole-swingup_sparse", "pendulum-swingup"),
    *("humanoid-stand", "humanoid-walk", "humanoid-run"),
    *("dog-stand", "dog-walk", "dog-run", "dog-trot"),
)
"""The published benchmark, named where dm_control is not installed."""


class DmEnv(gymnasium.Env[Any, Any]):
    """One ``dm_env.Environment`` of the control suite as a Gymnasium environment.

    ``model`` and ``data`` are MuJoCo's own, so that what is known of Gymnasium's robots is found
    here too.

    Args:
        load: builds the dm_env environment.
        name: of the task.
        render_mode: ``rgb_array`` or None.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, load: Callable[[], Any], name: str, render_mode: str | None = None) -> None:
        self._env = load()
        self.render_mode = render_mode
        limit = getattr(self._env, "_step_limit", np.inf)
        self.spec = GymSpec(
            id=f"dmc/{name}", max_episode_steps=int(limit) if np.isfinite(limit) else None
        )
        self.dt = float(self._env.control_timestep())
        self.frame_skip = int(getattr(self._env, "_n_sub_steps", 1))
        described = self._env.observation_spec()
        self.observation_space = spaces.Dict(
            {
                key: spaces.Box(-np.inf, np.inf, shape=part.shape, dtype=np.float64)
                for key, part in described.items()
            }
        )
        action = self._env.action_spec()
        self.action_space = spaces.Box(
            np.broadcast_to(action.minimum, action.shape).astype(np.float32),
            np.broadcast_to(action.maximum, action.shape).astype(np.float32),
        )

    @property
    def model(self) -> Any:
        """MuJoCo's model."""
        return getattr(self._env.physics.model, "ptr", None)

    @property
    def data(self) -> Any:
        """MuJoCo's data."""
        return getattr(self._env.physics.data, "ptr", None)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; with ``seed``, from that task's own random stream."""
        if seed is not None:
            self._env.task._random = np.random.RandomState(seed)
        return dict(self._env.reset().observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply an action; the discount of the last step tells how the episode ended."""
        step = self._env.step(action)
        ended = bool(step.last())
        failed = ended and step.discount == 0
        return dict(step.observation), float(step.reward), failed, ended and not failed, {}

    def render(self) -> Any:
        """A picture from the first camera, (480, 640, 3) uint8."""
        return self._env.physics.render(height=HEIGHT, width=WIDTH, camera_id=0)

    def close(self) -> None:
        """Release the renderer."""
        self._env.close()


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    return installed.status("dm_control", "dmc")


@functools.cache
def tasks() -> tuple[str, ...]:
    """Every task of the suite, as ``<domain>-<task>``."""
    if not installed.is_installed("dm_control"):
        return TASKS
    by_domain = _suite().TASKS_BY_DOMAIN
    return tuple(
        sorted(f"{domain}-{task}" for domain, names in by_domain.items() for task in names)
    )


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> GymVector:
    """Environments of a task of the suite.

    Raises:
        InputError: dm_control is not installed.
    """
    task_id = f"dmc/{name}"
    installed.require("dm_control", "dmc", task_id)
    domain, _, task = name.partition("-")

    def one(render_mode: str | None = None) -> DmEnv:
        return DmEnv(lambda: _suite().load(domain, task), name, render_mode)

    env = wrap_factory(
        one,
        settings,
        task_id=task_id,
        device=device,
        render=render,
    )
    with closing(one()) as probe:
        channels = named_channels(probe.observation_space)
    env.spec = dataclasses.replace(env.spec, channels=channels)
    return env


def named_channels(space: Any) -> tuple[Channel, ...]:
    """One channel per entry of a Dict space, called after its part of the observation."""
    return tuple(
        Channel(name=f"{key}[{index}]" if part.shape else key, group="policy")
        for key, part in space.spaces.items()
        for index in range(int(np.prod(part.shape or ())))
    )


def _suite() -> Any:
    prepare_drawing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLFW has no display; EGL or OSMesa draw
        from dm_control import suite

    return suite
