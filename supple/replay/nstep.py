"""n-step windows over a time-major ring, computed when sampling.

Shapes: ``T`` ring rows, ``N`` environments, ``n`` window length, ``P`` windows. Flat row indices
are ``t * N + env``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from supple.replay.records import FINAL_SLOT, FLAGS, REWARD, TERMINATED, TRUNCATED, VALID


class Window(NamedTuple):
    """What follows a start row, up to ``n`` steps or to the episode's end; (P,) each."""

    start: Tensor
    """Flat index of the first step."""
    last: Tensor
    """Flat index of the last step, of the same episode."""
    steps: Tensor
    """How many there are, 1 to n, int64."""
    complete: Tensor
    """Whether all of them are valid, bool."""
    reward: Tensor
    """Discounted sum of the rewards."""
    flags: Tensor
    """Word ``FLAGS`` of the last step's record."""
    final_slot: Tensor
    """Side-table row of the observation after the last step, -1 where it is in the ring."""


def follow(start: Tensor, records: Tensor, *, n_step: int, num_envs: int, gamma: float) -> Window:
    """Walk ``n_step`` rows forward from each start row, stopping at the end of its episode.

    The caller starts no window within ``n_step - 1`` rows of the write head.

    Args:
        start: flat ring rows, (P,).
        records: of all rows (``replay/records.py``).
        n_step: n.
        num_envs: N.
        gamma: one-step discount.
    """
    cells = len(records)
    step = torch.arange(n_step, device=start.device).unsqueeze(-1)
    row_nP = start + step * num_envs
    row_nP = torch.where(row_nP >= cells, row_nP - cells, row_nP)
    record_nPW = records.index_select(0, row_nP.view(-1)).view(n_step, len(start), -1)
    flags_nP = record_nPW[..., FLAGS]
    ended_nP = (flags_nP & (TERMINATED | TRUNCATED)) != 0
    live_nP = ended_nP.cumsum(0) - ended_nP.long() == 0  # no end strictly before
    complete = ((flags_nP & VALID) != 0).logical_or_(~live_nP).all(0)
    steps = live_nP.sum(0)
    last = (steps - 1).unsqueeze(0)
    power = gamma ** step.float()
    # Rows after the end may hold anything, NaN too.
    reward_nP = torch.where(live_nP, record_nPW[..., REWARD].view(torch.float32), 0.0)
    return Window(
        start=start,
        last=row_nP.gather(0, last)[0],
        steps=steps,
        complete=complete,
        reward=(reward_nP * power).sum(0),
        flags=flags_nP.gather(0, last)[0],
        final_slot=record_nPW[..., FINAL_SLOT].gather(0, last)[0],
    )
