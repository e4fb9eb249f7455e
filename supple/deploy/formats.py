"""Other stacks' files, on request: mjlab's ONNX properties and Unitree's ``deploy.yaml``.

Their keys, with full precision and without tags that a safe YAML reader refuses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from supple.deploy.terms import Term, clips_actions, layouts, terms_of
from supple.errors import InputError, how_to_install

FORMATS = ("mjlab", "unitree")
UNITREE_ACTIONS = {"position": "JointPositionAction", "velocity": "JointVelocityAction"}
"""What its runtime has registered, by control mode."""
SHOWN = 3
"""Names of terms in a refusal."""


def mjlab_properties(contract: Mapping[str, Any]) -> dict[str, str]:
    """ONNX properties under mjlab's keys: comma-separated, in the policy's joint order.

    Entries that are lists themselves are joined by semicolons.

    Raises:
        InputError: a value that the keys need is unknown, or they cannot say it.

    Source: mujocolab/mjlab 1.6.0, ``rl/exporter_utils.py``.
    """
    robot, terms = _robot(contract, "mjlab"), _terms(contract, "mjlab")
    mode, rest = robot["control_mode"], robot["default_position"]
    if mode not in (None, "position") or rest not in (None, robot["action_offset"]):
        raise InputError(
            "--also mjlab: its keys say that a command is the default joint position + action_scale"
            f" * action; here the control mode is {mode}, the offset {robot['action_offset']}: drop"
            " the flag"
        )
    _require({**robot, **_untold(terms), "commands": contract["commands"]["names"]}, "mjlab")
    _require_layout("term_major" in layouts(contract, terms), "mjlab")
    if clips_actions(contract):
        raise InputError(
            "--also mjlab: its keys do not say that actions are clipped to [-1, 1], as here: drop"
            " the flag"
        )
    if robot["action_clip_low"]:
        raise InputError(
            "--also mjlab: its keys do not say what commands are clipped to, here"
            f" {robot['action_clip_low']} to {robot['action_clip_high']}: drop the flag"
        )
    lists = {
        "joint_names": robot["joint_names"],
        "joint_stiffness": robot["stiffness"],
        "joint_damping": robot["damping"],
        "default_joint_pos": rest,
        "command_names": contract["commands"]["names"],
        "observation_names": [term.name for term in terms],
        "observation_terms_scale": [_one_or_all(term.scale or []) for term in terms],
        "observation_terms_flatten_history_dim": [1 for _ in terms],
        "observation_terms_history_length": [t.frames if t.frames > 1 else 0 for t in terms],
        "observation_terms_clip": [term.clip or [-inf, inf] for term in terms],
        "action_scale": robot["action_scale"],
    }
    texts = {key: ",".join(_text(item) for item in values) for key, values in lists.items()}
    return {"run_path": str(contract["origin"]["run"]), **texts}


def unitree_yaml(contract: Mapping[str, Any]) -> str:
    """The content of ``deploy.yaml``.

    Raises:
        InputError: a value that it needs is unknown or one that it cannot say, or PyYAML is not
            installed.

    Source: unitreerobotics/unitree_rl_lab, ``utils/export_deploy_cfg.py``.
    """
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"deploy.yaml needs PyYAML: {how_to_install('export')}") from error
    robot, terms = _robot(contract, "unitree"), _terms(contract, "unitree")
    mode, ranges = robot["control_mode"], contract["commands"]["ranges"]
    if mode not in (None, *UNITREE_ACTIONS):
        raise InputError(
            f"--also unitree: its runtime takes {' or '.join(UNITREE_ACTIONS)} commands, here the"
            f" control mode is {mode}: drop the flag"
        )
    needed = {
        **robot,
        "robot_joint_names": contract["joints"]["policy_to_robot"],
        "control_dt": contract["timing"]["control_dt"],
        **_untold(terms, "params"),
        "commands": ranges,
        **{f"the ranges of the command {name}": found for name, found in (ranges or {}).items()},
    }
    _require(needed, "unitree")
    lie = layouts(contract, terms)
    _require_layout(bool(lie), "unitree")
    low, high = contract["safety"]["command_low"], contract["safety"]["command_high"]
    low, high = (side or [None] * len(robot["joint_names"]) for side in (low, high))
    bounds = [
        [-inf if one is None else one, inf if other is None else other]
        for one, other in zip(low, high, strict=True)
    ]
    action = {
        "clip": None if bounds == [[-inf, inf]] * len(bounds) else bounds,
        "joint_names": robot["joint_names"],
        "scale": robot["action_scale"],
        "offset": robot["action_offset"],
        "joint_ids": None,
    }
    observations: dict[str, Any] = {
        term.name: {
            "params": term.params,
            "clip": term.clip or None,
            "scale": term.scale,
            "history_length": term.frames,
        }
        for term in terms
    }
    if "term_major" not in lie:
        # All terms of a frame, then the next frame. Not the first entry: by that one the runtime
        # tells terms from groups of terms.
        observations["use_gym_history"] = True
    to_robot = contract["joints"]["policy_to_robot"]
    on_robot = len(contract["joints"]["robot_names"])
    record = {
        "joint_ids_map": to_robot,
        "step_dt": contract["timing"]["control_dt"],
        # These two in the robot's order, 0 for joints that the policy does not move; all else in
        # the policy's order.
        "stiffness": _spread(robot["stiffness"], to_robot, on_robot),
        "damping": _spread(robot["damping"], to_robot, on_robot),
        "default_joint_pos": robot["default_position"],
        "commands": {name: {"ranges": found} for name, found in ranges.items()},
        "actions": {UNITREE_ACTIONS[mode]: action},
        "observations": observations,
    }
    text: str = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    return text


def _robot(contract: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What both formats say of joints, by the names of ``Deployment``'s fields."""
    joints, gains = contract["joints"], contract["gains"]
    if contract["action"]["kind"] != "continuous":
        raise InputError(f"--also {name}: it drives joints, this policy chooses: drop the flag")
    steps = {step["step"]: step for step in contract["action"]["pipeline"]}
    return {
        "joint_names": joints["policy_names"],
        "control_mode": gains["control_mode"],
        "stiffness": gains["stiffness"],
        "damping": gains["damping"],
        "default_position": joints["default_position"],
        "action_scale": steps["scale"]["values"],
        "action_offset": steps["offset"]["values"],
        "action_clip_low": steps["joint_clip"]["low"],
        "action_clip_high": steps["joint_clip"]["high"],
        "action_filter": steps["low_pass"]["values"],
    }


