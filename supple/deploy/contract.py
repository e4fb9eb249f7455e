"""What a policy must carry to the robot: the manifest's contract, group by group.

Values come from the run's ``spec.json`` and the policy. ``None`` is unknown and is listed by
``unknown``; ``False`` is known to be absent. Per-joint lists follow ``joints.policy_names``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from supple.deploy.joints import COMMAND_UNITS
from supple.deploy.onnx_file import FINITE, OPSET
from supple.deploy.plain import PlainPolicy, command_clip, command_map
from supple.deploy.terms import check_terms
from supple.envs.base import Channel, Deployment, Discrete, EnvSpec

UNKNOWN_IN = ("identity", "contract", "evidence")
"""Parts of a manifest whose unknown values are listed."""
STALE_PERIODS = 3
"""Control periods without a state after which the runner damps."""
STALE_DEFAULT_S = 0.1
"""The same where the control period is unknown [s]."""
DAMPING_SPEED = 10.0
"""Where no damping gain is known, damping takes a joint's whole effort at this speed [rad/s]."""
NO_LIMIT = 1e8
"""Efforts from here on are a simulator's word for none, as Isaac Lab's 1e9 and infinity [N·m]."""
SINGLE = "single frame"
REPEATED = "the first frame repeats"
NON_FINITE_RULE = (
    "an observation, memory or result that is not finite gives the safe action; the memory stays"
    " as it was, or becomes empty where it was not finite itself"
)


