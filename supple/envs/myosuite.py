"""MyoSuite: ``myosuite/<id>``, muscles in [0, 1]; success is its own ``solved`` flag."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import gymnasium
import torch

from supple.envs import installed
from supple.envs.gym import GymVector, wrap_factory

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = tuple(
    f"myoHand{task}{kind}-v0"
    for task in ("Reach", "Pose", "ObjHold", "KeyTurn", "PenTwirl")
    for kind in ("Fixed", "Random")
)
"""The published benchmark, named where MyoSuite is not installed."""
HEIGHT, WIDTH = 480, 640
"""Of pictures [pixels]."""


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


def exists(name: str) -> bool:
    """Whether it is registered."""
    return name in tasks()


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> GymVector:
    """Environments of a registered id.

    Raises:
        InputError: MyoSuite is not installed.
    """
    task_id = f"myosuite/{name}"
    installed.require("myosuite", "myosuite", task_id)
    import myosuite  # noqa: F401 - registers its ids

    def one(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        env = gymnasium.make(name, disable_env_checker=True)
        return Drawn(env) if render_mode else env

    return wrap_factory(
        one,
        settings,
        task_id=task_id,
        device=device,
        render=render,
    )


class Drawn(gymnasium.Wrapper[Any, Any, Any, Any]):
    """MyoSuite's environments know no ``rgb_array``; MuJoCo's renderer draws their model."""

    render_mode = "rgb_array"

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._renderer: Any = None

    def render(self) -> Any:
        """A picture, (480, 640, 3) uint8."""
        import mujoco

        robot: Any = self.unwrapped
        model, data = robot.mj_model, robot.mj_data
        if self._renderer is None:
            self._renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
        self._renderer.update_scene(data)
        return self._renderer.render()

    def close(self) -> None:
        """Release the renderer too."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        super().close()
