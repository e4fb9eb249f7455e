"""What the Genesis tasks share: an episode's clock, starts in chosen rows, rotations.

Genesis has scenes and no environments. A task here is one scene of ``N`` copies; it says what is
observed and rewarded and when it failed. Rows are chosen by a mask (N,) bool: nothing waits for the
device, and every copy draws its random numbers whether it needs them or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from supple.envs.base import Box, Channel, Deployment


class Task(ABC):
    """``N`` copies of a scene, and what they are for.

    Args:
        scene: a Genesis scene, built.
        entities: what ``populate`` put into it.
        device: the scene's.
    """

    control_dt: ClassVar[float]
    """Seconds between two actions [s]."""
    scene_dt: ClassVar[float]
    """Seconds of one step of the scene [s]."""
    substeps: ClassVar[int]
    """Physics steps in one step of the scene."""
    limit: ClassVar[int]
    """Control steps of an episode."""
    links_vary: ClassVar[bool] = False
    """Whether masses differ between copies."""
    critic_contains_policy: ClassVar[bool] = False
    camera: ClassVar[tuple[float, float, float]]
    """Where a picture is taken from, relative to ``focus`` [m]."""
    action: Box
    channels: tuple[Channel, ...]
    deployment: Deployment

    def __init__(self, scene: Any, entities: dict[str, Any], device: torch.device) -> None:
        self.scene, self.entities, self.device = scene, entities, device
        self.num_envs: int = scene.n_envs
        self.age = self.zeros(dtype=torch.int64)
        """Control steps since the start, (N,) int64."""

    @classmethod
    @abstractmethod
    def populate(cls, gs: Any, scene: Any) -> dict[str, Any]:
        """Add everything to a scene that is not built yet; the entities by name."""

    def begin(self, rows: Tensor) -> None:
        """Put these copies, (N,) bool, to a fresh start."""
        self.age.masked_fill_(rows, 0)
        self._begin(rows)

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Simulate one control step.

        Args:
            action: (N, A), physical, within ``action``; it may be kept.

        Returns:
            Reward (N,) and whether the copy failed (N,) bool.
        """
        self.age += 1
        return self._advance(action)

    @abstractmethod
    def observe(self) -> dict[str, Tensor]:
        """The groups now, each (N, D); sensor noise is drawn anew."""

    @abstractmethod
    def focus(self) -> Tensor:
        """What a picture of copy 0 shows in its middle, (3,) [m]."""

    @abstractmethod
    def _begin(self, rows: Tensor) -> None: ...

    @abstractmethod
    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor]: ...

    def zeros(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, *size)."""
        return torch.zeros(self.num_envs, *size, dtype=dtype, device=self.device)

    def uniform(self, low: float, high: float, *size: int) -> Tensor:
        """Random numbers, (N, *size)."""
        drawn = torch.rand(self.num_envs, *size, device=self.device)
        return low + (high - low) * drawn

    def constant(self, values: tuple[float, ...]) -> Tensor:
        """The same in every copy, (N, len(values))."""
        return torch.tensor(values, device=self.device).expand(self.num_envs, -1)


def rotated(vector: Tensor, quaternion: Tensor) -> Tensor:
    """Vectors (..., 3) of a body's frame in the world's; its quaternion (..., 4) is w, x, y, z."""
    w, axis = quaternion[..., :1], quaternion[..., 1:]
    once: Tensor = torch.linalg.cross(axis, vector)
    again: Tensor = torch.linalg.cross(axis, once)
    return vector + 2 * (w * once + again)


def inverse(quaternion: Tensor) -> Tensor:
    """Of unit quaternions (..., 4)."""
    return torch.cat((quaternion[..., :1], -quaternion[..., 1:]), dim=-1)


def heading(quaternion: Tensor) -> Tensor:
    """The turn about the vertical alone, (..., 4)."""
    flat = torch.zeros_like(quaternion)
    flat[..., 0], flat[..., 3] = quaternion[..., 0], quaternion[..., 3]
    return torch.nn.functional.normalize(flat, dim=-1)


def from_euler(angles: Tensor) -> Tensor:
    """Roll, pitch and yaw (..., 3) [rad], applied in this order about the world's axes."""
    (cr, cp, cy), (sr, sp, sy) = (angles / 2).cos().unbind(-1), (angles / 2).sin().unbind(-1)
    return torch.stack(
        (
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ),
        dim=-1,
    )
