"""What makes a simulator harder, on the device: noise, delay, history and per-episode parameters.

Each wraps any environment of the contract and is one too; ``--env.*`` flags put them on, in the
order in which a robot would have them::

    policy -> delay -> scale and offset of the actuators -> simulator
    policy <- history of frames <- sensor noise <- sensor bias <- simulator

They change the ``policy`` group only: a ``critic`` group stays what the simulator knows. Rewards
and ends are the simulator's. What was put on is in ``spec.added``; delay and history are in
``spec.deployment`` (and ``spec.channels``) as well, because an exported policy needs them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import Box, Channel, Deployment, Env, EnvSpec
from supple.errors import InputError
from supple.rng import derive_seed, restore

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

NEWEST_FIRST = "newest_first"


class Wrapper(Env):
    """Another environment, changed in a few hooks. ``_memory`` is saved and restored.

    Args:
        env: closed together with this one.
        spec: the changed facts.
    """

    def __init__(self, env: Env, spec: EnvSpec) -> None:
        self.env, self.spec = env, spec
        self._random = torch.Generator(spec.device)
        self._random.manual_seed(derive_seed(0, type(self).__name__))
        self._memory: dict[str, Tensor] = {}

    def _act(self, action: Tensor) -> Tensor:
        """What the wrapped environment gets for the policy's action, (N, A)."""
        return action

    def _final(self, policy: Tensor) -> Tensor:
        """The changed observation before a reset, (N, D)."""
        return policy

    def _now(self, policy: Tensor, begins: Tensor) -> Tensor:
        """The changed observation, (N, D); rows ``begins`` (N,) are of a new episode."""
        return policy

    def _begin(self, begins: Tensor) -> None:
        """Start new episodes in rows ``begins`` (N,)."""

    def reset(self, seed: int | None = None) -> TensorDict:
        """As the wrapped environment; ``seed`` also seeds what is drawn here."""
        if seed is not None:
            self._random.manual_seed(derive_seed(seed, type(self).__name__))
        first = self.env.reset(seed)
        everywhere = torch.ones(self.spec.num_envs, dtype=torch.bool, device=self.spec.device)
        self._begin(everywhere)
        first["observation", "policy"] = self._now(first["observation", "policy"], everywhere)
        return first

    def step(self, action: Tensor) -> TensorDict:
        """As the wrapped environment, changed. A bridge row begins an episode, too."""
        step = self.env.step(self._act(action))
        begins = step["terminated"] | step["truncated"] | ~step["valid"]
        step["final_observation", "policy"] = self._final(step["final_observation", "policy"])
        self._begin(begins)
        step["observation", "policy"] = self._now(step["observation", "policy"], begins)
        return step

    def report(self) -> dict[str, float]:
        """As the wrapped environment."""
        return self.env.report()

    def render(self) -> np.ndarray:
        """As the wrapped environment."""
        return self.env.render()

    def state_dict(self) -> dict[str, Any]:
        """The wrapped environment's, and what is remembered here."""
        memory = {name: value.clone() for name, value in self._memory.items()}
        return {
            "env": self.env.state_dict(),
            "memory": memory,
            "random": self._random.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value."""
        self.env.load_state_dict(state["env"])
        device = self.spec.device
        self._memory = {k: v.to(device, copy=True) for k, v in state["memory"].items()}
        restore(self._random, state["random"])

    def progress(self) -> dict[str, Any]:
        """As the wrapped environment."""
        return self.env.progress()

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """As the wrapped environment."""
        self.env.load_progress(progress)

    def spread_ends(self, seed: int) -> None:
        """As the wrapped environment."""
        self.env.spread_ends(seed)

    def close(self) -> None:
        """As the wrapped environment."""
        self.env.close()

    def _uniform(self, size: tuple[int, ...]) -> Tensor:
        """Between -1 and 1."""
        drawn = torch.rand(size, generator=self._random, device=self.spec.device)
        return 2 * drawn - 1

    def _redraw(self, name: str, begins: Tensor, width: int) -> None:
        drawn = self._uniform((self.spec.num_envs, width))
        kept = self._memory.get(name)
        self._memory[name] = drawn if kept is None else drawn.where(begins[:, None], kept)


class Randomised(Wrapper):
    """Actuators and sensors that differ from episode to episode.

    Args:
        env: any.
        action_scale: each action is multiplied by a number within it of 1.
        action_offset: to each action is added a number of at most this size [policy action].
        obs_bias: to each observation entry is added one of at most this size [the entry's unit].
    """

    def __init__(
        self, env: Env, *, action_scale: float, action_offset: float, obs_bias: float
    ) -> None:
        chosen = {
            "action_scale": action_scale,
            "action_offset": action_offset,
            "obs_bias": obs_bias,
        }
        if action_scale or action_offset:
            _require_box(env.spec, "--env.action-scale and --env.action-offset")
        super().__init__(env, _added(env.spec, chosen, policy_differs=obs_bias > 0))
        self._action_scale, self._action_offset = action_scale, action_offset
        self._obs_bias = obs_bias

    def _begin(self, begins: Tensor) -> None:
        actions, width = self.spec.action.size, self.spec.observation["policy"]
        if self._action_scale or self._action_offset:
            self._redraw("scale", begins, actions)
            self._redraw("offset", begins, actions)
        if self._obs_bias:
            self._redraw("bias", begins, width)

    def _act(self, action: Tensor) -> Tensor:
        if not (self._action_scale or self._action_offset):
            return action
        bounds = self.spec.action
        if isinstance(bounds, Box) and bounds.clip:  # of the command, before the actuator errs
            action = action.clamp(-1, 1)
        scale = 1 + self._action_scale * self._memory["scale"]
        return action * scale + self._action_offset * self._memory["offset"]

    def _final(self, policy: Tensor) -> Tensor:
        return policy + self._obs_bias * self._memory["bias"] if self._obs_bias else policy

    def _now(self, policy: Tensor, begins: Tensor) -> Tensor:
        return self._final(policy)


class Delay(Wrapper):
    """Actions that take effect some steps later; until then, action 0.

    Args:
        env: with continuous actions.
        steps: >= 1.
    """

    def __init__(self, env: Env, steps: int) -> None:
        _require_box(env.spec, "--env.action-delay")
        robot = env.spec.deployment or Deployment()
        late = dataclasses.replace(robot, action_delay=(robot.action_delay or 0) + steps)
        channels = env.spec.channels and tuple(_seen_later(c, steps) for c in env.spec.channels)
        spec = _added(env.spec, {"action_delay": steps})
        super().__init__(env, dataclasses.replace(spec, deployment=late, channels=channels))
        size = (steps, env.spec.num_envs, env.spec.action.size)
        self._memory["waiting"] = torch.zeros(size, device=env.spec.device)

    def _act(self, action: Tensor) -> Tensor:
        waiting = self._memory["waiting"]
        self._memory["waiting"] = torch.cat((waiting[1:], action[None]))
        return waiting[0]

    def _begin(self, begins: Tensor) -> None:
        self._memory["waiting"] = self._memory["waiting"].where(~begins[:, None], 0.0)


def _seen_later(channel: Channel, steps: int) -> Channel:
    """A channel of a simulator that is given its actions so many steps later, and shows them."""
    if channel.last_action is None:
        return channel
    before = channel.last_action
    late = dataclasses.replace(before, steps=before.steps + steps)
    return dataclasses.replace(channel, last_action=late)


class Noise(Wrapper):
    """Normal noise on every observation, new at every step.

    Args:
        env: any.
        deviation: of every entry [the entry's unit].
        declared: times the noise that the entry's channel declares, for simulators that declare
            it and add none.

    Raises:
        InputError: ``declared`` without channels that say so.
    """

    def __init__(self, env: Env, *, deviation: float, declared: float) -> None:
        channels = [channel for channel in env.spec.channels or () if channel.group == "policy"]
        width = env.spec.observation["policy"]
        if declared and not any(channel.noise for channel in channels):
            raise InputError(
                f"{env.spec.task_id} declares no channel noise: give --env.obs-noise instead of"
                " --env.declared-noise"
            )
        own = [declared * (channel.noise or 0.0) for channel in channels] or [0.0] * width
        sizes = [math.hypot(deviation, each) for each in own]
        chosen = {"obs_noise": deviation, "declared_noise": declared}
        spec = _added(env.spec, chosen, policy_differs=True)
        if channels:
            # A simulator that adds noise of its own goes on doing so.
            before = [0.0 if declared else channel.noise or 0.0 for channel in channels]
            noisy = map(math.hypot, before, sizes)
            spec = dataclasses.replace(
                spec,
                channels=tuple(
                    dataclasses.replace(channel, noise=next(noisy))
                    if channel.group == "policy"
                    else channel
                    for channel in spec.channels or ()
                ),
            )
        super().__init__(env, spec)
        self._sizes = torch.tensor(sizes, device=spec.device)

    def _final(self, policy: Tensor) -> Tensor:
        drawn = torch.randn(policy.shape, generator=self._random, device=policy.device)
        return policy + self._sizes * drawn

    def _now(self, policy: Tensor, begins: Tensor) -> Tensor:
        return self._final(policy)


class History(Wrapper):
    """The newest frames side by side, the newest first; an episode begins with copies of one.

    Args:
        env: any that gives no history itself.
        frames: >= 2.

    Raises:
        InputError: it does.
    """

    def __init__(self, env: Env, frames: int) -> None:
        before = env.spec
        own = max((channel.history for channel in before.channels or ()), default=0)
        if own or ((before.deployment and before.deployment.history_length) or 1) > 1:
            raise InputError(
                f"{before.task_id} gives a history of its own: lengthen that one, or drop"
                " --env.history"
            )
        spec = _added(before, {"history": frames}, policy_differs=True)
        robot = before.deployment or Deployment()
        channels = before.channels and tuple(
            dataclasses.replace(channel, history=frame)
            for frame in range(frames)
            for channel in before.channels
            if channel.group == "policy"
        ) + tuple(channel for channel in before.channels if channel.group != "policy")
        spec = dataclasses.replace(
            spec,
            observation={
                **before.observation,
                "policy": frames * before.observation["policy"],
            },
            deployment=dataclasses.replace(
                robot, history_length=frames, history_order=NEWEST_FIRST
            ),
            channels=channels,
        )
        super().__init__(env, spec)
        self._frames = frames

    def _final(self, policy: Tensor) -> Tensor:
        width = policy.shape[1]
        return torch.cat((policy, self._memory["frames"][:, :-width]), dim=1)

    def _now(self, policy: Tensor, begins: Tensor) -> Tensor:
        copies = policy.repeat(1, self._frames)
        if "frames" in self._memory:
            copies = copies.where(begins[:, None], self._final(policy))
        self._memory["frames"] = copies
        return copies.clone()


def wrap(env: Env, settings: EnvSettings) -> Env:
    """Put on what the settings ask for.

    Raises:
        InputError: it does not fit the environment, which is closed then.
    """
    wrapped = env
    try:
        if settings.action_scale or settings.action_offset or settings.obs_bias:
            wrapped = Randomised(
                wrapped,
                action_scale=settings.action_scale,
                action_offset=settings.action_offset,
                obs_bias=settings.obs_bias,
            )
        if settings.action_delay:
            wrapped = Delay(wrapped, settings.action_delay)
        if settings.obs_noise or settings.declared_noise:
            wrapped = Noise(wrapped, deviation=settings.obs_noise, declared=settings.declared_noise)
        if settings.history > 1:
            wrapped = History(wrapped, settings.history)
    except InputError:
        env.close()
        raise
    return wrapped


def _added(spec: EnvSpec, chosen: Mapping[str, float], *, policy_differs: bool = False) -> EnvSpec:
    """The spec with what was put on; a changed policy group is no longer part of the critic's."""
    added = {**spec.added, **{name: value for name, value in chosen.items() if value}}
    contains = spec.critic_contains_policy and not policy_differs
    return dataclasses.replace(spec, added=added, critic_contains_policy=contains)


def _require_box(spec: EnvSpec, flag: str) -> None:
    if not isinstance(spec.action, Box):
        raise InputError(f"{flag}: {spec.task_id} has discrete actions, drop the flag")
