"""What Isaac-Lab-like managers tell of a robot: action and observation terms, noise, commands.

Isaac Lab and mjlab share the shape of these objects, not their classes; everything is read by name
and left unknown where it is not found.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from supple.envs.base import Channel, LastAction

UNITS = {
    "base_lin_vel": "m/s",
    "base_ang_vel": "rad/s",
    "joint_pos": "rad",
    "joint_vel": "rad/s",
    "height_scan": "m",
}
"""SI units of terms that go by these names everywhere; scaled terms have none."""
LINEAR = {"rad": "m", "rad/s": "m/s"}
"""Of a joint that slides."""
MODES = {
    "RelativeJointPosition": "delta",
    "JointPosition": "position",
    "JointVelocity": "velocity",
    "JointEffort": "torque",
}
"""Beginnings of action classes' names, and what they command."""
SIMULATORS = ("isaaclab", "mjlab")
"""Packages whose own action classes do as they say here."""


def joint_action(env: Any) -> Any | None:
    """The action term, where there is exactly one and it drives named joints; else None."""
    manager = getattr(env, "action_manager", None)
    if manager is None or len(manager.active_terms) != 1:
        return None
    term = manager.get_term(manager.active_terms[0])
    return term if mode_of(term) and joint_names(term) else None


def mode_of(term: Any) -> str | None:
    """What a joint action commands; None for others.

    Inverse kinematics has joints, too, and terms that rescale to a joint's limits have a scale:
    neither is a command of them.
    """
    kind = type(term).__name__
    mode = next((mode for start, mode in MODES.items() if kind.startswith(start)), None)
    return None if "ToLimits" in kind else mode


def joint_names(term: Any) -> tuple[str, ...] | None:
    """Joints of an action term in the order of its actions."""
    names = getattr(term, "target_names", None) or getattr(term, "_joint_names", None)
    return tuple(names) if names else None


def action_facts(
    term: Any, bound: float, default_position: tuple[float, ...] | None
) -> dict[str, Any]:
    """Names, mode, scale, offset and clip of a joint action, as fields of ``Deployment``.

    Args:
        term: its scale is per unit of the simulator's action.
        bound: that action at the policy's 1.
        default_position: of its joints.
    """
    names, mode, config = joint_names(term), mode_of(term), getattr(term, "cfg", None)
    assert names is not None
    scale = per_joint(getattr(term, "_scale", None), len(names))
    scale = scale or configured(getattr(config, "scale", None), names, 1.0)
    offset = per_joint(getattr(term, "_offset", None), len(names))
    if offset is None and getattr(config, "use_default_offset", False):
        offset = default_position if mode == "position" else None
    elif offset is None:
        offset = configured(getattr(config, "offset", None), names, 0.0)
    known = scale is not None and offset is not None  # one without the other maps nothing
    clip: dict[str, Any] = {}
    if _is_theirs(term, "process_actions"):
        clip = _action_clip(config, names, known=known)
        clip["action_filter"] = False if _is_theirs(term, "apply_actions") else None
    return {
        "joint_names": names,
        "control_mode": mode,
        "action_scale": tuple(bound * each for each in scale) if scale and known else None,
        "action_offset": offset if known else None,
        **clip,
    }


def _is_theirs(term: Any, method: str) -> bool:
    """Whether a simulator wrote it, and not the task: then it is known what it does."""
    return _in_simulator(getattr(getattr(type(term), method, None), "__module__", ""))


def _in_simulator(module: str) -> bool:
    return module.partition(".")[0] in SIMULATORS


def _action_clip(config: Any, names: Sequence[str], *, known: bool) -> dict[str, Any]:
    """What both simulators clip commands to, behind scale and offset: [low, high] by patterns.

    Source: ``process_actions`` of isaaclab 3.0.0, envs/mdp/actions/joint_actions.py, and of mjlab
    1.6.0, envs/mdp/actions/actions.py.
    """
    found = getattr(config, "clip", math.nan)  # no field of theirs: nothing is known
    sides: tuple[Any, Any] = (None, None)
    if found is None:
        sides = (False, False)
    elif isinstance(found, Mapping) and known:
        each = [{pattern: pair[side] for pattern, pair in found.items()} for side in (0, 1)]
        ends = zip(each, (-math.inf, math.inf), strict=True)
        low, high = (configured(side, names, end) for side, end in ends)
        sides = (low, high)
    return {"action_clip_low": sides[0], "action_clip_high": sides[1]}