def contract(
    policy: PlainPolicy, spec: EnvSpec, *, groups: Sequence[str], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Every field group, as plain JSON values.

    Args:
        policy: what the bundle's graphs compute.
        spec: the environment's facts.
        groups: observation groups that enter the policy, in order.
        origin: task, agent, run and training steps.
    """
    robot = _told(spec.deployment or Deployment())
    check_terms(spec)
    record = {
        "origin": dict(origin),
        "timing": {
            "control_dt": spec.control_dt,
            "sim_dt": robot.sim_dt,
            "decimation": robot.decimation,
            "allowed_latency": robot.allowed_latency,
            "action_delay": robot.action_delay,
            "observation_delay": robot.observation_delay,
            "delay_unit": "control steps",
        },
        "joints": _joints(robot),
        "gains": {
            "control_mode": robot.control_mode,
            "stiffness": robot.stiffness,
            "damping": robot.damping,
            "stand": {"stiffness": None, "damping": None},
        },
        "action": _action(policy, spec, robot),
        "observation": _observation(spec, groups),
        "history": _history(robot, _channels(spec, groups), spec.added.get("history")),
        "commands": {
            "names": None if robot.commands is None else list(robot.commands),
            "ranges": robot.commands,
            "scale": None,
            "dead_zone": None,
            "heading": None,
            "phase": None,
        },
        "normaliser": _normaliser(policy),
        "state": _state(policy),
        "graph": _graph(policy),
        "safety": _safety(policy, spec, robot),
    }
    plain: dict[str, Any] = _plain(record)
    return plain


def unknown(record: Mapping[str, Any]) -> list[str]:
    """Paths of every unknown value; ``[*]`` where it is unknown in a whole list."""
    found = list(_unknown(record, ""))
    return list(dict.fromkeys(found))


def action_names(spec: EnvSpec) -> list[str]:
    """One name per action: its joint's where joints are known."""
    if isinstance(spec.action, Discrete):
        return ["choice"]
    if spec.deployment and spec.deployment.joint_names:
        return list(spec.deployment.joint_names)
    return [f"action[{index}]" for index in range(spec.action.size)]


def observation_names(spec: EnvSpec, groups: Sequence[str]) -> list[str]:
    """One name per observation channel; older frames of a history carry ``@`` and their age."""
    channels = _channels(spec, groups)
    if channels is not None:
        return [f"{c.name}@{c.history}" if c.history else c.name for c in channels]
    return [f"{group}[{i}]" for group in groups for i in range(spec.observation[group])]


def observation_terms(spec: EnvSpec, groups: Sequence[str]) -> list[dict[str, Any]] | None:
    """The contract's terms, as an environment describes them itself; None where it does not."""
    if _channels(spec, groups) is None:
        return None
    found: list[dict[str, Any]] = _plain(_observation(spec, groups)["terms"])
    return found


def _channels(spec: EnvSpec, groups: Sequence[str]) -> list[Channel] | None:
    """The channels that enter the policy, if all of them are described."""
    if spec.channels is None:
        return None
    found = [c for group in groups for c in spec.channels if c.group == group]
    return found if len(found) == sum(spec.observation[group] for group in groups) else None


def _told(robot: Deployment) -> Deployment:
    """Without the numbers by which simulators say that they have none."""
    gains = (*(robot.stiffness or ()), *(robot.damping or ()))
    if not any(gains):
        robot = dataclasses.replace(robot, stiffness=None, damping=None)
    if robot.effort_limit and min(robot.effort_limit) >= NO_LIMIT:
        robot = dataclasses.replace(robot, effort_limit=None)
    return robot


def _efforts(robot: Deployment) -> list[float | None] | None:
    """Each joint's limit, None where it has none."""
    if robot.effort_limit is None:
        return None
    return [limit if limit < NO_LIMIT else None for limit in robot.effort_limit]


def _joints(robot: Deployment) -> dict[str, Any]:
    policy, sdk = robot.joint_names, robot.robot_joint_names
    to_robot = to_policy = None
    if policy and sdk:
        to_robot = [sdk.index(name) if name in sdk else None for name in policy]
        to_policy = [policy.index(name) if name in policy else None for name in sdk]
    return {
        "policy_names": policy,
        "robot_names": sdk,
        "policy_to_robot": to_robot,
        "robot_to_policy": to_policy,
        "held": None,
        "default_position": robot.default_position,
        "position_limit": {
            "hard": {"low": robot.position_limit_low, "high": robot.position_limit_high},
            "soft": {"low": None, "high": None},
        },
        "velocity_limit": robot.velocity_limit,
        "effort_limit": _efforts(robot),
        "armature": None,
    }


def _action(policy: PlainPolicy, spec: EnvSpec, robot: Deployment) -> dict[str, Any]:
    if isinstance(spec.action, Discrete):
        found = {
            "kind": "discrete",
            "names": ["choice"],
            "choices": policy.choices,
            "pipeline": [{"step": "argmax"}],
            "deterministic": "mode",
            "safe_action": 0,
            "command": "the score of each choice",
        }
        # What the simulator's own step calls the first; here, as in most, they count from 0.
        return found | ({"start": spec.action.start} if spec.action.start else {})
    scale, offset = command_map(spec)
    size = spec.action.size
    bounds = ([-1.0] * size, [1.0] * size) if policy.clip else (False, False)
    return {
        "kind": "continuous",
        "names": action_names(spec),
        "pipeline": [
            {"step": "squash", "function": "tanh" if policy.squash else False},
            {"step": "clip", "low": bounds[0], "high": bounds[1]},
            {"step": "scale", "values": scale},
            {"step": "offset", "values": offset},
            {"step": "joint_clip", "low": robot.action_clip_low, "high": robot.action_clip_high},
            {"step": "rate_limit", "values": robot.action_filter},
            {"step": "low_pass", "values": robot.action_filter},
        ],
        "command_unit": COMMAND_UNITS.get(robot.control_mode or ""),
        "zero_action_command": np.clip(offset, *_command_clip(spec)).tolist(),
        "trained_with": _added(spec, "action_scale", "action_offset"),
        "deterministic": "tanh(mean)" if policy.squash else "mean",
        "safe_action": [0.0] * size,
        "simulator": {"low": spec.action.low, "high": spec.action.high, "clip": spec.action.clip},
    }


def _observation(spec: EnvSpec, groups: Sequence[str]) -> dict[str, Any]:
    names, channels = observation_names(spec, groups), _channels(spec, groups)
    owners = [group for group in groups for _ in range(spec.observation[group])]
    terms = []
    for index, (name, group) in enumerate(zip(names, owners, strict=True)):
        known = channels[index] if channels else Channel(name=name, group=group)
        terms.append(
            {
                "name": name,
                "group": group,
                "width": 1,
                "unit": known.unit,
                "history": known.history if channels else None,
                "low": known.low,
                "high": known.high,
                "noise_std": known.noise,
                "frame": None,
                "source": {"term": known.term or known.name, "params": known.params}
                if known.term or known.params
                else None,
                "scale": known.scale,
                "offset": None,
                "clip": known.clip,
                "clip_before_scale": None if None in (known.scale, known.clip) else True,
            }
        )
    return {
        "groups": list(groups),
        "quaternion_order": None,
        "last_action": _last_action(channels or ()) or None,
        "trained_with": _added(spec, "obs_noise", "declared_noise", "obs_bias"),
        "terms": terms,
    }


def _last_action(channels: Sequence[Channel]) -> list[dict[str, Any]]:
    """Which observations are which of the policy's own actions, and how they are shown."""
    return [
        {"observation": place, "action": one.index, "factor": one.factor, "steps": one.steps}
        for place, one in enumerate(channel.last_action for channel in channels)
        if one is not None
    ]


def _added(spec: EnvSpec, *names: str) -> dict[str, float]:
    """What ``--env.*`` flags put on: at most so much in an episode, or a deviation."""
    return {name: spec.added.get(name, 0.0) for name in names}


def _direction(channels: Sequence[Channel]) -> str | None:
    """Whether a channel's newer frames come first; None where channels differ."""
    frames: dict[str, list[int]] = {}
    for channel in channels:
        frames.setdefault(channel.name, []).append(channel.history)
    steps = {one < other for ages in frames.values() for one, other in itertools.pairwise(ages)}
    if len(steps) != 1:
        return None
    return "newest_first" if steps.pop() else "oldest_first"


def _history(
    robot: Deployment, channels: Sequence[Channel] | None, added: float | None
) -> dict[str, Any]:
    """``added`` frames are those of ``--env.history``, whose rules are known."""
    length = robot.history_length
    if channels is not None:
        length = max(length or 1, 1 + max(c.history for c in channels))
    if length == 1:
        return {"length": 1, "layout": SINGLE, "direction": SINGLE, "fill": SINGLE}
    layout, direction = None, robot.history_order
    if channels is not None:
        by_age = itertools.groupby(channels, key=lambda channel: channel.history)
        frames = [[channel.name for channel in frame] for _, frame in by_age]
        if len(frames) > 1:
            # Terms may have histories of different lengths: as many blocks as frames prove nothing.
            whole = len(frames) == length and all(frame == frames[0] for frame in frames)
            layout = "time_major" if whole else "term_major"
            direction = _direction(channels)
    fill = REPEATED if length is not None and length == added else None
    return {"length": length, "layout": layout, "direction": direction, "fill": fill}


def _normaliser(policy: PlainPolicy) -> dict[str, Any]:
    found = policy.normaliser
    if found is None:
        return {"enabled": False}
    return {
        "enabled": True,
        "rule": "(x - mean) / denominator",
        "mean": found.mean.tolist(),
        "std": found.std,
        "epsilon": found.epsilon,
        "denominator_rule": "sqrt(std^2 + epsilon)" if found.inside else "std + epsilon",
        "denominator": found.denominator.tolist(),
        "clip": False,
        "count": found.count,
    }


def _state(policy: PlainPolicy) -> dict[str, Any]:
    recurrent = [
        {
            "name": "memory",
            "input": "memory_in",
            "output": "memory_out",
            "shape": [1, policy.memory_width],
            "dtype": "float32",
            "initial": 0.0,
            "reset": "initial value at the start of every episode",
        }
    ]
    return {"recurrent": recurrent if policy.memory_width else [], "filters": []}


def _graph(policy: PlainPolicy) -> dict[str, Any]:
    inputs = [{"name": "observation", "shape": [1, policy.inputs], "dtype": "float32"}]
    memory = {"shape": [1, policy.memory_width], "dtype": "float32"}
    if policy.choices:
        outputs = [
            {"name": "action", "shape": [1], "dtype": "int64"},
            {"name": "scores", "shape": [1, policy.choices], "dtype": "float32"},
        ]
    else:
        outputs = [
            {"name": name, "shape": [1, policy.actions], "dtype": "float32"}
            for name in ("action", "command")
        ]
    if policy.memory_width:
        inputs.append({"name": "memory_in", **memory})
        outputs.append({"name": "memory_out", **memory})
    outputs.append({"name": FINITE, "shape": [1, 1], "dtype": "bool"})
    return {
        "inputs": inputs,
        "outputs": outputs,
        "batch": 1,
        "opset": OPSET,
        "single_file": True,
        "providers_tested": None,
    }


def _safety(policy: PlainPolicy, spec: EnvSpec, robot: Deployment) -> dict[str, Any]:
    dt = spec.control_dt
    record: dict[str, Any] = {
        "non_finite_rule": NON_FINITE_RULE,
        "stale_after": STALE_PERIODS * dt if dt else STALE_DEFAULT_S,
        "tilt_limit": None,
        "damping": _damping(robot),
    }
    if policy.choices:
        return record | {"command_low": False, "command_high": False}
    scale, offset = (np.array(values) for values in command_map(spec))
    reach = abs(scale) if policy.clip or policy.squash else np.full(len(scale), np.inf)
    clip, limits = _command_clip(spec), _command_limits(robot, len(scale))
    low, high = ((offset + side).clip(*clip).clip(*limits) for side in (-reach, reach))
    return record | {
        "command_low": _bounds(low),
        "command_high": _bounds(high),
        "safe_command": offset.clip(*clip).tolist(),
    }


def _command_clip(spec: EnvSpec) -> tuple[Any, Any]:
    """What the simulator clips commands to; infinite where it does not."""
    return command_clip(spec) or (-np.inf, np.inf)


def _command_limits(robot: Deployment, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The robot's own limits of what is commanded, (A,) each; infinite where none is known."""
    most = {"velocity": robot.velocity_limit, "torque": robot.effort_limit}
    pair: tuple[Any, Any] = (robot.position_limit_low, robot.position_limit_high)
    if robot.control_mode != "position":
        limit = most.get(robot.control_mode or "")
        pair = (limit and [-value for value in limit], limit)
    if None in pair:
        return np.full(size, -np.inf), np.full(size, np.inf)
    low, high = (np.array(values, float) for values in pair)
    none = low >= high  # one of simulators' words for it, as are numbers beyond all others
    return (
        np.where(none | (low <= -NO_LIMIT), -np.inf, low),
        np.where(none | (high >= NO_LIMIT), np.inf, high),
    )


def _bounds(values: np.ndarray) -> list[float | None] | bool:
    """None for a joint without a bound, False where no joint has one."""
    found = [value if math.isfinite(value) else None for value in values.tolist()]
    return found if any(value is not None for value in found) else False


def _damping(robot: Deployment) -> dict[str, Any]:
    """Gains of the mode that only brakes; a gain of 0 would not."""
    if robot.damping is not None and min(robot.damping) > 0:
        return {"gains": robot.damping, "source": "gains.damping"}
    if robot.effort_limit and max(robot.effort_limit) < NO_LIMIT:
        gains = [limit / DAMPING_SPEED for limit in robot.effort_limit]
        return {"gains": gains, "source": f"effort limit at {DAMPING_SPEED} rad/s"}
    return {"gains": None, "source": None}


def _plain(value: Any) -> Any:
    """Lists for tuples, and text for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _unknown(value: Any, where: str) -> Iterator[str]:
    if value is None:
        yield where
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unknown(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        each = [list(_unknown(item, "")) for item in value]
        for path in dict.fromkeys(path for paths in each for path in paths):
            whole = all(path in paths for paths in each)
            indices = ["*"] if whole else [str(i) for i, p in enumerate(each) if path in p]
            yield from (f"{where}[{i}].{path}" if path else f"{where}[{i}]" for i in indices)
