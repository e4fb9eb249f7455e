"""The environment contract: what every simulator looks like to the loop, the ring and the agents.

All tensors live on ``env.spec.device`` and have ``N = spec.num_envs`` as their first axis. The keys
below are the only spelling between environment, replay ring and agent:

====================================  =========  =========  =======================================
key of ``step()``'s TensorDict        shape      dtype      meaning
====================================  =========  =========  =======================================
``("observation", <group>)``          (N, D)     float32    after auto-reset: what to act on next
``reward``                            (N,)       float32    raw, of this step
``terminated``                        (N,)       bool       a true end: stops every bootstrap
``truncated``                         (N,)       bool       cut by a time limit: bootstraps
``valid``                             (N,)       bool       False: this row is no environment step
``("final_observation", <group>)``    (N, D)     float32    before the reset; rows that ended only
``success`` (optional)                (N,)       bool       the task's own success flag, this step
====================================  =========  =========  =======================================

``reset()`` returns only the ``("observation", <group>)`` part. ``terminated`` wins where both flags
are set. Rows of ``final_observation`` that did not end hold unspecified numbers: never read them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """Continuous actions. The policy works in [-1, 1]; the adapter maps -1 to low and 1 to high."""

    low: tuple[float, ...]
    """Physical lower bound per action."""
    high: tuple[float, ...]
    """Physical upper bound per action."""
    clip: bool = True
    """Whether the adapter clips to the bounds after scaling (``|a| > 1`` is legal)."""

    @property
    def size(self) -> int:
        """Number of action dimensions ``A``."""
        return len(self.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrete:
    """One of ``n`` choices; the action tensor is (N,) int64, counted from 0."""

    n: int
    start: int = 0
    """What the simulator's own ``step`` calls the first."""

    @property
    def size(self) -> int:
        """Number of choices."""
        return self.n


@dataclass(frozen=True, kw_only=True, slots=True)
class LastAction:
    """Which action of its own the policy sees in a channel; 0 where an episode has none so far."""

    index: int
    """Of the action's entry."""
    factor: float = 1.0
    """What the simulator shows for the policy's 1, before the channel's clip and scale; > 0."""
    steps: int = 1
    """Control steps ago that the policy gave it, >= 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """What one observation channel is; read by diagnostics and export."""

    name: str
    group: str
    """Observation group the channel belongs to."""
    unit: str | None = None
    """SI unit, for example ``rad/s``."""
    history: int = 0
    """History slice: 0 is the newest frame, 1 the one before."""
    low: float | None = None
    """Smallest admissible value [unit]."""
    high: float | None = None
    """Largest admissible value [unit]."""
    noise: float | None = None
    """Standard deviation of the declared sensor noise [unit]."""
    term: str | None = None
    """The simulator's observation term it is an entry of; None: a term of its own, by its name."""
    scale: float | None = None
    """What the simulator multiplies the clipped value by; 1: it scales nothing, None: unknown."""
    clip: tuple[float, float] | Literal[False] | None = None
    """Range that the value is clipped to, before the scale; False: it is not, None: unknown."""
    params: Mapping[str, Any] | None = field(default_factory=dict)
    """What the term's function is called with, in values that JSON has; None: in others."""
    last_action: LastAction | None = None
    """What the runner fills in by itself; None: it is no action, or nobody told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What a policy must carry to the robot. ``None`` means unknown and is written as such.

    Every per-joint tuple follows ``joint_names``, the policy's own order.
    """

    joint_names: tuple[str, ...] | None = None
    """Actuated joints in the order of the policy's action."""
    robot_joint_names: tuple[str, ...] | None = None
    """The same joints in the order of the robot's SDK."""
    control_mode: str | None = None
    """``position``, ``velocity``, ``torque`` or ``delta``."""
    stiffness: tuple[float, ...] | None = None
    """Proportional gains kp [N·m/rad]."""
    damping: tuple[float, ...] | None = None
    """Derivative gains kd [N·m·s/rad]."""
    default_position: tuple[float, ...] | None = None
    """Default pose [rad, or m for sliding joints]."""
    action_scale: tuple[float, ...] | None = None
    """Physical command per unit of policy action."""
    action_offset: tuple[float, ...] | None = None
    """Physical command at policy action 0."""
    action_clip_low: tuple[float, ...] | Literal[False] | None = None
    """What commands are clipped to, after scale and offset; infinite where a joint's is not.
    False: none is clipped, None: unknown, as in ``action_clip_high`` and ``action_filter``."""
    action_clip_high: tuple[float, ...] | Literal[False] | None = None
    """See ``action_clip_low``."""
    action_filter: Literal[False] | None = None
    """False: commands are neither limited in rate nor smoothed. No filter can be exported."""
    position_limit_low: tuple[float, ...] | None = None
    """[rad, or m]."""
    position_limit_high: tuple[float, ...] | None = None
    """[rad, or m]."""
    velocity_limit: tuple[float, ...] | None = None
    """[rad/s, or m/s]."""
    effort_limit: tuple[float, ...] | None = None
    """[N·m, or N]."""
    sim_dt: float | None = None
    """Physics step [s]."""
    decimation: int | None = None
    """Physics steps per control step."""
    action_delay: int | None = None
    """Control steps until an action takes effect; 0: at once."""
    observation_delay: int | None = None
    """Control steps that an observation is old; 0: it is of now."""
    allowed_latency: float | None = None
    """Most that a state may be on its way to the policy [s]; the runner refuses a longer one."""
    history_length: int | None = None
    """Observation frames the policy sees at once."""
    history_order: str | None = None
    """``newest_first`` or ``oldest_first``."""
    commands: Mapping[str, Mapping[str, Any] | None] | None = None
    """What the robot is asked to do, by name: lists [low, high] by the command's entries, or None
    where they are unknown. Empty: the task has no commands."""


