"""Which rows are drawn, without a host synchronisation.

A few candidates are drawn per slot and the first usable one is taken: shapes stay static and
nothing is read back, however many rows are invalid.

Source: age-biased replay is WarpSAC's, arXiv:2608.24479; uniform sampling is FlashSAC's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 4
"""Draws per slot. Slots whose candidates are all unusable borrow another slot's pick."""


class AgeBias(NamedTuple):
    """Sampling weight of a row by its age: from 1 at the newest, linearly down to a floor."""

    decay: int = 0
    """Age [vector steps] at which the line would reach 0; 0 draws uniformly."""
    floor: float = 1.0
    """Weight that old rows keep, in (0, 1]."""


UNIFORM = AgeBias()


def choose(
    number: Tensor,
    *,
    oldest: Tensor,
    rows: Tensor,
    num_rows: int,
    num_envs: int,
    age_bias: AgeBias = UNIFORM,
) -> tuple[Tensor, Tensor]:
    """Turn random numbers into start rows over ``rows`` consecutive ring rows.

    Args:
        number: uniform integers below 2^62, any shape.
        oldest: ring row of the oldest candidate, 0-d.
        rows: how many ring rows may start a window, 0-d.
        num_rows: T.
        num_envs: N.
        age_bias: weights by age.

    Returns:
        Ring row and environment, int64, of the shape of ``number``.
    """
    env = number % num_envs
    number = torch.div(number, num_envs, rounding_mode="floor")
    if age_bias.decay == 0:
        offset = number % rows
    else:
        uniform = number.double() * (num_envs / 2**62)
        offset = rows - 1 - _biased_age(uniform, rows, age_bias)
    return (offset + oldest) % num_rows, env


def _biased_age(uniform: Tensor, rows: Tensor, bias: AgeBias) -> Tensor:
    """Ages in [0, rows), by inverting the cumulative weight of the line and the floor after it."""
    bend = (rows.double()).clamp(max=bias.decay * (1 - bias.floor))
    on_line = bend - bend.square() / (2 * bias.decay)
    mass = uniform * (on_line + bias.floor * (rows - bend))
    line = bias.decay * (1 - (1 - 2 * mass / bias.decay).clamp_min(0).sqrt())
    age = torch.where(mass < on_line, line, bend + (mass - on_line) / bias.floor)
    return age.long().clamp_min(0).minimum(rows - 1)


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
    # Slots without a usable candidate take turns among those that have one.
    rank = found.long().cumsum(0)
    turn = slot % rank[-1].clamp_min(1)
    lender = torch.searchsorted(rank, turn + 1).clamp(max=len(usable) - 1)
    donor = torch.where(found, slot, lender)
    failed = (~found[donor]).sum()
    return donor, candidate[donor], failed
