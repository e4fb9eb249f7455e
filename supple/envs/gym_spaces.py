"""Gymnasium spaces as flat float32 vectors, and policy actions as physical ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from supple.envs.base import ActionSpec, Box, Discrete
from supple.errors import InputError

GROUPS = ("policy", "critic")


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A part of an observation that holds numbers."""

    path: tuple[Any, ...]
    """Keys and indices from the whole observation to this part."""
    space: spaces.Space[Any]
    width: int


class Flattener:
    """Batches of observations as one (N, D) float32 array per group.

    A Dict observation with a ``policy`` key is taken as groups: ``policy``, and ``critic`` where
    there is one; its other keys are left out. Of any other observation all leaves are concatenated
    into ``policy``, in the space's own order. Discrete leaves become one-hot.

    Args:
        space: the single-environment observation space.
        task: named in errors.

    Raises:
        InputError: images, a space without a fixed flat form or without a number, or a ``critic``
            without ``policy``.
    """

    def __init__(self, space: spaces.Space[Any], task: str) -> None:
        self._groups = {
            group: [_Leaf(path, leaf, _width(leaf, task)) for path, leaf in _leaves(part, path)]
            for group, path, part in _parts(space, task)
        }
        self.widths = {
            group: sum(leaf.width for leaf in leaves) for group, leaves in self._groups.items()
        }
        if empty := [group for group, width in self.widths.items() if not width]:
            raise InputError(f"{task} observes nothing in its group {empty[0]}: expected numbers")

    def __call__(self, batch: Any) -> dict[str, np.ndarray]:
        """Flatten what a vector environment returned, leaves of shape (N, ...).

        Returns:
            Arrays that share no memory with ``batch``.
        """
        return {group: _columns(leaves, batch) for group, leaves in self._groups.items()}


class ActionMap:
    """Policy actions in [-1, 1] to what a vector environment takes.

    -1 becomes the space's low and 1 its high; beyond, values are clipped. Where the space is
    unbounded 1 becomes ``bound``, and nothing is clipped. Discrete choices count from 0.

    Args:
        space: the single-environment action space.
        num_envs: number of environments ``N``.
        task: named in errors.
        bound: what the policy's 1 means where the space is unbounded.

    Raises:
        InputError: another kind of space, or a Box with only some finite bounds.
    """

    def __init__(
        self, space: spaces.Space[Any], num_envs: int, task: str, *, bound: float = 1.0
    ) -> None:
        self._task = task
        self._dtype = space.dtype
        self.spec: ActionSpec
        if isinstance(space, spaces.Discrete):
            self.spec = Discrete(n=int(space.n), start=int(space.start))
            self._expected: tuple[int, ...] = (num_envs,)
            self._start = int(space.start)
            return
        floats = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not floats:
            raise InputError(
                f"{task} has action space {space}: expected a flat Box of floats or Discrete;"
                " flatten or round it with gymnasium.wrappers.TransformAction"
            )
        self._low, self._high = space.low.astype(float), space.high.astype(float)
        self._expected = (num_envs, len(self._low))
        if np.isfinite(self._low).all() and np.isfinite(self._high).all():
            low, high = tuple(self._low.tolist()), tuple(self._high.tolist())
            self.spec = Box(low=low, high=high, clip=True)
            self._center, self._half = (self._high + self._low) / 2, (self._high - self._low) / 2
        elif np.isfinite(self._low).any() or np.isfinite(self._high).any():
            raise InputError(f"{task} bounds only some of its actions: {space}; bound all or none")
        else:
            size = len(self._low)
            self.spec = Box(low=(-bound,) * size, high=(bound,) * size, clip=False)
            self._bound = bound

    def __call__(self, action: Tensor) -> np.ndarray:
        """Convert (N, A) floats, or (N,) choices, to the space's own numbers and dtype.

        Raises:
            InputError: ``action`` has another shape.
        """
        if tuple(action.shape) != self._expected:
            raise InputError(
                f"{self._task}: action has shape {tuple(action.shape)}, expected {self._expected}"
            )
        given: np.ndarray = action.detach().cpu().numpy()
        if isinstance(self.spec, Discrete):
            return (given + self._start).astype(self._dtype)
        if not self.spec.clip:
            return (given * self._bound).astype(self._dtype)
        # In float64, so that -1 and 1 meet the bounds exactly.
        physical = self._center + given * self._half
        np.maximum(physical, self._low, out=physical)  # a third of the time of np.clip
        np.minimum(physical, self._high, out=physical)
        converted: np.ndarray = physical.astype(self._dtype)
        return converted


def _parts(
    space: spaces.Space[Any], task: str
) -> Iterator[tuple[str, tuple[Any, ...], spaces.Space[Any]]]:
    """Each group, the path to it, and its space."""
    if not isinstance(space, spaces.Dict) or not set(GROUPS) & set(space.spaces):
        yield "policy", (), space
        return
    if "policy" not in space.spaces:
        raise InputError(
            f"{task} observes a group critic but none named policy, and what is the critic's alone"
            f" must not reach the policy: rename one of {', '.join(map(str, space.spaces))}"
        )
    for group in GROUPS:
        if group in space.spaces:
            yield group, (group,), space[group]


def _leaves(
    space: spaces.Space[Any], path: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], spaces.Space[Any]]]:
    inner: Mapping[Any, spaces.Space[Any]]
    if isinstance(space, spaces.Dict):
        inner = space.spaces
    elif isinstance(space, spaces.Tuple):
        inner = dict(enumerate(space.spaces))
    else:
        yield path, space
        return
    for key, part in inner.items():
        yield from _leaves(part, (*path, key))


def _width(leaf: spaces.Space[Any], task: str) -> int:
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


def _columns(leaves: list[_Leaf], batch: Any) -> np.ndarray:
    columns = []
    for leaf in leaves:
        part = batch
        for key in leaf.path:
            part = part[key]
        columns.append(_values(leaf, np.asarray(part)))
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def _values(leaf: _Leaf, array: np.ndarray) -> np.ndarray:
    """(N, width) float32, a copy."""
    if isinstance(leaf.space, spaces.Box | spaces.MultiBinary):
        return array.reshape(len(array), -1).astype(np.float32)
    rows = [np.asarray(spaces.flatten(leaf.space, item)) for item in array]
    return np.stack(rows).astype(np.float32)
