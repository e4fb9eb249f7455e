"""Exact state of Gymnasium environments: what must be saved to continue bit for bit.

A MuJoCo state vector alone is not enough: rewards and observations read derived arrays (contact
forces, inertias) that lag one step behind, so every fixed-size array of MjData is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

EXACT_MODULES = ("gymnasium.envs.mujoco.", "gymnasium.envs.classic_control.")
"""Environment families for which restoring has been proven exact (tests/envs)."""


class ResumableEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Outermost wrapper of each environment; a vector environment reaches it by ``call``."""

    def __init__(self, env: gymnasium.Env[Any, Any], index: int) -> None:
        super().__init__(env)
        self._index = index

    def get_state(self) -> dict[str, Any]:
        """Plain data of every wrapper layer and the environment, and MuJoCo's arrays."""
        layers = _layers(self.env)
        state: dict[str, Any] = {"layers": [_plain_attributes(layer) for layer in layers]}
        if _has_mujoco(self.unwrapped):
            state["mujoco"] = _mujoco_state(self.unwrapped)
        return state

    def set_states(self, states: list[dict[str, Any]]) -> None:
        """Take this environment's own state out of the list for all."""
        self.set_state(states[self._index])

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from ``get_state``'s value."""
        for layer, attributes in zip(_layers(self.env), state["layers"], strict=True):
            for name, value in attributes.items():
                if isinstance(value, dict) and "bit_generator" in value:
                    getattr(layer, name).bit_generator.state = value
                else:
                    setattr(layer, name, value)
        if "mujoco" in state:
            _restore_mujoco(self.unwrapped, state["mujoco"])


def restores_exactly(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether an environment belongs to a family whose state is restored bit for bit."""
    return type(env.unwrapped).__module__.startswith(EXACT_MODULES)


def _layers(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Env[Any, Any]]:
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def _plain_attributes(layer: object) -> dict[str, Any]:
    """Numbers, strings, arrays and random states; not spaces, renderers or models."""
    found: dict[str, Any] = {}
    for name, value in vars(layer).items():
        if isinstance(value, np.random.Generator):
            found[name] = value.bit_generator.state
        elif _is_plain(value):
            found[name] = value.copy() if isinstance(value, np.ndarray) else value
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | np.number | np.bool_)


def _has_mujoco(env: object) -> bool:
    return type(getattr(env, "data", None)).__name__ == "MjData"


def _mujoco_state(env: Any) -> dict[str, Any]:
    import mujoco

    size = mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    vector = np.empty(size)
    mujoco.mj_getState(env.model, env.data, vector, mujoco.mjtState.mjSTATE_INTEGRATION)
    arrays = {name: getattr(env.data, name).copy() for name in _fixed_arrays(env.model)}
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


def _fixed_arrays(model: Any) -> list[str]:
    """Arrays of MjData whose size does not depend on contacts; pointers excluded."""
    import mujoco

    fresh = mujoco.MjData(model)
    names = []
    for name in dir(fresh):
        value = None if name.startswith("_") else getattr(fresh, name)
        if isinstance(value, np.ndarray) and value.size and value.dtype != np.uint64:
            names.append(name)
    return names
