"""What surrounds a simulator: packages that may be missing, a display, MuJoCo's notes."""

from __future__ import annotations

import ctypes.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

from supple.errors import InputError, how_to_install

_PLANE, _FREE, _SLIDE = 0, 0, 2
"""``mjGEOM_PLANE``, ``mjJNT_FREE``, ``mjJNT_SLIDE``."""


@contextmanager
def importing_packages(task_id: str) -> Iterator[None]:
    """Turn a missing package, or an id that cannot be made, into one line.

    Raises:
        InputError: instead of either.
    """
    try:
        yield
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise InputError(
            f"{task_id} needs packages that are not installed: {_one_line(error)}; MuJoCo tasks"
            f" need {how_to_install('mujoco')}, landers and walkers in two dimensions"
            f" {how_to_install('box2d')}"
        ) from error
    except gymnasium.error.Error as error:
        raise InputError(f"{task_id} cannot be made: {_one_line(error)}") from error


@contextmanager
def drawing(task_id: str) -> Iterator[None]:
    """Turn what graphics libraries raise where something is missing into one line.

    Raises:
        InputError: names the library's error and what to install or set.
        NotImplementedError: the environment has no picture at all.
    """
    try:
        yield
    except NotImplementedError as error:
        raise NotImplementedError(f"{task_id} has no picture to draw") from error
    # Where a library or a display is missing, OpenGL loaders raise AttributeError, OSError and
    # types of their own.
    except Exception as error:
        backend = os.environ.get("MUJOCO_GL", "unset")
        raise InputError(
            f"{task_id} cannot draw: {type(error).__name__}: {_one_line(error)}; classic control"
            " needs pygame; MuJoCo without a display needs MUJOCO_GL=egl (libegl1) or osmesa"
            f" (libosmesa6), and MUJOCO_GL is {backend}"
        ) from error


@contextmanager
def floor_beneath(robot: Any) -> Iterator[None]:
    """Draw the floor of one of Gymnasium's MuJoCo robots around it: its picture ends after 40 m.

    It moves by whole periods of its pattern, so that it seems to stand still, in the picture only.
    """
    model: Any = getattr(robot, "model", None)
    data: Any = getattr(robot, "data", None)
    if not (hasattr(model, "geom_matid") and hasattr(data, "geom_xpos") and model.njnt):
        yield
        return
    free = model.jnt_type[0] == _FREE
    along_x = model.jnt_type[0] == _SLIDE and model.jnt_axis[0, 0] == 1
    before = data.geom_xpos.copy()
    if free or along_x:
        carry_floor(model, data, float(data.qpos[0]))
    try:
        yield
    finally:
        data.geom_xpos[:] = before


def carry_floor(model: Any, data: Any, x: float) -> None:
    """Put the planes around ``x`` [m], whole periods of their pattern from where they are."""
    for geom in np.flatnonzero(model.geom_type == _PLANE):
        material, size = int(model.geom_matid[geom]), float(model.geom_size[geom, 0])
        repeats = float(model.mat_texrepeat[material, 0]) if material >= 0 else 0.0
        if size > 0 and repeats > 0:
            period = 2 * size / repeats
            data.geom_xpos[geom, 0] = round(x / period) * period


def draw_without_display() -> None:
    """Before MuJoCo is imported: let it draw where there is no display and nobody chose.

    SDL, which draws classic control, would complain on the terminal that there is none.
    """
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def prepare_drawing() -> None:
    """The same for packages that load the chosen library as they are imported, if it is there."""
    if not {"DISPLAY", "MUJOCO_GL"} & os.environ.keys() and ctypes.util.find_library("EGL"):
        draw_without_display()


def follow_robot(env: gymnasium.Env[Any, Any]) -> None:
    """Draw with the model's own tracking camera where it has one; the default one stands still."""
    robot: Any = env.unwrapped
    renderer: Any = getattr(robot, "mujoco_renderer", None)
    model: Any = getattr(robot, "model", None)
    if renderer is None or type(model).__name__ != "MjModel":
        return
    for index in range(model.ncam):
        if model.camera(index).name == "track":
            renderer.camera_id = index


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Drop MuJoCo's deprecation notes about Gymnasium's own models; other warnings stay."""
    try:
        import mujoco
    except ImportError:
        yield
        return
    if not hasattr(mujoco, "get_mju_user_warning"):  # older versions have no such notes
        yield
        return
    before = mujoco.get_mju_user_warning()

    def report(text: str | bytes) -> None:
        message = text.decode() if isinstance(text, bytes) else text
        if "deprecated" not in message:
            warnings.warn(message, stacklevel=2)

    mujoco.set_mju_user_warning(report)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
