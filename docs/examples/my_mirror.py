"""The mirror image of Walker2d: its legs change places."""

from torch import Tensor

LEGS = (3, 4, 5, 0, 1, 2)
OBSERVATION = (0, 1, *(2 + leg for leg in LEGS), 8, 9, 10, *(11 + leg for leg in LEGS))


def mirror(group: str, rows: Tensor) -> Tensor:
    """Of observations (M, 17), or of actions (M, 6)."""
    return rows[:, LEGS if group == "action" else OBSERVATION]
