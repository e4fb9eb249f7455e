"""``genesis/go2-walk_easy`` and ``genesis/go2-walk``: a Unitree Go2 follows commanded velocities.

An action is twelve joint targets, within 0.75 rad of the stance; it takes effect one control step
later, as on the robot. 50 Hz, episodes of 20 s; a robot that tips over, or lies on its trunk,
failed. The easy task always commands 0.5 m/s forwards and starts in the stance. The other commands
any velocity anew every 4 s, starts anyhow, varies the robot, measures with noise, and tells the
critic what the policy cannot measure.

Source of the numbers: Holiday-Robot/FlashSAC@87edc90, flash_rl/envs/genesis_envs/go2_*.py.
Deviations: a time-out is no failure (there go2-walk has none); an episode has 1000 steps and not
1001; a step is rewarded by the command the policy saw; noise has the units it is named in, reaches
the entries it is named after (there it is twelve further on) and differs between robots; robots
vary from start to start, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from supple.envs.base import Box, Channel, Deployment, LastAction
from supple.envs.genesis_task import Task, from_euler, inverse, rotated

JOINTS = tuple(
    f"{leg}_{part}_joint" for leg in ("FR", "FL", "RR", "RL") for part in ("hip", "thigh", "calf")
)
"""In the order of the robot's SDK."""
STANCE = (0.0, 0.8, -1.5) * 2 + (0.0, 1.0, -1.5) * 2
"""[rad]."""
START = (0.0, 0.0, 0.42)
"""Of the trunk [m]."""
HEIGHT = 0.3
"""Of the trunk, to be kept [m]."""
UNIT = 0.25
"""One of the published action, in which it is observed and its changes cost [rad]."""
REACH = 3 * UNIT
"""What the policy's 1 means [rad]."""
COMMAND_STEPS = 200
"""Control steps until another command: 4 s."""
SCALES = {
    "base_ang_vel": 0.25,
    "projected_gravity": 1.0,
    "command_walk": 2.0,
    "command_turn": 0.25,
    "joint_pos": 1.0,
    "joint_vel": 0.05,
    "action": 1.0,
}
"""What the policy observes, in order, and the factor of each from SI units (or the action's)."""
AXES = {
    "base_ang_vel": "xyz",
    "projected_gravity": "xyz",
    "command_walk": "xy",
    "command_turn": "z",
}
"""Entries of the parts that have none for each joint."""


class Motion(NamedTuple):
    """What the robots do, in SI units."""

    height: Tensor
    """(N,) of the trunk."""
    velocity: Tensor
    """(N, 3) of the trunk; the task says in whose frame."""
    turning: Tensor
    """(N, 3) of the trunk, in its frame."""
    gravity: Tensor
    """(N, 3) unit vector downwards, in the trunk's frame."""
    angles: Tensor
    """(N, 12) of the joints, from the stance."""
    rates: Tensor
    """(N, 12) of the joints."""


