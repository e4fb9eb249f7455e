"""Which rows are drawn, without a host synchronisation.

More candidates are drawn than the batch needs and the first usable ones are taken: shapes stay
static and nothing is read back, however many rows are invalid.

Source: age-biased replay is WarpSAC's, arXiv:2608.24479; uniform sampling is FlashSAC's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AgeBias(NamedTuple):
    """Sampling weight of a row by its age: from 1 at the newest, linearly down to a floor."""

    decay: int = 0
    """Age [vector steps] at which the line would reach 0; 0 draws uniformly."""
    floor: float = 1.0
    """Weight that old rows keep, in (0, 1]."""


UNIFORM = AgeBias()


def uniform_shape(batch_size: int, age_bias: AgeBias) -> tuple[int, int]:
    """Random numbers that ``choose`` needs: one per candidate, with an age bias two.

    There are so many candidates that a third of the rows may be unusable.
    """
    return 2 if age_bias.decay else 1, batch_size + max(batch_size // 2, 64)


def choose(
    uniform: Tensor,
    *,
    oldest: Tensor,
    rows: Tensor,
    num_rows: int,
    num_envs: int,
    age_bias: AgeBias = UNIFORM,
) -> Tensor:
    """Turn random numbers into candidates over ``rows`` consecutive ring rows.

    Args:
        uniform: float64 in [0, 1), of ``uniform_shape``. float32 would reach only 2^24 rows.
        oldest: ring row of the oldest candidate, 0-d.
        rows: how many ring rows may start a window, 0-d.
        num_rows: T.
        num_envs: N.
        age_bias: weights by age: a second row of ``uniform`` then chooses the environment.

    Returns:
        Flat ring rows, (P,) int64.
    """
    if age_bias.decay == 0:
        offset = (uniform[0] * (rows * num_envs)).long()
    else:
        t = rows - 1 - _biased_age(uniform[0], rows, age_bias)
        offset = t * num_envs + (uniform[1] * num_envs).long()
    cell, cells = oldest * num_envs + offset, num_rows * num_envs
    return torch.where(cell >= cells, cell - cells, cell)


def _biased_age(uniform: Tensor, rows: Tensor, bias: AgeBias) -> Tensor:
    """Ages in [0, rows), by inverting the cumulative weight of the line and the floor after it."""
    bend = (rows.double()).clamp(max=bias.decay * (1 - bias.floor))
    on_line = bend - bend.square() / (2 * bias.decay)
    mass = uniform * (on_line + bias.floor * (rows - bend))
    line = bias.decay * (1 - (1 - 2 * mass / bias.decay).clamp_min(0).sqrt())
    age = torch.where(mass < on_line, line, bend + (mass - on_line) / bias.floor)
    return age.long().clamp_min(0).minimum(rows - 1)


def first_usable(usable: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Choose the first usable candidates; where they are too few, they take turns.

    Args:
        usable: (P,) bool.
        batch_size: B.

    Returns:
        Numbers of the candidates, (B,) int64, and how many of them are unusable, 0-d: not zero only
        when all are.
    """
    rank = usable.long().cumsum(0)
    found = rank[-1]
    turn = torch.arange(batch_size, device=usable.device) % found.clamp_min(1)
    pick = torch.searchsorted(rank, turn + 1).clamp(max=len(usable) - 1)
    return pick, torch.where(found > 0, 0, batch_size)