ActionSpec: TypeAlias = Box | Discrete


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvSpec:
    """The static facts of an environment; written to ``spec.json`` at the start of every run."""

    task_id: str
    num_envs: int
    observation: Mapping[str, int]
    """Width of each observation group. ``policy`` always; ``critic`` when privileged data exist."""
    action: ActionSpec
    device: torch.device
    max_episode_steps: int | None = None
    control_dt: float | None = None
    """Seconds between two actions [s]."""
    critic_contains_policy: bool = False
    """Whether the ``critic`` group already repeats every number of the ``policy`` group."""
    has_final_obs: bool = True
    """False: the simulator cannot give the observation before a reset."""
    exact_resume: bool = False
    """True: ``state_dict`` restores the simulation bit for bit."""
    deployment: Deployment | None = None
    channels: tuple[Channel, ...] | None = None
    added: Mapping[str, float] = field(default_factory=dict)
    """What ``--env.*`` flags put on the simulator (``envs/wrappers.py``), by flag."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts; floats keep full precision."""
        record = dataclasses.asdict(self)
        record["device"] = str(self.device)
        record["action"]["kind"] = type(self.action).__name__
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> EnvSpec:
        """The inverse of ``to_json``.

        Raises:
            KeyError, TypeError: ``record`` was not written by ``to_json``.
        """
        fields = dict(record)
        action = dict(fields["action"])
        if action.pop("kind") == "Discrete":
            fields["action"] = Discrete(**action)
        else:
            fields["action"] = Box(**_tuples(action))
        if fields["deployment"] is not None:
            fields["deployment"] = Deployment(**_tuples(fields["deployment"]))
        if fields["channels"] is not None:
            fields["channels"] = tuple(map(_channel, fields["channels"]))
        fields["device"] = torch.device(fields["device"])
        return EnvSpec(**fields)


def _channel(record: Mapping[str, Any]) -> Channel:
    fields = _tuples(record)
    if fields.get("last_action") is not None:
        fields["last_action"] = LastAction(**fields["last_action"])
    return Channel(**fields)


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}


