"""What Gymnasium's MuJoCo models tell of their robots: timing, joints and channels."""

from __future__ import annotations

from typing import Any

import gymnasium

from supple.envs.base import Box, Channel, Deployment

_FREE = 0
_SLIDE = 2
_HINGE = 3
_JOINT_PARTS = {
    # MuJoCo joint type: its position channels and its velocity channels, each with a unit.
    _FREE: (
        (("x", "m"), ("y", "m"), ("z", "m"), ("qw", ""), ("qx", ""), ("qy", ""), ("qz", "")),
        tuple((name, "m/s") for name in ("vx", "vy", "vz"))
        + tuple((name, "rad/s") for name in ("wx", "wy", "wz")),
    ),
    _SLIDE: ((("", "m"),), (("", "m/s"),)),
    _HINGE: ((("", "rad"),), (("", "rad/s"),)),
}


def control_dt(env: gymnasium.Env[Any, Any]) -> float | None:
    """Seconds between two actions [s], where the environment says so."""
    dt = getattr(env.unwrapped, "dt", None)
    return float(dt) if isinstance(dt, float) and dt > 0 else None


def deployment(env: gymnasium.Env[Any, Any], action: Box) -> Deployment | None:
    """Joints and actuators of a MuJoCo robot whose every actuator drives one joint; else None."""
    robot: Any = env.unwrapped
    model: Any = getattr(robot, "model", None)
    if type(model).__name__ != "MjModel" or model.nu != action.size:
        return None
    if any(kind != 0 for kind in model.actuator_trntype):  # mjTRN_JOINT
        return None
    joints = [int(index) for index in model.actuator_trnid[:, 0]]
    names = tuple(model.joint(index).name for index in joints)
    half = [(high - low) / 2 for low, high in zip(action.low, action.high, strict=True)]
    center = [(high + low) / 2 for low, high in zip(action.low, action.high, strict=True)]
    # Plain motors: force = gear * control, no position or velocity feedback.
    motors = not model.actuator_biastype.any() and not model.actuator_gaintype.any()
    gear = [float(value) for value in model.actuator_gear[:, 0]]
    limited = all(bool(model.jnt_limited[index]) for index in joints)
    bounds = [
        (half_, center_, gear_) for half_, center_, gear_ in zip(half, center, gear, strict=True)
    ]
    return Deployment(
        joint_names=names,
        control_mode="torque" if motors else None,
        action_scale=tuple(half_ * gear_ for half_, _, gear_ in bounds) if motors else None,
        action_offset=tuple(center_ * gear_ for _, center_, gear_ in bounds) if motors else None,
        effort_limit=tuple((abs(c) + h) * g for h, c, g in bounds) if motors else None,
        position_limit_low=tuple(float(model.jnt_range[i, 0]) for i in joints) if limited else None,
        position_limit_high=tuple(float(model.jnt_range[i, 1]) for i in joints)
        if limited
        else None,
        sim_dt=float(model.opt.timestep),
        decimation=int(robot.frame_skip),
        history_length=1,
    )


def channels(env: gymnasium.Env[Any, Any], width: int) -> tuple[Channel, ...] | None:
    """Names and units of every observation channel, in order.

    Known where the environment publishes ``observation_structure`` (Gymnasium's v5 locomotion
    tasks) and the parts add up to the observation's width; None otherwise.
    """
    robot: Any = env.unwrapped
    structure = getattr(robot, "observation_structure", None)
    model: Any = getattr(robot, "model", None)
    if not isinstance(structure, dict) or type(model).__name__ != "MjModel":
        return None
    positions: list[tuple[str, str]] = []
    velocities: list[tuple[str, str]] = []
    for index in range(model.njnt):
        parts = _JOINT_PARTS.get(int(model.jnt_type[index]))
        if parts is None:  # ball joints: no robot of Gymnasium has one
            return None
        name = model.joint(index).name or f"joint{index}"
        for known, units, kind in ((positions, parts[0], "pos"), (velocities, parts[1], "vel")):
            known += [("_".join(filter(None, (name, part, kind))), unit) for part, unit in units]
    skipped = int(structure.get("skipped_qpos", 0))
    known = positions[skipped:] + velocities
    if structure.get("qpos", 0) + structure.get("qvel", 0) != len(known):
        return None
    for part, size in structure.items():
        if part not in ("skipped_qpos", "qpos", "qvel"):
            known += [(f"{part}[{index}]", "") for index in range(int(size))]
    if len(known) != width:
        return None
    return tuple(Channel(name=name, group="policy", unit=unit or None) for name, unit in known)