class Go2WalkEasy(Task):
    """Observes 45 numbers: ``SCALES``."""

    control_dt: ClassVar[float] = 0.02
    scene_dt: ClassVar[float] = 0.02
    substeps: ClassVar[int] = 2
    limit: ClassVar[int] = 1000
    camera: ClassVar[tuple[float, float, float]] = (-1.2, -1.2, 0.6)
    stiffness: ClassVar[float] = 20.0
    """kp [N·m/rad]."""
    damping: ClassVar[float] = 0.5
    """kd [N·m·s/rad]."""

    @classmethod
    def populate(cls, gs: Any, scene: Any) -> dict[str, Any]:
        """Ground and robot; the feet are told from the shanks, for their contacts."""
        scene.add_entity(gs.morphs.Plane())
        feet = [f"{leg}_foot" for leg in ("FL", "FR", "RL", "RR")]
        morph = gs.morphs.URDF(file="urdf/go2/urdf/go2.urdf", pos=START, links_to_keep=feet)
        return {"robot": scene.add_entity(morph)}

    def __init__(self, scene: Any, entities: dict[str, Any], device: torch.device) -> None:
        super().__init__(scene, entities, device)
        self.robot = entities["robot"]
        joints = [self.robot.get_joint(name) for name in JOINTS]
        self._qpos = [joint.qs_idx_local[0] for joint in joints]
        self.motors = [joint.dofs_idx_local[0] for joint in joints]
        self.stance = self.constant(STANCE)
        self.target = self.stance.clone()
        """The last action [rad]; the one before is carried out."""
        self.previous = self.stance.clone()
        self.command = self.zeros(3)
        """Forwards and leftwards [m/s], turning left [rad/s]."""
        self._set_gains()
        self.now = self.last = self._read()
        self.action = Box(
            low=tuple(angle - REACH for angle in STANCE),
            high=tuple(angle + REACH for angle in STANCE),
        )
        self.channels = tuple(channels())
        self.deployment = self._deployment()

    def _set_gains(self) -> None:
        self.robot.set_dofs_kp([self.stiffness] * 12, self.motors)
        self.robot.set_dofs_kv([self.damping] * 12, self.motors)

    def _begin(self, rows: Tensor) -> None:
        qpos = self._start()
        self.robot.set_qpos(qpos, envs_idx=rows)
        for kept in (self.target, self.previous):
            kept.copy_(torch.where(rows[:, None], self.stance, kept))
        self._renew(rows)
        self.now = self._read()

    def _start(self) -> Tensor:
        """Positions of every joint, the free one first, (N, 19)."""
        return self._pose(self.constant(START), self.constant((0.0, 0.0, 0.0)), self.stance)

    def _pose(self, place: Tensor, angles: Tensor, joints: Tensor) -> Tensor:
        qpos = self.zeros(7 + len(JOINTS))
        qpos[:, :3], qpos[:, 3:7] = place, from_euler(angles)
        qpos[:, self._qpos] = joints
        return qpos

    def _renew(self, rows: Tensor) -> None:
        """Another command in these rows."""
        self.command = torch.where(rows[:, None], self._drawn_command(), self.command)

    def _drawn_command(self) -> Tensor:
        return self.constant((0.5, 0.0, 0.0))

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor]:
        self.previous, self.target = self.target, action
        self._drive(self.previous)
        self.last, self.now = self.now, self._read()
        reward, failed = self.control_dt * self._reward(), self._failed()
        self._renew(self.age % COMMAND_STEPS == 0)
        return reward, failed

    def _drive(self, target: Tensor) -> None:
        """One control step towards joint angles (N, 12)."""
        self.robot.control_dofs_position(target, self.motors)
        self.scene.step()

    def _read(self) -> Motion:
        quaternion = self.robot.get_quat()
        back = inverse(quaternion)
        return Motion(
            height=self.robot.get_pos()[:, 2],
            velocity=rotated(self.robot.get_vel(), self._frame(quaternion)),
            turning=rotated(self.robot.get_ang(), back),
            gravity=rotated(self.constant((0.0, 0.0, -1.0)), back),
            angles=self.robot.get_dofs_position(self.motors) - self.stance,
            rates=self.robot.get_dofs_velocity(self.motors).clone(),
        )

    def _frame(self, quaternion: Tensor) -> Tensor:
        """From the world into the frame that velocity is rewarded in: the trunk's."""
        return inverse(quaternion)

    def _changed(self) -> Tensor:
        """How much the action changed, squared (N,)."""
        return ((self.target - self.previous) / UNIT).square().sum(dim=1)

    def _tracking(self) -> tuple[Tensor, Tensor]:
        """How well the velocity and the turning are as commanded, each (N,) up to 1."""
        wrong = (self.command[:, :2] - self.now.velocity[:, :2]).square().sum(dim=1)
        turned = (self.command[:, 2] - self.now.turning[:, 2]).square()
        return (-wrong / 0.25).exp(), (-turned / 0.25).exp()

    def _reward(self) -> Tensor:
        """Per second (N,)."""
        moving, turning = self._tracking()
        return (
            moving
            + 0.2 * turning
            - self.now.velocity[:, 2].square()
            - 50 * (self.now.height - HEIGHT).square()
            - 0.005 * self._changed()
            - 0.1 * self.now.angles.abs().sum(dim=1)
        )

    def _tilt(self) -> Tensor:
        """The larger of roll and pitch (N,) [rad]."""
        x, y, z = self.now.gravity.unbind(-1)
        return torch.maximum(torch.atan2(-y, -z).abs(), x.clamp(-1, 1).asin().abs())

    def _failed(self) -> Tensor:
        return self._tilt() > torch.pi / 18

    def _measured(self) -> dict[str, Tensor]:
        """What is observed, in SI units, by the names in ``SCALES``."""
        return {
            "base_ang_vel": self.now.turning,
            "projected_gravity": self.now.gravity,
            "command_walk": self.command[:, :2],
            "command_turn": self.command[:, 2:],
            "joint_pos": self.now.angles,
            "joint_vel": self.now.rates,
            "action": (self.target - self.stance) / UNIT,
        }

    def observe(self) -> dict[str, Tensor]:
        """One group."""
        measured = self._measured()
        parts = [measured[name] * scale for name, scale in SCALES.items()]
        return {"policy": torch.cat(parts, dim=1)}

    def focus(self) -> Tensor:
        """The trunk."""
        place: Tensor = self.robot.get_pos()[0]
        return place

    def _deployment(self) -> Deployment:
        low, high = self.robot.get_dofs_limit(self.motors)
        _, effort = self.robot.get_dofs_force_range(self.motors)
        return Deployment(
            joint_names=JOINTS,
            robot_joint_names=JOINTS,
            control_mode="position",
            stiffness=(self.stiffness,) * 12,
            damping=(self.damping,) * 12,
            default_position=STANCE,
            action_scale=(REACH,) * 12,
            action_offset=STANCE,
            action_clip_low=False,
            action_clip_high=False,
            action_filter=False,
            position_limit_low=tuple(low.reshape(-1, 12)[0].tolist()),
            position_limit_high=tuple(high.reshape(-1, 12)[0].tolist()),
            effort_limit=tuple(effort.reshape(-1, 12)[0].tolist()),
            sim_dt=self.scene_dt / self.substeps,
            decimation=round(self.control_dt / self.scene_dt) * self.substeps,
            action_delay=1,
            observation_delay=0,
            history_length=1,
        )


def _last_action(index: int) -> dict[str, Any]:
    """What else is known of an entry: the target that was given last, from the stance."""
    shown = LastAction(index=index, factor=SCALES["action"] * REACH / UNIT)
    return {"last_action": shown, "term": "action", "scale": 1.0, "clip": False}


def channels(noise: Mapping[str, float] | None = None, group: str = "policy") -> list[Channel]:
    """Of the entries in ``SCALES``; scaled ones have no unit."""
    channels = []
    for part, scale in SCALES.items():
        names = AXES.get(part, JOINTS)
        most = (noise or {}).get(part)
        channels += [
            Channel(
                name=f"{part}[{name}]",
                group=group,
                unit="rad" if part == "joint_pos" else None,
                noise=None if most is None else most * scale / math.sqrt(3),
                **({} if part != "action" else _last_action(index)),
            )
            for index, name in enumerate(names)
        ]
    return channels
