"""What the numbers of an observation and of an action are called on the robot, in physical units.

Comes from a run's ``spec.json`` (``channels`` and ``deployment``); what it does not say gets a
number for a name and no unit. A file may declare sensor noise that the simulator does not.

Shapes: ``N`` states, ``D`` channels, ``A`` actuators.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from supple.envs.base import Box, Channel, Deployment, EnvSpec
from supple.errors import InputError

ASSUMED_NOISE = 0.01
"""Share of a channel's standard deviation that stands in for noise nobody declared."""
GAINS = 20
"""Pairs of sensor and actuator in a table."""
COMMAND = re.compile(r"command|cmd", re.IGNORECASE)
"""Names of channels that tell the policy what to do; they are no sensors."""
PROBABILITY = "probability"
"""Unit of what a discrete policy moves."""
_UNITS = {"torque": "N·m", "position": "rad", "velocity": "rad/s"}
_FAMILIES = {"pos": "positions", "vel": "velocities", "command": "commands"}
_INDEX = re.compile(r"\[\d+\]$")


@dataclass(frozen=True, slots=True)
class Layout:
    """The channels of an observation, in its order."""

    channels: tuple[Channel, ...]
    named: bool
    """Whether the simulator said what they are."""

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def names(self) -> tuple[str, ...]:
        """With the history slice behind, where it is not the newest."""
        return tuple(
            f"{channel.name} (t-{channel.history})" if channel.history else channel.name
            for channel in self.channels
        )

    @property
    def families(self) -> tuple[str, ...]:
        """Positions, velocities, …; older history slices apart."""
        return tuple(
            f"{_family(channel)}, t-{channel.history}" if channel.history else _family(channel)
            for channel in self.channels
        )

    @property
    def noise(self) -> Tensor | None:
        """Declared standard deviations, 0 where none; None without any declaration, (D,)."""
        declared = [channel.noise or 0.0 for channel in self.channels]
        return torch.tensor(declared) if any(declared) else None

    def limits(self) -> tuple[Tensor, Tensor]:
        """Admissible raw values, infinite where unknown, (D,) each."""
        low = [-math.inf if each.low is None else each.low for each in self.channels]
        high = [math.inf if each.high is None else each.high for each in self.channels]
        return torch.tensor(low), torch.tensor(high)

    def searched(self, obs_ND: Tensor) -> Tensor:
        """Which channels can carry a direction, (D,) bool.

        Left out: what does not vary, what is only ever 0 or 1, and commands.
        """
        varies = obs_ND.std(0) > 1e-9 * obs_ND.abs().amax(0).clamp(min=1e-30)
        flag = ((obs_ND == 0) | (obs_ND == 1)).all(0)
        command = torch.tensor([bool(COMMAND.search(each.name)) for each in self.channels])
        return varies & ~flag & ~command.to(obs_ND.device)


def _family(channel: Channel) -> str:
    if _INDEX.search(channel.name):
        return _INDEX.sub("", channel.name)
    return _FAMILIES.get(channel.name.rsplit("_", 1)[-1], channel.unit or channel.name)


def layout_of(
    spec: EnvSpec, groups: tuple[str, ...], noise: Mapping[str, float] | None = None
) -> Layout:
    """The channels of some observation groups side by side.

    Args:
        spec: what the environment says of itself.
        groups: in the order in which a network reads them.
        noise: standard deviations by channel name, instead of the simulator's.
    """
    found: list[Channel] = []
    named = True
    for group in groups:
        own = [channel for channel in spec.channels or () if channel.group == group]
        if len(own) != spec.observation[group]:
            named = False
            label = "obs" if len(groups) == 1 else group
            width = spec.observation[group]
            own = [Channel(name=f"{label}[{index}]", group=group) for index in range(width)]
        found += own
    if noise:
        found = [_with_noise(channel, noise) for channel in found]
    return Layout(tuple(found), named)


def _with_noise(channel: Channel, noise: Mapping[str, float]) -> Channel:
    fields = {name: getattr(channel, name) for name in Channel.__dataclass_fields__}
    return Channel(**(fields | {"noise": noise.get(channel.name, channel.noise)}))


