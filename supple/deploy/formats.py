"""Other stacks' files, on request: mjlab's ONNX properties and Unitree's ``deploy.yaml``.

Their keys, with full precision and without tags that a safe YAML reader refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    # Unitree's switch for frames side by side; without it each term has its history.
    terms: dict[str, Any] = {"use_gym_history": True} if history["layout"] == "time_major" else {}
    for index, term in enumerate(contract["observation"]["terms"]):
        if (term["history"] or 0) > 0:
            continue  # older frames of a term are its history, not terms of their own
        terms[term["name"]] = {
            "params": {"index": index},
            "clip": None,
            "scale": [1.0] * term["width"],
            "history_length": history["length"],
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
        # These two in the robot's order, all else in the policy's.
        "stiffness": [robot["stiffness"][joint] for joint in _inverse(to_robot)],
        "damping": [robot["damping"][joint] for joint in _inverse(to_robot)],
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


def _inverse(permutation: list[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


def _text(item: Any) -> str:
    return repr(item) if isinstance(item, float) else str(item)
