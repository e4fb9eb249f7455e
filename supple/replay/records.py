"""What sampling reads of a stored step besides observations and action: one record of 16 bytes.

Side by side, so that a window of ``n`` steps costs ``n`` reads from memory, not ``6 n``.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Words of a record, int32.
REWARD = 0
"""The bits of a float32."""
FLAGS = 1
"""One byte each: terminated, truncated, valid."""
STEP_IN_EPISODE = 2
FINAL_SLOT = 3
"""Side-table row of the final observation, -1 where the step did not end its episode, or terminated
so long ago that another has that row now."""
WORDS = 4

TERMINATED, TRUNCATED, VALID = 1, 1 << 8, 1 << 16
BYTES = 4 * WORDS


def empty(cells: int, device: torch.device) -> Tensor:
    """Records of rows nobody wrote, (cells, WORDS)."""
    record = torch.tensor([0, 0, 0, -1], dtype=torch.int32, device=device)
    return record.repeat(cells, 1)


def columns(records: Tensor) -> dict[str, Tensor]:
    """The fields of all records as writable views of their own types, (cells,) each."""
    flags = records.view(torch.bool)[:, 4 * FLAGS :]
    return {
        "reward": records.view(torch.float32)[:, REWARD],
        "terminated": flags[:, 0],
        "truncated": flags[:, 1],
        "valid": flags[:, 2],
        "step_in_episode": records[:, STEP_IN_EPISODE],
        "final_slot": records[:, FINAL_SLOT],
    }


def pack(
    *,
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    step_in_episode: Tensor,
    final_slot: Tensor,
) -> Tensor:
    """Records of one vector step, (N, WORDS), from fields of (N,)."""
    flags = terminated * TERMINATED + truncated * TRUNCATED + valid * VALID
    words = (reward.float().view(torch.int32), flags.int(), step_in_episode, final_slot)
    return torch.stack(words, dim=-1)
