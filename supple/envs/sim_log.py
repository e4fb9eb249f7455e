"""What a simulator reports of itself, by name: reward terms, terminations, curricula.

Isaac Lab, mjlab, legged_gym and RSL-RL's environments put it into ``extras["log"]`` or
``extras["episode"]`` as episodes end, and leave it there until others do.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KEYS = ("log", "episode")
"""Of ``extras``."""


class SimulatorLog:
    """Means of such numbers over what was written since the last report; nothing waits till then.

    Numbers and tensors of one element count, other entries do not.

    Args:
        device: where tensors are summed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen: dict[str, tuple[Mapping[Any, Any], dict[Any, Any]]] = {}
        self._numbers: dict[str, tuple[float, int]] = {}
        # Tensors that come together are summed as one: a kernel for each would slow the step.
        self._tensors: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    def observe(self, extras: Any) -> None:
        """Add what one step wrote."""
        tensors = {}
        for name, value in self._written(extras):
            if isinstance(value, Tensor) and value.device.type == self._device.type:
                tensors[name] = value.detach().reshape(())
            else:
                _add(self._numbers, name, float(value))
        if tensors:
            names, row = tuple(tensors), torch.stack(list(tensors.values())).double()
            total, count = self._tensors.get(names, (torch.zeros_like(row), 0))
            self._tensors[names] = (total + row, count + 1)

    def skip(self, extras: Any) -> None:
        """Leave out what is there: a reset of everything wrote it, not the end of episodes."""
        for _ in self._written(extras):
            pass

    def report(self) -> dict[str, float]:
        """Means by name, and a new start; waits for the device."""
        sums, self._numbers = self._numbers, {}
        tensors, self._tensors = self._tensors, {}
        for names, (total, count) in tensors.items():
            for name, value in zip(names, total.tolist(), strict=True):
                _add(sums, name, value, count)
        return {name: total / count for name, (total, count) in sums.items()}

    def _written(self, extras: Any) -> list[tuple[str, Any]]:
        """Entries that were not there before: of a dict that is kept, those that were replaced."""
        found = []
        for key in KEYS if isinstance(extras, Mapping) else ():
            log = extras.get(key)
            if not isinstance(log, Mapping):
                continue
            kept, before = self._seen.get(key, ({}, {}))
            old = before if kept is log else {}
            found += [
                (name, value)
                for name, value in log.items()
                if isinstance(name, str) and _is_number(value) and old.get(name) is not value
            ]
            self._seen[key] = (log, dict(log))
        return found


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, numbers.Real)


def _add(sums: dict[str, tuple[float, int]], name: str, value: float, count: int = 1) -> None:
    total, before = sums.get(name, (0.0, 0))
    sums[name] = (total + value, before + count)
