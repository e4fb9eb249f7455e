"""What is told of a robot's joints, by its simulator or by hand, is what it should be."""

from __future__ import annotations

import math
from typing import Any

from supple.envs.base import Box, Deployment, EnvSpec
from supple.errors import InputError

PER_JOINT = (
    *("joint_names", "stiffness", "damping", "default_position", "action_scale", "action_offset"),
    *("action_clip_low", "action_clip_high"),
    *("position_limit_low", "position_limit_high", "velocity_limit", "effort_limit"),
)
"""Fields of ``Deployment`` with an entry for each joint."""
NAMES = ("joint_names", "robot_joint_names")
"""Fields of texts; all others in ``PER_JOINT`` are numbers."""
CLIP = ("action_clip_low", "action_clip_high")
"""Fields that may be false: there is none."""
ENDLESS = (*CLIP, *(name for name in PER_JOINT if "limit" in name))
"""Those that may be infinite: a simulator's word for none."""
COMMAND_UNITS = {"torque": "N·m", "position": "rad", "velocity": "rad/s", "delta": "rad"}
"""By control mode."""
HISTORY_ORDERS = ("newest_first", "oldest_first")


def check_joints(spec: EnvSpec) -> None:
    """Every field is of its kind, and every list of the same joints, as many as there are actions.

    Raises:
        InputError: names the first that is not.
    """
    robot = spec.deployment or Deployment()
    names = robot.joint_names
    for name in dict.fromkeys((*NAMES, *PER_JOINT)):
        _check_list(name, getattr(robot, name))
    size = spec.action.size if isinstance(spec.action, Box) else len(names or ())
    for name in PER_JOINT:
        values = getattr(robot, name)
        if values not in (None, False) and len(values) != size:
            raise InputError(
                f"EnvSpec.deployment.{name} has {len(values)} entries, expected {size}, one for"
                " each action: mend the environment's description"
            )
    for name in NAMES:
        listed = getattr(robot, name) or ()
        several = {each for each in listed if listed.count(each) > 1}
        if name == "robot_joint_names":
            several -= {""}  # a board's empty slots
        if twice := sorted(several):
            raise InputError(
                f"EnvSpec.deployment.{name} names {', '.join(map(repr, twice))} more than once,"
                " expected every joint once: mend the environment's description"
            )
    _check_single(robot)
    if (robot.action_scale is None) != (robot.action_offset is None):
        raise InputError(
            "EnvSpec.deployment gives one of action_scale and action_offset: expected both or"
            " neither, since commands are offset + scale * action"
        )
    _check_clip(robot)
    missing = set(names or ()) - set(robot.robot_joint_names or names or ())
    if missing:
        raise InputError(
            f"EnvSpec.deployment.robot_joint_names lacks {', '.join(sorted(missing))}, which the"
            " policy moves: mend the environment's description"
        )


def _check_list(name: str, values: Any) -> None:
    if values is None or (values is False and name in CLIP):
        return
    none = ", false where there is none" if name in CLIP else ""
    expected = f"a list{none}, or null where it is unknown"
    _require(isinstance(values, tuple | list), name, values, expected)
    for value in values:
        if name in NAMES:
            _require(isinstance(value, str), name, value, "joint names", "holds")
        elif name in ENDLESS:
            told = is_number(value) and not math.isnan(value)
            _require(told, name, value, "numbers, infinite ones where there is no limit", "holds")
        else:
            _require(is_number(value) and math.isfinite(value), name, value, "numbers", "holds")


def _check_clip(robot: Deployment) -> None:
    low, high = robot.action_clip_low, robot.action_clip_high
    if not low and not high:
        if low is not high:
            raise InputError(
                f"EnvSpec.deployment gives action_clip_low {low!r} and action_clip_high {high!r}:"
                " expected two lists, false twice or null twice"
            )
        return
    pairs = zip(low or (), high or (), strict=False)
    if not low or not high or any(one > other for one, other in pairs):
        raise InputError(
            "EnvSpec.deployment's action_clip_low is not below its action_clip_high: expected two"
            " lists, infinite where a joint's command is not clipped"
        )
    if robot.action_scale is None:
        raise InputError(
            "EnvSpec.deployment gives action_clip_low without action_scale: what is clipped is"
            " offset + scale * action"
        )


def _check_single(robot: Deployment) -> None:
    """Numbers and words of the whole robot."""
    for name, known in (("control_mode", COMMAND_UNITS), ("history_order", HISTORY_ORDERS)):
        value = getattr(robot, name)
        fine = value is None or (isinstance(value, str) and value in known)
        _require(fine, name, value, f"{', '.join(known)} or null")
    filtered = robot.action_filter
    fine = filtered is None or filtered is False
    _require(fine, "action_filter", filtered, "false, or null: filters cannot be exported")
    for name in ("sim_dt", "allowed_latency"):
        value = getattr(robot, name)
        fine = value is None or (is_number(value) and 0 < value < math.inf)
        _require(fine, name, value, "seconds above 0, or null")
    counts = {"decimation": 1, "action_delay": 0, "observation_delay": 0, "history_length": 1}
    for name, least in counts.items():
        value = getattr(robot, name)
        fine = value is None or (type(value) is int and value >= least)
        _require(fine, name, value, f"a whole number >= {least}, or null")


def is_number(value: Any) -> bool:
    """Whether JSON would call it one; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(fine: bool, name: str, value: Any, expected: str, verb: str = "is") -> None:
    if not fine:
        raise InputError(f"EnvSpec.deployment.{name} {verb} {value!r}, expected {expected}")
