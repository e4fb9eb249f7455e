"""``genesis/go2-walk``: a Unitree Go2 follows any velocity, on varied robots with noisy sensors.

What it is, where its numbers are from and how it deviates from them: ``genesis_go2.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from supple.envs.base import Channel
from supple.envs.genesis_go2 import HEIGHT, JOINTS, START, UNIT, Go2WalkEasy, channels
from supple.envs.genesis_task import heading, inverse

NOISE = {
    "base_ang_vel": 0.1,
    "projected_gravity": 0.02,
    "joint_pos": 0.01,
    "joint_vel": 0.5,
}
"""Most that a sensor is wrong [rad/s, 1, rad, rad/s]."""


class Go2Walk(Go2WalkEasy):
    """Observes the same 45 with noise; the critic these, velocity, and the action carried out."""

    scene_dt: ClassVar[float] = 0.005
    substeps: ClassVar[int] = 1
    links_vary: ClassVar[bool] = True
    critic_contains_policy: ClassVar[bool] = True
    stiffness: ClassVar[float] = 30.0
    damping: ClassVar[float] = 1.5

    def __init__(self, scene: Any, entities: dict[str, Any], device: torch.device) -> None:
        names = [link.name for link in entities["robot"].links]
        self._trunk = [names.index("base")]
        self._feet = [index for index, name in enumerate(names) if "foot" in name]
        self._spared = [
            index
            for index, name in enumerate(names)
            if any(part in name for part in ("base", "thigh", "calf"))
        ]
        super().__init__(scene, entities, device)
        self._mass = self.robot.get_links_mass(self._trunk).reshape(-1, 1)[:1]
        self._center = self.robot.get_links_COM(self._trunk).reshape(-1, 1, 3)[:1]
        self._kp, self._kd, self._offset = (self.zeros(12) for _ in range(3))
        self._torque = self.zeros(12)
        self._airborne = self.zeros(len(self._feet))
        """Seconds since each foot last stood (N, 4) [s]."""
        self._stood = self.zeros(len(self._feet), dtype=torch.bool)
        both = channels(NOISE), channels(NOISE, "critic")
        self.channels = (*both[0], *both[1], *_privileged())

    def _set_gains(self) -> None:
        """None: this task computes torques itself, each robot with gains of its own."""

    def _begin(self, rows: Tensor) -> None:
        super()._begin(rows)
        self._airborne.masked_fill_(rows[:, None], 0.0)
        self._stood.masked_fill_(rows[:, None], False)

    def _start(self) -> Tensor:
        place = self.constant(START).clone()
        place[:, :2] += self.uniform(-1.0, 1.0, 2)
        lean, yaw = self.uniform(-0.1, 0.1, 2), self.uniform(0.0, torch.pi, 1)
        joints = self.stance + self.uniform(-0.3, 0.3, 12)
        return self._pose(place, torch.cat((lean, yaw), dim=1), joints)

    def _renew(self, rows: Tensor) -> None:
        super()._renew(rows)
        chosen = rows[:, None]
        kp = self.stiffness * self.uniform(0.8, 1.2, 12)
        kd = self.damping * self.uniform(0.8, 1.2, 12)
        self._kp = torch.where(chosen, kp, self._kp)
        self._kd = torch.where(chosen, kd, self._kd)
        self._offset = torch.where(chosen, self.uniform(-0.02, 0.02, 12), self._offset)
        self._vary_bodies(rows)

    def _vary_bodies(self, rows: Tensor) -> None:
        """Another friction, and another mass and centre of mass of the trunk, in these rows."""
        friction = self.uniform(0.2, 1.5, 1)
        mass = self._mass + self.uniform(-1.0, 3.0, 1)
        center = self._center + self.uniform(-0.01, 0.01, 1, 3)
        chosen = rows.nonzero().squeeze(-1)
        if len(chosen) == 0:
            return
        solver = self.scene.rigid_solver
        ratios = friction[chosen].expand(-1, solver.n_geoms)
        solver.set_geoms_friction_ratio(ratios, envs_idx=chosen)
        self.robot.set_links_mass(mass[chosen], self._trunk, envs_idx=chosen)
        self.robot.set_links_COM(center[chosen], self._trunk, envs_idx=chosen)

    def _drawn_command(self) -> Tensor:
        """Uniform; too slow a walk is none, too slow a turn neither."""
        drawn = self.uniform(-1.0, 1.0, 3)
        walk, turn = drawn[:, :2], drawn[:, 2:]
        walks = walk.norm(dim=1, keepdim=True) > 0.2
        return torch.cat((walk * walks, turn * (turn.abs() > 0.2)), dim=1)

    def _drive(self, target: Tensor) -> None:
        for _ in range(round(self.control_dt / self.scene_dt)):
            error = target + self._offset - self.robot.get_dofs_position(self.motors)
            rates = self.robot.get_dofs_velocity(self.motors)
            self._torque = self._kp * error - self._kd * rates
            self.robot.control_dofs_force(self._torque, self.motors)
            self.scene.step()

    def _frame(self, quaternion: Tensor) -> Tensor:
        """That of the heading: level, however the trunk leans."""
        return inverse(heading(quaternion))

    def _reward(self) -> Tensor:
        moving, turning = self._tracking()
        now = self.now
        force: Tensor = self.robot.get_links_net_contact_force()
        hits: Tensor = (force[:, self._spared].norm(dim=-1) > 0.1).sum(dim=1)
        acceleration = (now.rates - self.last.rates) / self.control_dt
        return (
            moving
            + 0.5 * turning
            - 2 * now.velocity[:, 2].square()
            - 0.05 * now.turning[:, :2].square().sum(dim=1)
            - 10 * now.gravity[:, :2].square().sum(dim=1)
            - 50 * (now.height - HEIGHT).square()
            - 2e-4 * self._torque.square().sum(dim=1)
            - hits
            - 2.5e-7 * acceleration.square().sum(dim=1)
            + self._strides(force[:, self._feet, 2] > 1.0)
            - 0.01 * self._changed()
        )

    def _strides(self, stands: Tensor) -> Tensor:
        """Seconds beyond half a one that feet were in the air which land now, (N,)."""
        stood, self._stood = stands | self._stood, stands  # either: contacts flicker
        lands = (self._airborne > 0) & stood
        self._airborne += self.control_dt
        seconds = ((self._airborne - 0.5) * lands).sum(dim=1)
        self._airborne.masked_fill_(stood, 0.0)
        walks: Tensor = self.command[:, :2].norm(dim=1) > 0.1
        return seconds * walks

    def _failed(self) -> Tensor:
        force: Tensor = self.robot.get_links_net_contact_force()[:, self._trunk]
        lies: Tensor = (force.norm(dim=-1) > 1.0).any(dim=1)
        return (self._tilt() > 0.4) | lies | (self.now.height < 0)

    def _measured(self) -> dict[str, Tensor]:
        exact = super()._measured()
        wrong = {
            name: self.uniform(-most, most, exact[name].shape[1]) for name, most in NOISE.items()
        }
        return exact | {name: exact[name] + error for name, error in wrong.items()}

    def observe(self) -> dict[str, Tensor]:
        """The critic's group begins with the policy's, noise included."""
        policy = super().observe()["policy"].clamp(-100, 100)
        executed = (self.previous - self.stance) / UNIT
        privileged = (2 * self.now.velocity, executed)
        return {"policy": policy, "critic": torch.cat((policy, *privileged), dim=1)}


def _privileged() -> list[Channel]:
    """Of the critic's entries beyond the policy's."""
    velocity = [f"base_lin_vel[{axis}]" for axis in "xyz"]
    executed = [f"executed_action[{joint}]" for joint in JOINTS]
    return [Channel(name=name, group="critic") for name in velocity + executed]
