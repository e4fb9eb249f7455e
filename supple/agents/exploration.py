"""Noise repetition: hold a Gaussian draw for a zeta-distributed number of steps.

Source: FlashSAC, arXiv:2604.04539, section on exploration; Holiday-Robot/FlashSAC@87edc90. There
one hold length is shared by all environments, whose episodes it outlasts; ``schedule="per_env"``
gives each its own, which ends with the episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from supple.errors import require_values


@dataclass(kw_only=True, slots=True)
class NoiseSettings:
    """Law of the hold lengths."""

    exponent: float = 2.0
    """P(k) is proportional to k^-exponent; 0 draws all lengths alike."""
    max_hold: int = 16
    """Longest hold [steps]; 1 draws fresh noise every step."""
    schedule: Literal["shared", "per_env"] = "shared"
    """Whether all environments redraw together, or each on its own and as its episodes begin."""

    def __post_init__(self) -> None:
        """Refuse another schedule, which would be taken for ``shared``."""
        require_values(self, "--agent.noise.")


def zeta_cdf(exponent: float, max_hold: int) -> Tensor:
    """Cumulative probabilities of the truncated zeta law, (max_hold,) float32, last one 1."""
    weight = torch.arange(1, max_hold + 1, dtype=torch.float64).pow(-exponent)
    return (weight.cumsum(0) / weight.sum()).float()


class HeldNoise:
    """Standard-normal noise (N, A), each draw used for exactly ``k`` consecutive steps.

    Args:
        num_envs: N.
        action_size: A.
        settings: law and schedule.
        generator: draws values and hold lengths; its device is where they live.
    """

    def __init__(
        self, num_envs: int, action_size: int, settings: NoiseSettings, generator: torch.Generator
    ) -> None:
        self._generator = generator
        device = generator.device
        self._cdf = zeta_cdf(settings.exponent, settings.max_hold).to(device)
        self._noise_NA = torch.zeros(num_envs, action_size, device=device)
        self.per_env = settings.schedule == "per_env"
        schedules = num_envs if self.per_env else 1
        self._left = torch.zeros(schedules, dtype=torch.int64, device=device)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Random numbers for one step: candidates for the noise (N, A) and for the hold."""
        fresh_NA = torch.randn(
            self._noise_NA.shape, generator=self._generator, device=self._noise_NA.device
        )
        uniform = torch.rand(self._left.shape, generator=self._generator, device=self._left.device)
        return fresh_NA, uniform

    def hold(self, fresh_NA: Tensor, uniform: Tensor) -> Tensor:
        """The noise of this step, (N, A): what is held, or ``fresh_NA`` where that ran out."""
        hold = torch.searchsorted(self._cdf, uniform, right=True).clamp_(max=len(self._cdf) - 1) + 1
        redraw = self._left == 0
        noise_NA = torch.where(redraw[:, None], fresh_NA, self._noise_NA)
        self._noise_NA.copy_(noise_NA)
        self._left.copy_(torch.where(redraw, hold, self._left) - 1)
        return noise_NA

    def next(self) -> Tensor:
        """The noise of this step, (N, A)."""
        return self.hold(*self.draw())

    def end_episodes(self, done: Tensor) -> None:
        """Drop what is held where an episode ended, (N,) bool; only where ``per_env``."""
        self._left.masked_fill_(done, 0)

    def forget_episodes(self) -> None:
        """Drop what is held: the next step draws afresh."""
        self._left.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Tensors only."""
        return {"noise": self._noise_NA, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value."""
        self._noise_NA.copy_(state["noise"])
        self._left.copy_(state["left"])
