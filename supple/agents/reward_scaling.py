"""Reward scaling: divide rewards so that discounted returns fit the critic's support.

Source: FlashSAC, arXiv:2604.04539; Holiday-Robot/FlashSAC@87edc90 (reward_normalization.py).
Deviation: by default the running sum is reset *after* the terminal step, so that the last reward
counts with its own episode and does not leak into the next; ``reset="before"`` reproduces the
reference. ``peak_decay`` below 1 lets the largest return fade, which there stays for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from supple.distributed import is_together, max_over_ranks, sum_over_ranks
from supple.errors import require_values


@dataclass(kw_only=True, slots=True)
class RewardScalerSettings:
    """How rewards are scaled."""

    enabled: bool = True
    """False trains on raw rewards."""
    reset: Literal["after", "before"] = "after"
    """When the running return forgets an ended episode; "before" is the reference's off-by-one."""
    peak_decay: float = 1.0
    """Multiplies the largest return seen once per vector step, in (0, 1]; 1 never forgets it, as
    published, 0.9999 half of it in 7,000 steps."""

    def __post_init__(self) -> None:
        """Refuse another ``reset``, with which no sum would ever end."""
        require_values(self, "--agent.reward-scaler.")


class RewardScaler:
    """Running moments of the discounted reward sum, over ``N`` environments, on the device.

    All state changes in place, so that a compiled or captured step may hold on to it.

    Args:
        num_envs: N.
        gamma: the environment's one-step discount.
        value_max: G_max, the return that must fit [scaled reward].
        settings: switches.
        device: where the statistics live.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        gamma: float,
        value_max: float,
        settings: RewardScalerSettings,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self._gamma = gamma
        self._value_max = value_max
        self._sum_N = torch.zeros(num_envs, device=device)
        self._peak = torch.zeros((), device=device)
        self._mean = torch.zeros((), device=device)
        self._var = torch.ones((), device=device)
        self._count = torch.zeros((), device=device)
        # Beyond, float32 would not count single rows, and the variance could only grow.
        self._most = 2**23 * num_envs
        self._joint: dict[str, Tensor] = {}
        """Peak and variance over all processes, where there are several."""

    @torch.no_grad()
    def observe(self, reward: Tensor, done: Tensor, valid: Tensor) -> None:
        """Fold one vector step into the statistics.

        Rows that are not valid add nothing, nor do rewards that are no numbers: one would stay in
        the moments for ever. Where such a row ended, its sum is forgotten.

        Args:
            reward: raw reward, (N,).
            done: terminated or truncated, (N,) bool.
            valid: (N,) bool.
        """
        valid = valid & reward.isfinite()
        keep = (~done).to(reward.dtype)
        carried = self._sum_N * keep if self.settings.reset == "before" else self._sum_N
        updated = torch.where(valid, self._gamma * carried + reward, carried)
        faded = self.settings.peak_decay * self._peak
        self._peak.copy_(torch.maximum(faded, updated.abs().max()))

        # Parallel-variance merge over the valid rows. The pseudo-count of 1e-4 makes the initial
        # variance of 1 nearly weightless.
        weight = valid.to(reward.dtype)
        number = weight.sum()
        rows = number.clamp_min(1)
        batch_mean = (updated * weight).sum() / rows
        batch_var = ((updated - batch_mean).square() * weight).sum() / rows
        delta = batch_mean - self._mean
        total = self._count + number
        share = number / total.clamp_min(1)
        spread = delta.square() * self._count * share
        merged = (self._var * (self._count + 1e-4) + batch_var * number + spread) / total
        self._mean.add_(delta * share)
        self._var.copy_(torch.where(number > 0, merged, self._var))
        self._count.copy_(total.clamp_max(self._most))

        if self.settings.reset == "after":
            updated = torch.where(done, torch.zeros_like(updated), updated)
        self._sum_N.copy_(updated)

    def denominator(self) -> Tensor:
        """What rewards are divided by, 0-d; 1 when scaling is off."""
        if not self.settings.enabled:
            return torch.ones_like(self._peak)
        var, peak = self._joint.get("var", self._var), self._joint.get("peak", self._peak)
        return torch.maximum((var + 1e-8).sqrt(), peak / self._value_max)

    @torch.no_grad()
    def share(self) -> None:
        """Take what all processes observed so far together; ``denominator`` goes by that then."""
        if not is_together():
            return
        # float64, in which the squares of means may cancel.
        count, mean, var = self._count.double(), self._mean.double(), self._var.double()
        sums = torch.stack((count, count * mean, count * (var + mean.square())))
        total, first, second = sum_over_ranks(sums).unbind()
        spread = second / total - (first / total).square()
        var = torch.where(total > 0, spread.clamp_min(0), 1.0).to(self._var.dtype)
        self._joint = {"peak": max_over_ranks(self._peak), "var": var}

    def forget_episodes(self) -> None:
        """Every environment was reset: start new sums, keep the moments."""
        self._sum_N.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Tensors only."""
        return {
            "sum": self._sum_N,
            "peak": self._peak,
            "mean": self._mean,
            "var": self._var,
            "count": self._count,
        }

    def joint_state(self) -> dict[str, Tensor]:
        """What ``share`` found: the same in all processes, empty where there is one."""
        return dict(self._joint)

    def load_joint_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``joint_state()``'s value."""
        self._joint = {name: value.to(self._var.device) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])
