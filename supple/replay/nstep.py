"""n-step windows over a time-major ring, computed when sampling.

Shapes: ``T`` ring rows, ``N`` environments, ``n`` window length; index tensors may have any shape
``[...]``. Flat row indices are ``t * N + env``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Flags(NamedTuple):
    """What happened in each row, flat over time and environments."""

    terminated: Tensor
    truncated: Tensor
    valid: Tensor


class Window(NamedTuple):
    """The steps that follow a start row, up to ``n`` or to the episode's end."""

    rows: Tensor
    """Flat index of every step, [..., n]; those after the episode's end belong to others."""
    live: Tensor
    """Whether each step belongs to the window, [..., n] bool."""
    complete: Tensor
    """Whether every live step is valid, [...] bool."""
    last: Tensor
    """Flat index of the last live step, [...]."""
    steps: Tensor
    """Number of live steps, 1 to n, [...] int64."""


def follow(
    t: Tensor, env: Tensor, flags: Flags, *, n_step: int, num_rows: int, num_envs: int
) -> Window:
    """Walk ``n_step`` rows forward from each start row, stopping at the end of its episode.

    The caller starts no window within ``n_step - 1`` rows of the write head.
    """
    offset = torch.arange(n_step, device=t.device)
    rows = (t.unsqueeze(-1) + offset) % num_rows * num_envs + env.unsqueeze(-1)
    if n_step == 1:
        live = torch.ones_like(rows, dtype=torch.bool)
    else:
        ended = flags.terminated[rows] | flags.truncated[rows]
        before = ended.cumsum(-1) - ended.long()  # ends strictly before each step
        live = before == 0
    steps = live.sum(-1)
    last = rows.gather(-1, steps.unsqueeze(-1) - 1).squeeze(-1)
    complete = (flags.valid[rows] | ~live).all(-1)
    return Window(rows, live, complete, last, steps)


def discounted_sum(reward: Tensor, window: Window, gamma: float) -> Tensor:
    """Sum of gamma^m * reward over the live steps, [...]."""
    n_step = window.rows.shape[-1]
    if n_step == 1:
        return reward[window.rows[..., 0]]
    power = gamma ** torch.arange(n_step, device=reward.device, dtype=reward.dtype)
    return (torch.where(window.live, reward[window.rows], 0.0) * power).sum(-1)
