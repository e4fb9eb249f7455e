"""Each single Gymnasium environment of ours: a lean ``info`` and an exact state.

A MuJoCo state vector alone is not enough to continue bit for bit: rewards and observations read
derived arrays (contact forces, inertias) that lag one step behind, so every fixed-size array of
MjData is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import wrappers

from supple.errors import SimulatorError

SUCCESS_KEYS = ("success", "is_success", "solved")
"""Entries of ``info`` that hold a task's own success flag."""
EXACT_MODULES = ("gymnasium.envs.mujoco.", "gymnasium.envs.classic_control.")
"""Environment families for which restoring has been proven exact (tests/envs)."""
EXACT_WRAPPERS = (
    wrappers.ClipAction,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RescaleAction,
    wrappers.TimeLimit,
)
"""Wrappers whose whole state is plain numbers."""
STEP = "(observation, reward, terminated, truncated, info)"
_PICTURE = {"render_mode", "width", "height", "camera_id", "camera_name", "screen", "clock"}
_PICTURE |= {"isopen", "surf", "screen_dim", "screen_width", "screen_height"}
"""Attributes that say how it is drawn: they stay those of the environment that is restored."""


def _told(found: Any) -> str:
    kind = type(found).__name__
    return f"a {kind} of {len(found)}" if isinstance(found, tuple | list) else f"a {kind}"


def _is_flag(value: Any) -> bool:
    """Whether it can stand for a bool, as 0, 1 or an array of one of them; most rewards cannot."""
    try:
        flat = np.asarray(value.cpu() if hasattr(value, "cpu") else value).reshape(-1)
    except (TypeError, ValueError):
        return False
    return flat.size == 1 and flat.dtype.kind in "biuf" and bool(flat[0] in (0, 1))


class ManagedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Outermost wrapper of each environment of ours.

    A vector environment reaches ``get_state`` with ``call`` and ``restored_state`` with
    ``set_attr``, whether the environment lives in this process or another.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Keep of ``info`` what is read here: merging or sending the rest costs time.

        Raises:
            SimulatorError: it is none of Gymnasium's five, in their order.
        """
        found: Any = self.env.step(action)
        if not isinstance(found, tuple | list) or len(found) != 5:
            self._refuse("step", _told(found), STEP)
        obs, reward, terminated, truncated, info = found
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            if not (value is True or value is False or _is_flag(value)):
                self._refuse("step", f"{value!r} for {name}", STEP)
        if reward is None:
            self._refuse("step", "None for the reward", STEP)
        if terminated or truncated:
            obs = copy.deepcopy(obs)  # the reset that follows may reuse its memory
        kept = {key: bool(np.any(info[key])) for key in SUCCESS_KEYS if key in info}
        return obs, reward, terminated, truncated, kept

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Drop ``info``: a success flag in it would belong to no step.

        Raises:
            SimulatorError: it is no pair.
        """
        found: Any = self.env.reset(**options)
        pair = isinstance(found, tuple | list) and len(found) == 2
        if not pair or not isinstance(found[1], Mapping):
            self._refuse("reset", _told(found), "(observation, info)")
        return found[0], {}

    def _refuse(self, method: str, got: str, expected: str) -> NoReturn:
        raise SimulatorError(
            f"{type(self.unwrapped).__name__}.{method} returned {got}, expected {expected} as"
            " gymnasium.Env has it"
        )

    def get_state(self) -> dict[str, Any]:
        """Plain data of every wrapper and the environment, and MuJoCo's arrays; all copies."""
        state: dict[str, Any] = {"layers": [_plain_attributes(env) for env in _layers(self.env)]}
        if self._mujoco_arrays:
            state["mujoco"] = _mujoco_state(self.unwrapped, self._mujoco_arrays)
        return state

    @property
    def restored_state(self) -> None:
        """Assign ``get_state()``'s value to continue from there; reads as None.

        The environment must have been reset at least once, which creates what stepping needs.
        """
        return None

    @restored_state.setter
    def restored_state(self, state: Mapping[str, Any]) -> None:
        for layer, attributes in zip(_layers(self.env), state["layers"], strict=True):
            for name, value in attributes.items():
                if isinstance(value, Mapping):
                    getattr(layer, name).bit_generator.state = value
                else:
                    setattr(layer, name, copy.deepcopy(value))
        if self._mujoco_arrays:
            _restore_mujoco(self.unwrapped, state["mujoco"])

    @cached_property
    def _mujoco_arrays(self) -> tuple[str, ...]:
        """Arrays of MjData whose size does not depend on contacts; none without MuJoCo."""
        env: Any = self.unwrapped
        if type(getattr(env, "data", None)).__name__ != "MjData":
            return ()
        import mujoco

        fresh = mujoco.MjData(env.model)
        values = {name: getattr(fresh, name) for name in dir(fresh) if not name.startswith("_")}
        return tuple(
            name
            for name, value in values.items()
            # uint64: addresses within this process.
            if isinstance(value, np.ndarray) and value.size and value.dtype != np.uint64
        )


def restores_exactly(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether environment and wrappers are among those whose state is restored bit for bit."""
    *around, innermost = _layers(env)
    known = all(type(layer) in EXACT_WRAPPERS for layer in around)
    return known and type(innermost).__module__.startswith(EXACT_MODULES)


def _layers(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Env[Any, Any]]:
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def _plain_attributes(layer: object) -> dict[str, Any]:
    """Numbers, arrays and random states; not spaces, renderers, models or file paths."""
    found: dict[str, Any] = {}
    for name, value in vars(layer).items():
        if isinstance(value, np.random.Generator):
            found[name] = value.bit_generator.state
        elif name not in _PICTURE and _is_plain(value):
            found[name] = copy.deepcopy(value)
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | np.number | np.bool_)


def _mujoco_state(env: Any, names: tuple[str, ...]) -> dict[str, Any]:
    import mujoco

    vector = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(env.model, env.data, vector, mujoco.mjtState.mjSTATE_INTEGRATION)
    arrays = {name: getattr(env.data, name).copy() for name in names}
    return {"integration": vector, "arrays": arrays}


def _restore_mujoco(env: Any, state: Mapping[str, Any]) -> None:
    import mujoco

    vector = np.ascontiguousarray(state["integration"])
    mujoco.mj_setState(env.model, env.data, vector, mujoco.mjtState.mjSTATE_INTEGRATION)
    # Contacts and constraints live in an arena of varying size; this rebuilds them. Everything of
    # fixed size is then set to what it was, one step behind as it had been.
    mujoco.mj_forward(env.model, env.data)
    for name, value in state["arrays"].items():
        getattr(env.data, name)[...] = value