def read_noise(path: Path, spec: EnvSpec) -> dict[str, float]:
    """Standard deviations of sensor noise by channel name, from a JSON object.

    Raises:
        InputError: not such a file, a negative number, or a channel the run does not have.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--noise-spec {path} cannot be read as JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(
            f'--noise-spec {path}: expected an object such as {{"rootz_pos": 0.01}},'
            f" got {type(record).__name__}"
        )
    known = {channel.name for channel in layout_of(spec, tuple(spec.observation)).channels}
    for name, value in record.items():
        if name not in known:
            raise InputError(
                f"--noise-spec {path}: {name!r} is no channel of {spec.task_id}; it has"
                f" {', '.join(sorted(known)[:8])}{' …' if len(known) > 8 else ''}"
            )
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"--noise-spec {path}: {name} must be a number >= 0, got {value!r}")
    return {name: float(value) for name, value in record.items()}


@dataclass(frozen=True, slots=True)
class Actuators:
    """What the numbers of an action move."""

    names: tuple[str, ...]
    unit: str
    """Of a physical command; of a discrete policy, of a choice's probability."""
    scale: tuple[float, ...]
    """Physical command per half range."""


def actuators_of(spec: EnvSpec) -> Actuators:
    """From the deployment block where there is one, else from the action's bounds."""
    action = spec.action
    if not isinstance(action, Box):
        names = tuple(f"choice {index}" for index in range(action.n))
        return Actuators(names, PROBABILITY, (1.0,) * action.n)
    robot = spec.deployment or Deployment()
    names = robot.joint_names or tuple(f"action[{index}]" for index in range(action.size))
    scale = tuple((high - low) / 2 for low, high in zip(action.low, action.high, strict=True))
    unit = _UNITS.get(robot.control_mode or "", "")
    if robot.action_scale is not None and unit:
        return Actuators(names, unit, robot.action_scale)
    return Actuators(names, "command", scale)


class Gain(NamedTuple):
    """How one actuator answers one sensor."""

    sensor: str
    actuator: str
    gain: float
    """RMS over states of the derivative [unit]."""
    unit: str
    jitter: float
    """Command's standard deviation at the sensor's noise, to first order [the actuator's unit]."""
    jitter_unit: str
    share: float
    """Of the jitter in the actuator's half range, at most 2; of a choice, at most 1."""
    declared: bool
    """Whether the noise was declared, or assumed to be ``ASSUMED_NOISE`` of the deviation."""


def gain_matrix(slope_NAD: Tensor, actuators: Actuators) -> Tensor:
    """RMS over states in physical units, (A, D)."""
    scale_A = torch.tensor(actuators.scale, dtype=torch.float64, device=slope_NAD.device)
    return slope_NAD.double().square().mean(0).sqrt() * scale_A[:, None]


def gain_table(
    slope_NAD: Tensor, layout: Layout, actuators: Actuators, deviation_D: Tensor
) -> list[Gain]:
    """The pairs of sensor and actuator with the largest jitter, in shares of the half range.

    Args:
        slope_NAD: d command (in half ranges) / d raw observation.
        layout: of the observation.
        actuators: of the action.
        deviation_D: standard deviation of each channel over the states.
    """
    gain_AD = gain_matrix(slope_NAD, actuators).cpu()
    declared = layout.noise
    noise_D = ASSUMED_NOISE * deviation_D if declared is None else declared
    scale_A1 = torch.tensor(actuators.scale, dtype=torch.float64)[:, None]
    share_AD = gain_AD * noise_D.double().cpu() / scale_A1
    order = share_AD.flatten().argsort(descending=True)[:GAINS].tolist()
    # What is linear knows no limits: a command moves from end to end at most, a probability by 1.
    share_AD = share_AD.clamp(max=1.0 if actuators.unit == PROBABILITY else 2.0)
    jitter_AD = share_AD * scale_A1
    found = []
    for index in order:
        a, d = divmod(index, len(layout))
        unit = layout.channels[d].unit or "unit"
        found.append(
            Gain(
                sensor=layout.names[d],
                actuator=actuators.names[a],
                gain=float(gain_AD[a, d]),
                unit=f"{actuators.unit} per {unit}",
                jitter=float(jitter_AD[a, d]),
                jitter_unit=actuators.unit,
                share=float(share_AD[a, d]),
                declared=declared is not None and bool(declared[d] > 0),
            )
        )
    return found
