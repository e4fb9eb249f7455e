"""A trained policy in a loop of one's own: ``supple.load``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from supple.agents import PPOSettings
from supple.agents.base import concat
from supple.envs.base import Box
from supple.errors import InputError
from supple.trained import Trained, load_trained

Array: TypeAlias = np.ndarray | Tensor


def load(path: Path | str, *, device: str = "") -> TrainedPolicy:
    """The policy of a run's newest intact checkpoint, or of one checkpoint folder, to call.

    The process keeps its number of threads, whatever the run had.

    Args:
        path: either of them.
        device: where it acts; by default on the run's own, or the CPU where that is missing.

    Returns:
        ``policy(obs)`` gives the action that the simulator's own ``step`` takes.

    Raises:
        InputError: nothing there, damaged, or of another version of supple.
    """
    threads = torch.get_num_threads()
    try:
        return TrainedPolicy(load_trained(path, device=device))
    finally:
        torch.set_num_threads(threads)


class TrainedPolicy:
    """Observations to actions, deterministic, in the units of the simulator it was trained in.

    An action is what that simulator's own ``step`` takes, a Gymnasium environment's for example:
    from ``spec.action.low`` to ``spec.action.high``, or one of its choices. An environment of
    supple's contract (``supple.envs.make``) takes [-1, 1] instead: give it actions of
    ``supple.trained.load_trained(path).greedy()``.

    Args:
        trained: a checkpoint's content.
    """

    def __init__(self, trained: Trained) -> None:
        self.spec = trained.spec
        """Facts of the environment it was trained in."""
        self.env_steps = trained.env_steps
        """How long it was trained."""
        self._trained = trained
        own = trained.settings.agent
        self._policy = trained.agent.policy()
        self._memory_width = own.memory if isinstance(own, PPOSettings) else 0
        self.reset()

    def reset(self) -> None:
        """Begin episodes: a recurrent policy forgets; others remember nothing."""
        self._memory: list[Tensor] = []

    def __call__(self, obs: Array | Mapping[str, Array]) -> Any:
        """The action for an observation, or one for each of several.

        Args:
            obs: the ``policy`` group, (D,) or (N, D), or a mapping of groups of which it is one;
                a NumPy array or a tensor. What ``--env.history`` laid side by side is part of it.

        Returns:
            (A,) or (N, A) float32, or a choice or (N,) choices, int64: an array for an array, a
            tensor on the same device for a tensor. As in a bundle, an observation that is not
            finite gets the safe action, 0 to the policy, and leaves the memory as it was.

        Raises:
            InputError: the group is missing or has another shape, or a recurrent policy meets more
                or fewer environments than since its last ``reset``.
        """
        groups = obs if isinstance(obs, Mapping) else {"policy": obs}
        names = self._trained.agent.actor_groups
        given = {name: self._rows_of(groups, name) for name in names}
        first = given[names[0]]
        rows = {name: torch.atleast_2d(value) for name, value in given.items()}
        action = self._in_units(self._act(concat(rows, names)))
        action = action[0] if first.dim() == 1 else action
        source = groups[names[0]]
        if isinstance(source, Tensor):
            return action.to(source.device)
        return action.cpu().numpy()[()]  # a single choice as a number

    def _rows_of(self, groups: Mapping[str, Array], name: str) -> Tensor:
        width = self.spec.observation[name]
        if name not in groups:
            raise InputError(
                f"expected the observation group {name}, (N, {width}), got {', '.join(groups)}: lay"
                " other dictionaries side by side, in the order of their space"
            )
        value = groups[name]
        if not isinstance(value, Tensor):
            value = torch.from_numpy(np.array(value, np.float32))
        if value.dim() not in (1, 2) or value.shape[-1] != width:
            raise InputError(
                f"observation {name} has shape {tuple(value.shape)}, expected ({width},) or"
                f" (N, {width}) as in {self.spec.task_id}"
            )
        return value.to(self._trained.agent.device, torch.float32)

    @torch.no_grad()
    def _act(self, obs_ND: Tensor) -> Tensor:
        """The policy's own action, (N, A) or choices (N,)."""
        memory = self._remembered(obs_ND)
        found = self._policy(obs_ND, *memory)
        action, *after = found if memory else (found,)
        outcomes = [obs_ND, action.reshape(len(action), math.prod(action.shape[1:])), *after]
        fine = torch.cat([torch.isfinite(each) for each in outcomes], dim=1).all(1)
        self._memory = [_where(fine, new, old) for new, old in zip(after, memory, strict=True)]
        return _where(fine, action, torch.zeros_like(action))

    def _remembered(self, obs_ND: Tensor) -> list[Tensor]:
        """The memory, (N, H), empty where episodes begin; none of a policy without one."""
        if not self._memory_width:
            return []
        if self._memory and len(self._memory[0]) != len(obs_ND):
            raise InputError(
                f"this policy remembers {len(self._memory[0])} environments, got {len(obs_ND)}:"
                " call reset() as episodes begin"
            )
        return self._memory or [obs_ND.new_zeros(len(obs_ND), self._memory_width)]

    def _in_units(self, action: Tensor) -> Tensor:
        """Of the simulator, as its adapter maps them (``supple/envs/base.py``)."""
        bounds = self.spec.action
        if not isinstance(bounds, Box):
            return action + bounds.start
        # In float64, so that -1 and 1 meet the bounds exactly.
        low, high = (
            action.new_tensor(each, dtype=torch.float64) for each in (bounds.low, bounds.high)
        )
        units = (high + low) / 2 + action.double() * (high - low) / 2
        return (units.clamp(low, high) if bounds.clip else units).float()


def _where(fine_N: Tensor, value: Tensor, otherwise: Tensor) -> Tensor:
    """Row by row."""
    return torch.where(fine_N[:, None] if value.dim() > 1 else fine_N, value, otherwise)
