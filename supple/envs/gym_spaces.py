"""Gymnasium spaces as flat float vectors and physical action bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from supple.envs.base import ActionSpec, Box, Discrete
from supple.errors import InputError

GROUPS = ("policy", "critic")


def observation_widths(space: spaces.Space[Any], task: str) -> dict[str, int]:
    """Width of each observation group.

    Dict observations with a ``policy`` key are taken as groups; all other leaves are concatenated
    into ``policy`` in the space's own order.

    Raises:
        InputError: images, or a kind of space that has no fixed flat form.
    """
    return {
        group: sum(_leaf_width(leaf, task) for _, leaf in _leaves(part, ()))
        for group, part in _groups(space).items()
    }


def flatten_batch(space: spaces.Space[Any], batch: Any) -> dict[str, np.ndarray]:
    """A batch of observations as (N, D) float32 per group, always a fresh array.

    Args:
        space: the single-environment space.
        batch: what a vector environment returned, leaves of shape (N, ...).
    """
    flat = {}
    for group, part in _groups(space).items():
        inner = batch if part is space else batch[group]
        columns = [_leaf_values(leaf, _pick(inner, path)) for path, leaf in _leaves(part, ())]
        flat[group] = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
    return flat


def action_spec(space: spaces.Space[Any], task: str) -> ActionSpec:
    """Bounds of a Box, or the choices of a Discrete space.

    Infinite bounds mean the simulator takes the policy's action as it is: low -1, high 1, no clip.

    Raises:
        InputError: any other kind of space, or a Box bounded on one side only.
    """
    if isinstance(space, spaces.Discrete):
        return Discrete(n=int(space.n))
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise InputError(
            f"{task} has action space {space}: expected a flat Box or Discrete; flatten it with"
            " gymnasium.wrappers.TransformAction"
        )
    low, high = space.low.astype(float), space.high.astype(float)
    if np.isfinite(low).all() and np.isfinite(high).all():
        return Box(low=tuple(low.tolist()), high=tuple(high.tolist()), clip=True)
    if np.isfinite(low).any() or np.isfinite(high).any():
        raise InputError(f"{task} bounds only some of its actions: {space}; bound all or none")
    return Box(low=(-1.0,) * len(low), high=(1.0,) * len(low), clip=False)


def _groups(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    if isinstance(space, spaces.Dict) and "policy" in space.spaces:
        return {group: space[group] for group in GROUPS if group in space.spaces}
    return {"policy": space}


def _leaves(
    space: spaces.Space[Any], path: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, space


def _pick(batch: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        batch = batch[key]
    return batch


def _leaf_width(leaf: spaces.Space[Any], task: str) -> int:
    if isinstance(leaf, spaces.Box):
        if len(leaf.shape) >= 3 or (leaf.dtype == np.uint8 and len(leaf.shape) >= 2):
            raise InputError(
                f"{task} observes images {leaf.shape}: supple learns from flat vectors only; choose"
                " a state-based task or encode the image in a wrapper"
            )
        return int(np.prod(leaf.shape))
    if isinstance(leaf, spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        return int(spaces.flatdim(leaf))
    raise InputError(
        f"{task} observes {leaf}, which has no fixed flat form: flatten it in a wrapper"
    )


def _leaf_values(leaf: spaces.Space[Any], values: Any) -> np.ndarray:
    array = np.asarray(values)
    if isinstance(leaf, spaces.Box | spaces.MultiBinary):
        return array.reshape(len(array), -1).astype(np.float32)
    return np.stack([np.asarray(spaces.flatten(leaf, item)) for item in array]).astype(np.float32)
