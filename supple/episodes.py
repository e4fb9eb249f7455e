"""Statistics of training episodes, and the watch for numbers that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
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

    def observe(self, reward: Tensor, ended: Tensor, valid: Tensor) -> None:
        """Add one vector step, each (N,), in place; rows that are not valid change nothing."""
        returns = self._return_N + torch.where(valid, reward, 0)
        lengths = self._length_N + valid
        done = valid & ended
        columns = torch.stack((returns, lengths, torch.ones_like(returns)))
        self._ended.add_(torch.where(done, columns, 0).sum(1))
        self._return_N.copy_(torch.where(done, 0, returns))
        self._length_N.copy_(torch.where(done, 0, lengths))

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
        self._steps = torch.zeros((), dtype=torch.int64, device=spec.device)
        self._first = torch.full((len(self._fields),), self._never, device=spec.device)

    def observe(self, reward: Tensor, ended: Tensor, valid: Tensor, *groups: Tensor) -> None:
        """Look at one step; only valid rows count, final observations only where rows ended.

        Args:
            reward: (N,).
            ended: (N,) bool.
            valid: (N,) bool.
            groups: the observation groups, then the final observation groups, each (N, D).
        """
        self._steps.add_(1)
        half = len(groups) // 2
        bad = [_any_bad(rows, valid) for rows in groups[:half]]
        bad += [_any_bad(rows, valid & ended) for rows in groups[half:]]
        bad.append(_any_bad(reward[:, None], valid))
        now = torch.where(torch.stack(bad), self._steps, self._never)
        self._first.copy_(torch.minimum(self._first, now))

    def start_from(self, vector_step: int) -> None:
        """Number the steps from here on, after a resume."""
        self._steps.fill_(vector_step)

    def tensors(self) -> list[Tensor]:
        """What ``observe`` changes."""
        return [self._steps, self._first]

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
