"""Uniform draws of start rows without a host synchronisation.

A few candidates are drawn per slot and the first usable one is taken: shapes stay static and
nothing is read back, however many rows are invalid.
"""

from __future__ import annotations

import torch
from torch import Tensor

CANDIDATES = 4
"""Draws per slot. Slots whose candidates are all unusable borrow another slot's pick."""


def draw(
    batch_size: int,
    *,
    oldest: int,
    rows: int,
    num_rows: int,
    num_envs: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Candidate start rows, uniform over ``rows`` consecutive ring rows and all environments.

    Args:
        batch_size: B.
        oldest: ring row of the oldest candidate.
        rows: how many ring rows may start a window.
        num_rows: T.
        num_envs: N.
        generator: source of randomness; its device is where the indices live.

    Returns:
        Ring row and environment, each (B, CANDIDATES) int64.
    """
    # 62-bit integers, not float32 uniforms: those reach only 2^24 different rows.
    number = torch.randint(
        2**62, (batch_size, CANDIDATES), generator=generator, device=generator.device
    ) % (rows * num_envs)
    env = number % num_envs
    t = (torch.div(number, num_envs, rounding_mode="floor") + oldest) % num_rows
    return t, env


def first_usable(usable: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose one candidate per slot.

    Args:
        usable: (B, CANDIDATES) bool.

    Returns:
        The slot to take from and the candidate in it, each (B,) int64, and how many slots had to
        be filled with an unusable row, 0-d: not zero only when no slot had a usable one.
    """
    candidate = usable.int().argmax(-1)
    found = usable.any(-1)
    slot = torch.arange(len(usable), device=usable.device)
    donor = torch.where(found, slot, found.int().argmax())
    failed = (~found[donor]).sum()
    return donor, candidate[donor], failed
