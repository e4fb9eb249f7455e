"""``genesis/panda-grasp``: bring the open hand of a Panda around a box on the ground.

An action moves the hand: metres along and radians about the world's axes, turned into joint targets
by damped least squares. The box stands still and touches nothing, so "grasp" is a reach with the
fingers open, as published. An episode lasts 3 s at 100 Hz and never fails.

Source of the numbers: Holiday-Robot/FlashSAC@87edc90, flash_rl/envs/genesis_envs/panda_grasp.py.
Deviations: fingers that are pushed shut cost reward (there a sign makes them earn it); an episode
has 300 steps and not 301.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from supple.envs.base import Box, Channel, Deployment
from supple.envs.genesis_task import Task, from_euler, rotated

HOME = (0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785, 0.04, 0.04)
"""Of the seven joints [rad] and both fingers [m], which are kept open."""
STIFFNESS = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0, 100.0, 100.0)
"""kp [N·m/rad, or N/m]; kd is a tenth of it."""
FORCE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0, 100.0, 100.0)
"""Most that a joint exerts [N·m, or N]."""
STRIDE = 0.05
"""What the policy's 1 means [m, and rad]."""
DAMPING = 0.01
"""Of the inverse kinematics: steps shrink near poses that cannot turn every way."""
BOX = (0.04, 0.04, 0.06)
"""Its edges [m]."""
TIP = -0.06
"""From the fingers' frames to where they grip, along the vertical [m]."""
LEVER = 0.5
"""From the middle to the outer points that tell two poses apart [m]."""
SLACK = 1e-3
"""Fingers this close to open were not pushed [m]."""


class PandaGrasp(Task):
    """Observes the fingers from the box, the fingers' attitude, and the box's pose: 14 numbers."""

    control_dt: ClassVar[float] = 0.01
    scene_dt: ClassVar[float] = 0.01
    substeps: ClassVar[int] = 2
    limit: ClassVar[int] = 300
    camera: ClassVar[tuple[float, float, float]] = (1.3, -1.1, 0.7)

    @classmethod
    def populate(cls, gs: Any, scene: Any) -> dict[str, Any]:
        """Ground, arm and box."""
        scene.add_entity(gs.morphs.Plane())
        arm = scene.add_entity(gs.morphs.MJCF(file="xml/franka_emika_panda/panda.xml"))
        box = scene.add_entity(
            gs.morphs.Box(size=BOX, fixed=True, collision=False),
            surface=gs.surfaces.Rough(color=(1.0, 0.0, 0.0)),
        )
        return {"arm": arm, "box": box}

    def __init__(self, scene: Any, entities: dict[str, Any], device: torch.device) -> None:
        super().__init__(scene, entities, device)
        self._arm, self._box = entities["arm"], entities["box"]
        self._hand = self._arm.get_link("hand")
        self._fingers = [self._arm.get_link(f"{side}_finger") for side in ("left", "right")]
        force = torch.tensor(FORCE, device=device)
        self._arm.set_dofs_kp(torch.tensor(STIFFNESS, device=device))
        self._arm.set_dofs_kv(torch.tensor(STIFFNESS, device=device) / 10)
        self._arm.set_dofs_force_range(-force, force)
        self._place, self._attitude = self.zeros(3), self.zeros(4)  # of the box
        corners = torch.cat((torch.zeros(1, 3), -torch.eye(3), torch.eye(3)))
        self._points = (LEVER * corners).unsqueeze(0).to(device)
        self.action = Box(low=(-STRIDE,) * 6, high=(STRIDE,) * 6, clip=True)
        self.channels = _channels()
        self.deployment = Deployment(
            control_mode="delta",
            action_scale=(STRIDE,) * 6,
            action_offset=(0.0,) * 6,
            action_clip_low=False,
            action_clip_high=False,
            action_filter=False,
            sim_dt=self.scene_dt / self.substeps,
            decimation=self.substeps,
            action_delay=0,
            observation_delay=0,
            history_length=1,
        )

    def _begin(self, rows: Tensor) -> None:
        self._arm.set_qpos(self.constant(HOME), envs_idx=rows)
        x, y = self.uniform(0.2, 0.6), self.uniform(-0.25, 0.25)
        yaw = self.uniform(-torch.pi / 4, torch.pi / 4)
        half_turn = torch.full_like(yaw, torch.pi)  # upside down: as the hand's frame hangs
        place = torch.stack((x, y, torch.full_like(x, 0.025)), dim=1)
        attitude = from_euler(torch.stack((half_turn, torch.zeros_like(yaw), yaw), dim=1))
        self._place = torch.where(rows[:, None], place, self._place)
        self._attitude = torch.where(rows[:, None], attitude, self._attitude)
        self._box.set_pos(self._place)
        self._box.set_quat(self._attitude)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor]:
        joints = self._arm.get_dofs_position()
        target = joints + self._inverse_kinematics(action)
        target[:, 7:] = HOME[-1]
        self._arm.control_dofs_position(target)
        self.scene.step()
        return self._reward(), torch.zeros_like(self.age, dtype=torch.bool)

    def _inverse_kinematics(self, step: Tensor) -> Tensor:
        """Joint displacements (N, 9) that move the hand by ``step`` (N, 6)."""
        jacobian: Tensor = self._arm.get_jacobian(link=self._hand)
        transposed = jacobian.transpose(1, 2)
        damped = jacobian @ transposed + DAMPING**2 * torch.eye(6, device=self.device)
        share: Tensor = torch.linalg.solve(damped, step.unsqueeze(-1))
        return (transposed @ share).squeeze(-1)

    def _reward(self) -> Tensor:
        place, attitude = self._grip()
        place[:, 2] += TIP
        shift = (place - self._place).unsqueeze(1)
        ours, boxs = (
            rotated(self._points, pose.unsqueeze(1)) for pose in (attitude, self._attitude)
        )
        apart: Tensor = (shift + ours - boxs).norm(dim=-1).sum(dim=-1)
        fingers: Tensor = self._arm.get_dofs_position()[:, 7:]
        pushed = (fingers - HOME[-1]).norm(dim=-1)
        closing = torch.where(pushed > SLACK, pushed, 0.0)
        return self.control_dt * ((-apart).exp() - closing)

    def _grip(self) -> tuple[Tensor, Tensor]:
        """The middle of the fingers (N, 3) [m], and their attitude (N, 4)."""
        left, right = self._fingers
        return (left.get_pos() + right.get_pos()) / 2, left.get_quat()

    def observe(self) -> dict[str, Tensor]:
        """One group."""
        place, attitude = self._grip()
        parts = (place - self._place, attitude, self._place, self._attitude)
        return {"policy": torch.cat(parts, dim=1)}

    def focus(self) -> Tensor:
        """In front of the arm."""
        return torch.tensor((0.3, 0.0, 0.25))


def _channels() -> tuple[Channel, ...]:
    parts = (
        ("fingers_from_box", "xyz", "m"),
        ("fingers_quaternion", "wxyz", None),
        ("box_position", "xyz", "m"),
        ("box_quaternion", "wxyz", None),
    )
    return tuple(
        Channel(name=f"{name}[{axis}]", group="policy", unit=unit)
        for name, axes, unit in parts
        for axis in axes
    )
