"""Disturbances of what a policy is told in closed loop, and what they cost.

Shapes: ``D`` channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from supple.diagnostics.rollouts import Rollout, Sense
from supple.errors import InputError

DRAWS = 2000
"""Bootstrap draws over pairs of episodes."""


class Drop(NamedTuple):
    """What a disturbance costs in closed loop, over what the policy earns above chance."""

    mean: float
    low: float
    high: float
    """95 % interval, by resampling pairs of episodes."""


def drop(clean: Rollout, disturbed: Rollout, chance: float, generator: torch.Generator) -> Drop:
    """From episodes with the same starts.

    Args:
        clean: undisturbed episodes.
        disturbed: as many, paired.
        chance: mean return of random actions.
        generator: resamples.

    Raises:
        InputError: not paired, or the policy earns nothing above chance.
    """
    if clean.episodes != disturbed.episodes:
        raise InputError(
            f"paired episodes: expected {clean.episodes} disturbed ones, got {disturbed.episodes}"
        )
    earned = float(clean.returns.mean()) - chance
    if earned <= 0:
        raise InputError(
            f"the policy earns {float(clean.returns.mean()):g} an episode, random actions"
            f" {chance:g}: there is nothing to lose, train it first"
        )
    lost = (clean.returns - disturbed.returns).cpu()
    index = torch.randint(len(lost), (DRAWS, len(lost)), generator=generator)
    # What the policy earns is of the same episodes: numerator and denominator vary together. A
    # draw that earns nothing has no share to lose: there the interval has no end.
    earned_B = (clean.returns.cpu()[index].mean(1) - chance).clamp_min(0)
    share_B = (lost[index].mean(1) / earned_B).nan_to_num(0, math.inf, -math.inf).sort().values
    low, high = (float(share_B[int(share * (DRAWS - 1))]) for share in (0.025, 0.975))
    return Drop(float(lost.mean()) / earned, low, high)


def shifts(
    families: Mapping[str, Tensor],
    scale_D: Tensor,
    noise_D: Tensor,
    generator: torch.Generator,
) -> dict[str, Callable[[], Sense]]:
    """Physical disturbances of what a policy is told, each made anew for every rollout.

    Args:
        families: which channels belong together, (D,) bool each.
        scale_D: standard deviation of each channel.
        noise_D: standard deviation of the sensors' noise, declared or assumed.
        generator: draws the noise.

    Returns:
        By name: noise once and threefold, a bias of one deviation and a drop-out (a sensor that
        reports its first value for ever) for each family, and one step of latency.
    """

    def noisy(times: float) -> Sense:
        def sense(obs: Tensor, number: int) -> Tensor:
            return obs + times * noise_D * torch.randn(obs.shape, generator=generator)

        return sense

    def biased(own: Tensor) -> Sense:
        return lambda obs, number: obs + torch.where(own, scale_D, 0)

    def held(own: Tensor) -> Sense:
        first: list[Tensor] = []

        def sense(obs: Tensor, number: int) -> Tensor:
            if number == 0:
                first[:] = [obs]
            return torch.where(own, first[0], obs)

        return sense

    def late() -> Sense:
        before: list[Tensor] = []

        def sense(obs: Tensor, number: int) -> Tensor:
            told = before[0] if number else obs
            before[:] = [obs]
            return told

        return sense

    found: dict[str, Callable[[], Sense]] = {
        "sensor noise": lambda: noisy(1.0),
        "three times the noise": lambda: noisy(3.0),
        "one step late": late,
    }
    for name, own in families.items():
        found[f"{name} biased by 1 sd"] = lambda own=own: biased(own)  # type: ignore[misc]
        found[f"{name} stuck"] = lambda own=own: held(own)  # type: ignore[misc]
    return found


def along(direction_D: Tensor, size: float, scale_D: Tensor) -> Sense:
    """A constant step along a direction [standard deviations] at every observation."""
    raw = size * direction_D * scale_D
    return lambda obs, number: obs + raw
