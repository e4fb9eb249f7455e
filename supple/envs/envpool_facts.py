"""What envpool's simulators tell of their robots; for Unitree's Go1, joints and channels too.

A pool's configuration gives time limits, timing and gains. Names of joints and channels are not in
it: those of the Go1 are MuJoCo Playground's, from its model and its joystick task.
Source: google-deepmind/mujoco_playground, locomotion/go1 (joystick.py and the ``home`` keyframe).
"""

from __future__ import annotations

import math
from typing import Any

from gymnasium import spaces

from supple.envs.base import Channel, Deployment

_XYZ = ("x", "y", "z")
_GO1_JOINTS = tuple(
    f"{leg}_{part}_joint" for leg in ("FR", "FL", "RR", "RL") for part in ("hip", "thigh", "calf")
)
_GO1_POSE = (0.1, 0.9, -1.8, -0.1, 0.9, -1.8) * 2
_GO1_RANGES = {"hip": (-0.863, 0.863), "thigh": (-0.686, 4.501), "calf": (-2.818, -0.888)}
_GO1_EFFORT = (23.7, 23.7, 35.55) * 4
_GO1_JOYSTICK = "Go1Joystick"


def facts(config: Any, space: spaces.Space[Any]) -> dict[str, Any]:
    """Fields of the spec.

    Args:
        config: of the pool.
        space: of one observation; ``policy`` and ``critic`` where it has privileged state.
    """
    grouped = isinstance(space, spaces.Dict) and "critic" in space.spaces
    go1 = str(getattr(config, "task_name", "")).startswith(_GO1_JOYSTICK)
    return {
        "max_episode_steps": config.max_episode_steps,
        "control_dt": getattr(config, "ctrl_dt", None),
        # In each of MuJoCo Playground's ports privileged_state begins with state.
        "critic_contains_policy": grouped,
        "deployment": _go1_deployment(config) if go1 else _timing(config),
        "channels": _go1_channels(config) if go1 else None,
    }


def _timing(config: Any) -> Deployment | None:
    dt, sim_dt = getattr(config, "ctrl_dt", None), getattr(config, "sim_dt", None)
    if not (dt and sim_dt):
        return None
    return Deployment(sim_dt=sim_dt, decimation=round(dt / sim_dt))


def _go1_deployment(config: Any) -> Deployment:
    ranges = [_GO1_RANGES[joint.split("_")[1]] for joint in _GO1_JOINTS]
    return Deployment(
        joint_names=_GO1_JOINTS,
        control_mode="position",
        stiffness=(config.kp,) * len(_GO1_JOINTS),
        damping=(config.kd,) * len(_GO1_JOINTS),
        default_position=_GO1_POSE,
        action_scale=(config.action_scale,) * len(_GO1_JOINTS),
        action_offset=_GO1_POSE,
        position_limit_low=tuple(low for low, _ in ranges),
        position_limit_high=tuple(high for _, high in ranges),
        effort_limit=_GO1_EFFORT,
        sim_dt=config.sim_dt,
        decimation=round(config.ctrl_dt / config.sim_dt),
        history_length=1,
    )


def _go1_channels(config: Any) -> tuple[Channel, ...]:
    """Of the policy group. Noise is uniform: its width over the square root of 3 is its deviation.

    ``noise_level`` scales all of them.
    """

    def some(names: Any, unit: str | None, width: float = 0.0) -> list[Channel]:
        noise = config.noise_level * width / math.sqrt(3) or None
        return [Channel(name=name, group="policy", unit=unit, noise=noise) for name in names]

    joints = [joint.removesuffix("_joint") for joint in _GO1_JOINTS]
    return (
        *some((f"base_v{axis}" for axis in _XYZ), "m/s", config.noise_linvel),
        *some((f"base_w{axis}" for axis in _XYZ), "rad/s", config.noise_gyro),
        *some((f"gravity_{axis}" for axis in _XYZ), None, config.noise_gravity),
        *some((f"{joint}_pos_from_default" for joint in joints), "rad", config.noise_joint_pos),
        *some((f"{joint}_vel" for joint in joints), "rad/s", config.noise_joint_vel),
        # The observation is taken before the action of its own step is stored.
        *some((f"{joint}_action_before_last" for joint in joints), None),
        *some(("command_vx", "command_vy"), "m/s"),
        *some(("command_wz",), "rad/s"),
    )
