"""Statistics of training episodes, and what a simulator reports of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def columns_of(report: Mapping[str, float]) -> dict[str, float]:
    """What ``Env.report`` gave, as columns of a metrics row."""
    return {"env/" + re.sub(r"[^\w./-]", "_", name): value for name, value in report.items()}


class EpisodeStatistics:
    """Returns and lengths of the episodes that ended since the last report, on the device.

    Args:
        num_envs: N.
        device: where the sums live.
    """

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self._return_N = torch.zeros(num_envs, device=device)
        self._length_N = torch.zeros(num_envs, device=device)
        # Of ended episodes: sum of returns, sum of lengths, count.
        self._ended = torch.zeros(3, device=device)

    def observe(self, reward: Tensor, ended: Tensor, valid: Tensor) -> None:
        """Add one vector step, each (N,), in place.

        Rows that are not valid add nothing; where one ended, its episode is forgotten.
        """
        returns = self._return_N + torch.where(valid, reward, 0)
        lengths = self._length_N + valid
        done = valid & ended
        columns = torch.stack((returns, lengths, torch.ones_like(returns)))
        self._ended.add_(torch.where(done, columns, 0).sum(1))
        self._return_N.copy_(torch.where(ended, 0, returns))
        self._length_N.copy_(torch.where(ended, 0, lengths))

    def report(self) -> dict[str, float]:
        """Means since the last report (empty where none ended); starts a new count."""
        total, length, count = self._ended.tolist()
        self._ended.zero_()
        row = {"train/episodes": count}
        if count:
            row |= {"train/return_mean": total / count, "train/length_mean": length / count}
        return row

    def forget_episodes(self) -> None:
        """Every environment was reset: drop the open sums."""
        self._return_N.zero_()
        self._length_N.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Tensors only."""
        return {"return": self._return_N, "length": self._length_N, "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])