def per_joint(value: Any, size: int) -> tuple[float, ...] | None:
    """A number, or the row that all environments have, as one number per joint.

    None where rows differ: a randomisation drew them, and none of them is the robot's.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        if value.ndim > 1 and not torch.equal(value, value[:1].expand_as(value)):
            return None
        row = value[0] if value.ndim > 1 else value
        return tuple(row.expand(size).tolist())
    return (float(value),) * size


def rows(robot: Any, name: str, joints: Any) -> torch.Tensor | None:
    """What the robot's data say of these joints, (N, J) or more; Warp's arrays have a view."""
    value = getattr(robot.data, name, None)
    value = getattr(value, "torch", value)
    return value[:, joints] if isinstance(value, torch.Tensor) else None


def configured(
    value: Any, names: Sequence[str], default: float | None = None
) -> tuple[float, ...] | None:
    """A configuration's number, or its numbers by patterns of names, as one per name.

    None where a name has neither one nor a default.
    """
    if isinstance(value, int | float):
        return (float(value),) * len(names)
    if not isinstance(value, Mapping):
        return None
    found: list[Any] = [
        next((each for pattern, each in value.items() if re.fullmatch(pattern, name)), default)
        for name in names
    ]
    return None if None in found else tuple(map(float, found))


def sdk_joint_names(robot: Any) -> tuple[str, ...] | None:
    """The robot's joints as its SDK has them, which Unitree's configurations tell; others do not.

    The simulator's own order is no answer: it may be another, and would be taken for the robot's.
    """
    told = getattr(getattr(robot, "cfg", None), "joint_sdk_names", None)
    return tuple(told) if told else None


def commands(env: Any) -> dict[str, Any] | None:
    """Ranges of each command by its name; None in place of what is not known.

    They are those of the run's start, or those that a curriculum widens them to where the command
    has ``limit_ranges``, as Unitree's do.
    """
    manager = getattr(env, "command_manager", None)
    if manager is None:
        return None
    return {name: _ranges(manager.get_term(name)) for name in manager.active_terms}


def channels(
    env: Any,
    groups: Mapping[str, Sequence[str]],
    joints: Sequence[str],
    *,
    sliding: Collection[str] = (),
    action_bound: float = 1.0,
) -> list[Channel] | None:
    """One channel per observation entry, in order.

    Args:
        env: with an ``observation_manager``; without one the answer is None.
        groups: our name of each group to the simulator's of those that it joins.
        joints: the driven robot's joint names, in its order; entries of joint terms are named after
            those that they show, entries of actions after the action term's.
        sliding: those of them that are known to slide, not to turn.
        action_bound: what the policy's 1 means to the simulator.
    """
    manager = getattr(env, "observation_manager", None)
    if manager is None:
        return None
    driven = joint_action(env)
    acted = (joint_names(driven) if driven else None) or joints
    robot = asset_name(driven)
    found: list[Channel] = []
    for ours, theirs in ((ours, name) for ours, names in groups.items() for name in names):
        terms = zip(
            manager.active_terms[theirs],
            manager.group_obs_term_dim[theirs],
            manager._group_obs_term_cfgs[theirs],
            strict=True,
        )
        own: list[Channel] = []
        for name, shape, config in terms:
            named: Sequence[str] | None = None
            if name.startswith("joint"):
                named = _observed(config, joints, robot)
            elif name.startswith("action"):
                named = acted
            shown = action_bound if _shows_last_action(env, config) else None
            own += _term(ours, name, math.prod(shape), config, named, sliding, shown=shown)
        if _by_frames(manager, theirs):
            own.sort(key=lambda channel: -channel.history)
        found += own
    return found


def asset_name(term: Any) -> str | None:
    """What the scene calls the robot that an action term drives, in either simulator."""
    config = getattr(term, "cfg", None)
    return getattr(config, "asset_name", None) or getattr(config, "entity_name", None)


def _observed(config: Any, joints: Sequence[str], robot: str | None) -> Sequence[str] | None:
    """The joints that a term shows, in its order; None where they are not the driven robot's.

    What a term takes of the scene is in its parameters, resolved: ``joint_ids`` are places among
    the robot's joints, in the order the term shows them.
    """
    params = (getattr(config, "params", None) or {}).values()
    chosen = [value for value in params if hasattr(value, "joint_ids")]
    if not chosen:
        return joints
    places = chosen[0].joint_ids
    if len(chosen) > 1 or robot is None or chosen[0].name != robot:
        return None
    if isinstance(places, slice):
        return joints[places]
    places = [int(place) for place in places]
    return [joints[place] for place in places] if max(places, default=0) < len(joints) else None


def _by_frames(manager: Any, group: str) -> bool:
    """Whether a group holds a frame of all terms, then the next, and not a term after the other.

    Source: ``compute_group`` of isaaclab 3.0.0 and mjlab 1.6.0, managers/observation_manager.py:
    terms that keep their frames apart, (N, H, D), are joined along the last axis.
    """
    if getattr(manager, "_group_obs_time_major", {}).get(group):
        return True
    apart = [
        getattr(config, "history_length", 0) and not getattr(config, "flatten_history_dim", True)
        for config in manager._group_obs_term_cfgs[group]
    ]
    joined = getattr(manager, "_group_obs_concatenate", {}).get(group)
    axis = getattr(manager, "_group_obs_concatenate_dim", {}).get(group)
    # Counted from 0 with the environments' in front; one term alone is the same either way.
    return bool(joined and all(apart) and axis in (-1, 2))


def history_length(env: Any, groups: Iterable[str]) -> int | None:
    """Frames the policy sees at once, where all terms of its groups agree."""
    manager = getattr(env, "observation_manager", None)
    if manager is None:
        return None
    configs = chain.from_iterable(manager._group_obs_term_cfgs[group] for group in groups)
    lengths = {max(int(getattr(config, "history_length", 0) or 0), 1) for config in configs}
    return lengths.pop() if len(lengths) == 1 else None


def remembered(env: Any, groups: Iterable[str]) -> list[str]:
    """Terms of these groups, by the simulator's names, that come out of a buffer of frames.

    Of those that come late, too: Isaac Lab keeps frames for that, and reads only what was kept.
    """
    manager = getattr(env, "observation_manager", None)
    if manager is None:
        return []
    return [
        f"{group}/{name}"
        for group in groups
        for name, config in zip(
            manager.active_terms[group], manager._group_obs_term_cfgs[group], strict=True
        )
        if getattr(config, "history_length", 0) or getattr(config, "delay_max_lag", 0)
    ]


def _shows_last_action(env: Any, config: Any) -> bool:
    """Whether a term is what the policy did last, as the simulator was given it and at once.

    Source: ``last_action`` of isaaclab 3.0.0 and mjlab 1.6.0, envs/mdp/observations.py.
    """
    function = getattr(config, "func", None)
    module = getattr(function, "__module__", None) or ""
    if getattr(function, "__name__", "") != "last_action" or not _in_simulator(module):
        return False
    named = (getattr(config, "params", None) or {}).get("action_name")
    whole = named is None or [named] == list(env.action_manager.active_terms)
    return whole and not getattr(config, "delay_max_lag", 0)


def _term(
    ours: str,
    name: str,
    size: int,
    config: Any,
    named: Sequence[str] | None,
    sliding: Collection[str],
    *,
    shown: float | None,
) -> Iterator[Channel]:
    """Entries of one term, history oldest first within it, as both simulators lay it out.

    ``named`` are the joints of its entries, where they have them; ``shown`` is what it shows for
    the policy's 1, where it is the policy's last action.
    """
    frames = max(int(getattr(config, "history_length", 0) or 0), 1)
    width = size // frames
    # Both simulators take the noise out of a term where its group is not corrupted.
    spread, scales = _noise(config.noise), _scales(config.scale, width)
    plain = scales == [1.0] * width
    clip = config.clip
    # A modifier comes before clip and scale, which say less than the whole then.
    whole = not getattr(config, "modifiers", None)
    try:
        params = _plain(getattr(config, "params", None) or {})
    except TypeError:
        params = None
    if named is not None and len(named) != width:
        named = None
    unit = UNITS.get(name) if plain else None
    for frame in range(frames):
        for index in range(width):
            entry = named[index] if named else str(index)
            yield Channel(
                name=name if width == 1 else f"{name}[{entry}]",
                group=ours,
                unit=LINEAR.get(unit, unit) if unit and entry in sliding else unit,
                history=frames - 1 - frame,
                low=float(clip[0]) if clip and plain else None,
                high=float(clip[1]) if clip and plain else None,
                noise=None if spread is None or scales is None else spread * abs(scales[index]),
                term=name,
                scale=scales[index] if scales and whole else None,
                clip=((float(clip[0]), float(clip[1])) if clip else False) if whole else None,
                params=params,
                last_action=None
                if shown is None or not (scales and whole)
                else LastAction(index=index, factor=shown),
            )


def _scales(scale: Any, width: int) -> list[float] | None:
    """Of each entry, as the shortest decimal of its float32; None where it is not understood."""
    if scale is None:
        return [1.0] * width
    try:
        found = torch.as_tensor(scale).float().expand(width).tolist()
    except (RuntimeError, TypeError, ValueError):
        return None
    return [float(str(np.float32(each))) for each in found]


def _ranges(term: Any) -> Any:
    """Of one command's entries."""
    config = getattr(term, "cfg", None)
    found = getattr(config, "limit_ranges", None) or getattr(config, "ranges", None)
    try:
        return None if found is None else _plain(found)
    except TypeError:
        return None


def _plain(value: Any) -> Any:
    """A configuration's value in those that JSON has; of a part of the scene what it chooses.

    Raises:
        TypeError: it holds others.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        if any(isinstance(each, slice) for each in value.values()):  # None and : choose nothing
            value = {key: each for key, each in value.items() if each not in (None, slice(None))}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    raise TypeError(f"{type(value).__name__} is no plain value")


def _noise(config: Any) -> float | None:
    """Standard deviation of declared additive noise; None for other kinds."""
    if config is None or getattr(config, "operation", "add") != "add":
        return None
    low, high = getattr(config, "n_min", None), getattr(config, "n_max", None)
    if isinstance(low, float | int) and isinstance(high, float | int):
        return float(high - low) / math.sqrt(12)
    deviation = getattr(config, "std", None)
    return float(deviation) if isinstance(deviation, float | int) else None
