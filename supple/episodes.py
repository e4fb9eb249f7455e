"""Statistics of training episodes, and the watch for numbers that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import EnvSpec
from supple.errors import SimulatorError


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

    def observe(self, step: TensorDict) -> None:
        """Add one vector step."""
        valid = step["valid"]
        self._return_N = self._return_N + torch.where(valid, step["reward"], 0)
        self._length_N = self._length_N + valid
        done = valid & (step["terminated"] | step["truncated"])
        columns = torch.stack((self._return_N, self._length_N, torch.ones_like(self._return_N)))
        self._ended = self._ended + torch.where(done, columns, 0).sum(1)
        self._return_N = torch.where(done, 0, self._return_N)
        self._length_N = torch.where(done, 0, self._length_N)

    def report(self) -> dict[str, float]:
        """Means since the last report (empty where none ended); starts a new count."""
        total, length, count = self._ended.tolist()
        self._ended = torch.zeros_like(self._ended)
        row = {"train/episodes": count}
        if count:
            row |= {"train/return_mean": total / count, "train/length_mean": length / count}
        return row

    def forget_episodes(self) -> None:
        """Every environment was reset: drop the open sums."""
        self._return_N = torch.zeros_like(self._return_N)
        self._length_N = torch.zeros_like(self._length_N)

    def state_dict(self) -> dict[str, Any]:
        """Tensors only."""
        return {"return": self._return_N, "length": self._length_N, "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value."""
        device = self._ended.device
        self._return_N = state["return"].to(device)
        self._length_N = state["length"].to(device)
        self._ended = state["ended"].to(device)


class FiniteWatch:
    """Finds the first NaN or infinity a simulator returns, without a host synchronisation.

    Args:
        spec: names the task in the error.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec
        self._fields = [f"observation/{group}" for group in spec.observation]
        self._fields += [f"final_observation/{group}" for group in spec.observation]
        self._fields.append("reward")
        self._never = torch.iinfo(torch.int64).max
        self._first = torch.full((len(self._fields),), self._never, device=spec.device)

    def observe(self, step: TensorDict, vector_step: int) -> None:
        """Look at one step; only valid rows count, final observations only where rows ended."""
        valid = step["valid"]
        ended = valid & (step["terminated"] | step["truncated"])
        bad = [_any_bad(step["observation", group], valid) for group in self._spec.observation]
        bad += [
            _any_bad(step["final_observation", group], ended) for group in self._spec.observation
        ]
        bad.append(_any_bad(step["reward"][:, None], valid))
        now = torch.where(torch.stack(bad), vector_step, self._never)
        self._first = torch.minimum(self._first, now)

    def check(self) -> None:
        """Synchronise and judge.

        Raises:
            SimulatorError: something was not finite; names the field and the vector step.
        """
        first = self._first.tolist()
        at = min(first)
        if at != self._never:
            names = [name for name, step in zip(self._fields, first, strict=True) if step == at]
            raise SimulatorError(
                f"{self._spec.task_id} returned NaN or infinity in {', '.join(names)} at vector"
                f" step {at}; the last checkpoint is intact. Check the simulator's state and"
                " reward there"
            )


def _any_bad(rows: Tensor, counted: Tensor) -> Tensor:
    return (~torch.isfinite(rows).all(-1) & counted).any()
