"""What MuJoCo models made with Gymnasium tell of their robots: timing, joints and channels."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from supple.envs.base import ActionSpec, Box, Channel, Deployment

_FREE, _BALL, _SLIDE, _HINGE = range(4)
"""MuJoCo's joint types, ``mjtJoint``."""
_XYZ = ("x", "y", "z")
_QUATERNION = tuple((f"q{part}", "") for part in "wxyz")
_JOINT_PARTS = {
    # MuJoCo joint type: its position channels and its velocity channels, each with a unit.
    _FREE: (
        (*((axis, "m") for axis in _XYZ), *_QUATERNION),
        (*((f"v{axis}", "m/s") for axis in _XYZ), *((f"w{axis}", "rad/s") for axis in _XYZ)),
    ),
    _BALL: (_QUATERNION, tuple((f"w{axis}", "rad/s") for axis in _XYZ)),
    _SLIDE: ((("", "m"),), (("", "m/s"),)),
    _HINGE: ((("", "rad"),), (("", "rad/s"),)),
}
_DRIVES_A_JOINT = 0
"""``mjTRN_JOINT``."""
_MOST_SKIPPED = 3
"""Leading joint positions (where in the world) that an observation may leave out."""
_STEPS_COMPARED = 5


def control_dt(env: gymnasium.Env[Any, Any]) -> float | None:
    """Seconds between two actions [s], where the environment says so.

    MuJoCo tasks and Pendulum have ``dt``, CartPole has ``tau``, MyoSuite neither.
    """
    robot: Any = env.unwrapped
    for name in ("dt", "tau"):
        dt = getattr(robot, name, None)
        if isinstance(dt, float) and dt > 0:
            return float(dt)
    model, repeated = _model(robot), getattr(robot, "frame_skip", None)
    return None if model is None or not repeated else float(model.opt.timestep) * repeated


def deployment(env: gymnasium.Env[Any, Any], action: ActionSpec) -> Deployment | None:
    """Joints and actuators of a MuJoCo robot whose every actuator drives a joint of its own.

    None of another, and of one whose joints have no names.
    """
    robot: Any = env.unwrapped
    model = _model(robot)
    if model is None or not isinstance(action, Box) or model.nu != action.size:
        return None
    if (model.actuator_trntype != _DRIVES_A_JOINT).any():
        return None
    joints = model.actuator_trnid[:, 0]
    names = tuple(model.joint(int(joint)).name for joint in joints)
    if len(set(names)) < len(names) or not all(names):
        return None
    low, high = np.array(action.low), np.array(action.high)
    # Plain motors: torque = gear * gain * control, without dynamics or feedback.
    kinds = (model.actuator_biastype, model.actuator_gaintype, model.actuator_dyntype)
    motors = not any(kind.any() for kind in kinds)
    torque = model.actuator_gear[:, 0] * model.actuator_gainprm[:, 0]
    # Between an action and its joint: what Gymnasium itself wrote is known to put nothing there.
    ours = type(robot).__module__.startswith("gymnasium.") and motors
    straight = ours and not model.actuator_forcelimited.any()
    limited = bool(model.jnt_limited[joints].all())
    strongest = np.maximum(abs(low), abs(high)) * abs(torque)
    return Deployment(
        joint_names=names,
        control_mode="torque" if motors else None,
        default_position=_floats(model.qpos0[model.jnt_qposadr[joints]]),
        action_scale=_floats((high - low) / 2 * torque) if motors else None,
        action_offset=_floats((high + low) / 2 * torque) if motors else None,
        action_clip_low=False if straight else None,
        action_clip_high=False if straight else None,
        action_filter=False if straight else None,
        position_limit_low=_floats(model.jnt_range[joints, 0]) if limited else None,
        position_limit_high=_floats(model.jnt_range[joints, 1]) if limited else None,
        effort_limit=_floats(strongest) if motors and action.clip else None,
        sim_dt=float(model.opt.timestep),
        decimation=getattr(robot, "frame_skip", None),
        action_delay=0,
        observation_delay=0,
        history_length=1,
    )


def channels(env: gymnasium.Env[Any, Any]) -> tuple[Channel, ...] | None:
    """Names, units and joint ranges of a MuJoCo robot's observation, in order.

    Known where the observation is seen to start with the model's joint positions (but for the first
    few) and velocities; compared over some random steps, so that no name can be out of place. What
    follows is named by ``observation_structure`` (Gymnasium's v5 tasks), else by its index.

    Args:
        env: an environment nobody needs any more: it is reset and stepped.

    Returns:
        One channel per observation entry; None where the observation is laid out otherwise.
    """
    robot: Any = env.unwrapped
    model, space = _model(robot), env.observation_space
    if model is None or not isinstance(space, spaces.Box) or len(space.shape) != 1:
        return None
    skipped = _skipped_positions(env)
    if skipped is None:
        return None
    named = _joint_channels(model)[skipped:]
    left = space.shape[0] - len(named)
    structure = getattr(robot, "observation_structure", None) or {}
    parts = {k: int(v) for k, v in structure.items() if k not in ("skipped_qpos", "qpos", "qvel")}
    if sum(parts.values()) == left:
        rest = [f"{part}[{index}]" for part, size in parts.items() for index in range(size)]
    else:
        rest = [f"obs[{len(named) + index}]" for index in range(left)]
    return (*named, *(Channel(name=name, group="policy") for name in rest))


def _model(robot: Any) -> Any:
    model = getattr(robot, "model", None)
    return model if type(model).__name__ == "MjModel" else None


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


def _skipped_positions(env: gymnasium.Env[Any, Any]) -> int | None:
    """How many leading joint positions the observation leaves out, if it starts as expected."""
    robot: Any = env.unwrapped
    candidates = set(range(min(robot.model.nq, _MOST_SKIPPED + 1)))
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    for _ in range(_STEPS_COMPARED):
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        qpos, qvel = np.array(robot.data.qpos), np.array(robot.data.qvel)
        # Hopper and Walker2d clip their velocities to 10.
        for shown in (np.concatenate((qpos, speed)) for speed in (qvel, qvel.clip(-10, 10))):
            fits = {skip for skip in candidates if _starts_with(obs, shown[skip:])}
            if fits:
                break
        candidates = fits
        if terminated or truncated:
            break
    return candidates.pop() if len(candidates) == 1 else None


def _starts_with(obs: Any, expected: np.ndarray) -> bool:
    return bool(np.array_equal(obs[: len(expected)], expected))


def _joint_channels(model: Any) -> list[Channel]:
    """All joint positions, then all joint velocities, in the order of ``qpos`` and ``qvel``."""
    positions, velocities = [], []
    for index in range(model.njnt):
        where, speed = _JOINT_PARTS[int(model.jnt_type[index])]
        joint = model.joint(index).name or f"joint{index}"
        limited = bool(model.jnt_limited[index]) and len(where) == 1
        low, high = map(float, model.jnt_range[index]) if limited else (None, None)
        for part, unit in where:
            positions.append(_channel(joint, part, "pos", unit, low, high))
        for part, unit in speed:
            velocities.append(_channel(joint, part, "vel", unit))
    return positions + velocities


def _channel(
    joint: str, part: str, kind: str, unit: str, low: float | None = None, high: float | None = None
) -> Channel:
    name = "_".join(filter(None, (joint, part, kind)))
    return Channel(name=name, group="policy", unit=unit or None, low=low, high=high)