Groups = TensorDict | Mapping[str, Tensor]
"""Observation groups, each (N, D)."""
Step = TensorDict | Mapping[str, Any]
"""What ``Env.step`` returns, or its ``to_dict()``, which is faster to read."""
FLAGS = ("terminated", "truncated", "valid")
"""Of a step, (N,) bool each."""
STEP_FIELDS = ("reward", *FLAGS)
"""What a step brings besides observations, (N,) each."""


class Env(ABC):
    """``N`` environments stepped together, with same-step auto-reset.

    A simulator that resets on the *next* step emits a bridge row with ``valid = False`` for it.
    ``step`` must return tensors it will not overwrite later (clone aliased simulator buffers).
    """

    spec: EnvSpec

    @abstractmethod
    def reset(self, seed: int | None = None) -> TensorDict:
        """Start every environment afresh; with ``seed``, reproducibly.

        Returns:
            TensorDict with ``("observation", <group>)``, each (N, D) float32.
        """

    @abstractmethod
    def step(self, action: Tensor) -> TensorDict:
        """Apply one action to every environment; ended ones are reset within the step.

        Args:
            action: (N, A) float32, nominally in [-1, 1], or (N,) int64 for ``Discrete``.

        Returns:
            The TensorDict described at the top of this module; ``step_result`` builds it.
        """

    def report(self) -> dict[str, float]:
        """Means, by name, of what the simulator said of itself since the last report.

        Asked once per metrics row, whose columns ``env/<name>`` they become: it may wait for the
        device, as ``step`` must not.
        """
        return {}

    def render(self) -> np.ndarray:
        """An RGB picture of environment 0, (H, W, 3) uint8.

        Raises:
            NotImplementedError: this environment draws nothing.
        """
        raise NotImplementedError(f"{self.spec.task_id} has no picture to draw")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit: tensors, arrays, numbers, strings, dicts.

        Raises:
            NotImplementedError: ``spec.exact_resume`` is False.
        """
        raise NotImplementedError(f"{self.spec.task_id} cannot save its simulator state")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value.

        Raises:
            NotImplementedError: ``spec.exact_resume`` is False.
        """
        raise NotImplementedError(f"{self.spec.task_id} cannot restore a simulator state")

    def progress(self) -> dict[str, Any]:
        """What outlives every reset, such as the count of steps that a curriculum goes by.

        A run that starts its episodes afresh as it resumes hands it back; checkpoints hand it on to
        the environments that evaluate. Same kinds of values as ``state_dict``'s.
        """
        return {}

    def load_progress(self, progress: Mapping[str, Any]) -> None:  # noqa: B027 - most have none
        """Go on from ``progress()``'s value, beginning with the next reset."""

    def spread_ends(self, seed: int) -> None:  # noqa: B027 - few simulators count in the open
        """Let the episodes that a reset just began end at times of their own, not all at once.

        A run asks for it after every reset of the environment it trains in, and of no other.
        """

    def close(self) -> None:  # noqa: B027 - most environments have nothing to release
        """Release processes, windows and files. Safe to call twice."""


def step_result(
    *,
    observation: Mapping[str, Tensor],
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_observation: Mapping[str, Tensor],
    valid: Tensor | None = None,
    success: Tensor | None = None,
) -> TensorDict:
    """Assemble what ``Env.step`` returns; ``valid`` defaults to all True."""
    num_envs = reward.shape[0]
    device = reward.device
    if valid is None:
        valid = torch.ones(num_envs, dtype=torch.bool, device=device)
    fields: dict[str, Any] = {
        "observation": TensorDict(dict(observation), batch_size=[num_envs]),
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "valid": valid,
        "final_observation": TensorDict(dict(final_observation), batch_size=[num_envs]),
    }
    if success is not None:
        fields["success"] = success
    return TensorDict(fields, batch_size=[num_envs])


def reset_result(observation: Mapping[str, Tensor], num_envs: int) -> TensorDict:
    """Assemble what ``Env.reset`` returns."""
    groups = TensorDict(dict(observation), batch_size=[num_envs])
    return TensorDict({"observation": groups}, batch_size=[num_envs])
