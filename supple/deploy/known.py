"""What a bundle does not know, in plain words, and what ``supple verify --require`` asks for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

WORDS: Mapping[str, tuple[str, ...]] = {
    "joint names": ("contract.joints.policy_names",),
    "the robot's joint order": ("contract.joints.robot_names",),
    "control mode": ("contract.gains.control_mode",),
    "gains": ("contract.gains.stiffness", "contract.gains.damping"),
    "default pose": ("contract.joints.default_position",),
    "joint limits": (
        *("contract.joints.position_limit.hard", "contract.joints.velocity_limit"),
        "contract.joints.effort_limit",
    ),
    "clips and filters of commands": ("contract.action.pipeline",),
    "control period": ("contract.timing.control_dt",),
    "latency": (
        *("contract.timing.allowed_latency", "contract.timing.action_delay"),
        "contract.timing.observation_delay",
    ),
    "observation scales and clips": (
        "contract.observation.terms[*].scale",
        "contract.observation.terms[*].clip",
    ),
    "history": ("contract.history",),
    "commands": ("contract.commands.names", "contract.commands.ranges"),
    "damping gains": ("contract.safety.damping.gains",),
}
"""Fields of a manifest that a robot's software asks for, or groups of them."""
REQUIRABLE: Mapping[str, tuple[str, ...]] = {
    "c": ("golden, C",),
    "onnx": ("golden, onnxruntime", "golden, onnxruntime, batch"),
    "joints": (
        *("contract.joints.policy_names", "contract.joints.robot_names"),
        "contract.joints.default_position",
    ),
    "gains": ("contract.gains.control_mode", "contract.gains.stiffness", "contract.gains.damping"),
    "timing": ("contract.timing.control_dt", "latency"),
    "simulator": ("closed loop",),
}
"""What must have been checked, or be known: names of verdicts and fields of the manifest."""


def not_known(unknown: Sequence[str]) -> list[str]:
    """The words for a manifest's unknown fields; those nobody asks for by name are left out."""
    return [word for word, fields in WORDS.items() if any(_lacks(unknown, f) for f in fields)]


def sentence(unknown: Sequence[str]) -> str:
    """``not_known`` in one line, with the number of all unknown fields; empty without any."""
    if not unknown:
        return ""
    told = ", ".join(not_known(unknown)) or "nothing that a robot's software asks for"
    return f"not known: {told} (all {len(unknown)}: unknown in manifest.json)"


def missing(words: Sequence[str], unknown: Sequence[str], checked: Collection[str]) -> list[str]:
    """What of ``REQUIRABLE`` is not known or was not checked, a line for each word.

    Args:
        words: what is required.
        unknown: fields of the manifest.
        checked: names of the checks that were made.
    """
    lines = []
    for word in dict.fromkeys(words):
        fields = [name for name in REQUIRABLE[word] if name.startswith("contract.")]
        lacking = [f"{name} is not known" for name in fields if _lacks(unknown, name)]
        checks = [name for name in REQUIRABLE[word] if name not in fields]
        lacking += [f"{name!r} was not checked" for name in checks if name not in checked]
        lines += [f"--require {word}: {', '.join(lacking)}"] if lacking else []
    return lines


def _lacks(unknown: Sequence[str], field: str) -> bool:
    """Whether a field, or a part of it, is unknown; of one term as of all."""
    paths = [re.sub(r"terms\[\d+\]", "terms[*]", path) for path in unknown]
    return any(path == field or path.startswith((f"{field}.", f"{field}[")) for path in paths)
