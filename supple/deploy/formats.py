"""Other stacks' files, on request: mjlab's ONNX properties and Unitree's ``deploy.yaml``.

Their keys, with full precision and without tags that a safe YAML reader refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supple.errors import InputError

FORMATS = ("mjlab", "unitree")


def mjlab_properties(contract: Mapping[str, Any]) -> dict[str, str]:
    """ONNX properties under mjlab's keys: comma-separated, in the policy's joint order.

    Raises:
        InputError: a value that the keys need is unknown.

    Source: mujocolab/mjlab, ``rl/exporter_utils.py``.
    """
    robot = _robot(contract, "mjlab")
    mode = contract["gains"]["control_mode"]
    if mode != "position" or robot["offset"] != robot["default_position"]:
        raise InputError(
            "--also mjlab: its keys say that a command is the default joint position + action_scale"
            f" * action; here the control mode is {mode}, the offset {robot['offset']}: drop the"
            " flag"
        )
    lists = {
        "joint_names": robot["names"],
        "joint_stiffness": robot["stiffness"],
        "joint_damping": robot["damping"],
        "default_joint_pos": robot["default_position"],
        "command_names": contract["commands"]["names"] or [],
        "observation_names": [term["name"] for term in contract["observation"]["terms"]],
        "action_scale": robot["scale"],
    }
    texts = {key: ",".join(_text(item) for item in values) for key, values in lists.items()}
    return {"run_path": str(contract["origin"]["run"]), **texts}


def unitree_yaml(contract: Mapping[str, Any]) -> str:
    """The content of ``deploy.yaml``.

    Raises:
        InputError: a value that it needs is unknown, or PyYAML is not installed.

    Source: unitreerobotics/unitree_rl_lab, ``utils/export_deploy_cfg.py``.
    """
    try:
        import yaml
    except ImportError as error:
        raise InputError('deploy.yaml needs PyYAML: pip install "supple[export]"') from error
    robot = _robot(contract, "unitree")
    if contract["timing"]["control_dt"] is None:
        raise InputError("--also unitree needs timing.control_dt, which the run does not know")
    history = contract["history"]
    if history["length"] != 1 and history["direction"] != "oldest_first":
        raise InputError(
            "--also unitree: deploy.yaml's histories begin with the oldest frame, this policy's do"
            " not: drop the flag"
        )
    to_robot = contract["joints"]["policy_to_robot"] or list(range(len(robot["names"])))
    on_robot = len(contract["joints"]["robot_names"] or robot["names"])
    # What a term does not say of its age is as old as the whole history.
    frames: dict[tuple[str, str], int] = {}
    for term in contract["observation"]["terms"]:
        own = (term["group"], term["name"].partition("@")[0])
        age = term["history"]
        frames[own] = max(frames.get(own, 1), history["length"] if age is None else age + 1)
    # Unitree's switch for frames side by side; without it each term has its history.
    terms: dict[str, Any] = {"use_gym_history": True} if history["layout"] == "time_major" else {}
    for index, term in enumerate(contract["observation"]["terms"]):
        if (term["history"] or 0) > 0:
            continue  # older frames of a term are its history, not terms of their own
        terms[term["name"]] = {
            "params": {"index": index},
            "clip": None,
            "scale": [1.0] * term["width"],
            "history_length": frames[term["group"], term["name"]],
        }
    low, high = contract["safety"]["command_low"], contract["safety"]["command_high"]
    action = {
        "clip": [list(pair) for pair in zip(low, high, strict=True)] if low else None,
        "joint_names": robot["names"],
        "scale": robot["scale"],
        "offset": robot["offset"],
        "joint_ids": None,
    }
    kind = {"position": "JointPositionAction", "velocity": "JointVelocityAction"}
    name = kind.get(contract["gains"]["control_mode"], "JointEffortAction")
    record = {
        "joint_ids_map": to_robot,
        "step_dt": contract["timing"]["control_dt"],
        # These two in the robot's order, 0 for joints that the policy does not move; all else in
        # the policy's order.
        "stiffness": _spread(robot["stiffness"], to_robot, on_robot),
        "damping": _spread(robot["damping"], to_robot, on_robot),
        "default_joint_pos": robot["default_position"],
        "commands": contract["commands"]["ranges"] or {},
        "actions": {name: action},
        "observations": terms,
    }
    text: str = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    return text


def _robot(contract: Mapping[str, Any], name: str) -> dict[str, list[Any]]:
    """What both formats need, checked to be there. Torque-controlled joints have gains of 0."""
    joints, gains = contract["joints"], contract["gains"]
    torque = gains["control_mode"] == "torque"
    zeros = [0.0] * len(joints["policy_names"] or [])
    found = {
        "names": joints["policy_names"],
        "stiffness": gains["stiffness"] or (zeros if torque else None),
        "damping": gains["damping"] or (zeros if torque else None),
        "default_position": joints["default_position"],
    }
    missing = [key for key, value in found.items() if value is None]
    if missing or contract["action"]["kind"] != "continuous":
        what = ", ".join(missing) or "continuous actions"
        raise InputError(
            f"--also {name} needs {what}, which the run does not know: describe the robot in the"
            " environment's EnvSpec.deployment, or drop the flag"
        )
    found["scale"] = _step(contract, "scale")["values"]
    found["offset"] = _step(contract, "offset")["values"]
    return found


def _step(contract: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    steps: list[Mapping[str, Any]] = contract["action"]["pipeline"]
    return next(step for step in steps if step["step"] == name)


def _spread(values: Sequence[float], places: Sequence[int], size: int) -> list[float]:
    found = [0.0] * size
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found


def _text(item: Any) -> str:
    return repr(item) if isinstance(item, float) else str(item)