def _terms(contract: Mapping[str, Any], name: str) -> list[Term]:
    """Terms by what these runtimes feed: of the policy's own action, what the network gave last.

    Raises:
        InputError: the policy wants an older one.
    """
    return [_as_network_gives(term, name) for term in terms_of(contract)]


def _as_network_gives(term: Term, name: str) -> Term:
    if term.last_action is None:
        return term
    factor, steps = term.last_action["factor"], term.last_action["steps"]
    if steps != 1:
        raise InputError(
            f"--also {name}: its runtimes feed the action of the step before, {term.name} is of"
            f" {steps} steps before: drop the flag"
        )
    ends = term.clip if isinstance(term.clip, list) else (-inf, inf)
    low, high = (end / factor for end in ends)
    if term.last_action["bounded"]:
        low, high = max(low, -1.0), min(high, 1.0)
    return dataclasses.replace(
        term,
        scale=[factor * each for each in term.scale or ()],
        clip=False if (low, high) == (-inf, inf) else [low, high],
    )


def _untold(terms: Sequence[Term], *further: str) -> dict[str, None]:
    """What terms lack of scale, clip and further fields; none of it can be guessed."""
    found: dict[str, None] = {}
    for field in ("scale", "clip", *further):
        lacking = [term.name for term in terms if getattr(term, field) is None]
        if lacking:
            more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
            found[f"{field} of {', '.join(lacking[:SHOWN])}{more}"] = None
    return found


def _require(needed: Mapping[str, Any], name: str) -> None:
    """Refuse a format where something that it says is unknown."""
    missing = [what for what, value in needed.items() if value is None]
    if missing:
        raise InputError(
            f"--also {name} needs {'; '.join(missing)}, which the run does not know: say it in the"
            " environment's EnvSpec.deployment and EnvSpec.channels or in the run's spec.json, or"
            " drop the flag"
        )


def _require_layout(fits: bool, name: str) -> None:
    if not fits:
        raise InputError(
            f"--also {name}: its terms lie one after another and their histories begin with the"
            " oldest frame, this policy's do not: drop the flag"
        )


def _spread(values: Sequence[float], places: Sequence[int], size: int) -> list[float]:
    found = [0.0] * size
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found


def _one_or_all(values: Sequence[float]) -> Any:
    return values[0] if len(set(values)) == 1 else list(values)


def _text(item: Any) -> str:
    if isinstance(item, list):
        return ";".join(_text(each) for each in item)
    return repr(item) if isinstance(item, float) else str(item)
