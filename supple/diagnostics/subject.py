"""An agent at one moment, as every measurement sees it: networks by role, their losses on a batch.

This and its subclasses (``subject_flashsac.py``, ``subject_ppo.py``) are the only places of the
diagnostics that know agents by their kind. A measurement asks a subject for ``views``
(``views.py``) and for ``objective`` or ``inputs`` of one, and works for all.

Losses are those of training with these differences: networks are in evaluation mode, returns have
one step (FlashSAC's n-step, PPO's lambda need whole pieces of episodes), random numbers are fixed.

Shapes: ``N`` transitions, ``D`` widths of inputs, ``A`` actions, ``E`` members, ``R`` uniform
numbers per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from supple.agents.base import Agent
from supple.agents.flashsac import FlashSAC
from supple.agents.ppo import PPO
from supple.diagnostics.data import Transitions, generator_for
from supple.diagnostics.views import Objective, View
from supple.envs.base import Channel
from supple.errors import InputError


@dataclass(frozen=True, slots=True)
class Moments:
    """An optimiser's state for one network, in the order of its parameters."""

    mean: list[Tensor]
    square: list[Tensor]
    steps: int
    """Steps so far."""
    rate: float
    """Learning rate of the next step."""
    share: float = 1.0
    """The loss that the optimiser sees, of what ``Subject.objective`` gives for a network."""
    decays: Sequence[float] = ()
    """By this times the learning rate each parameter shrinks at a step; empty where none does."""

    @property
    def step_size(self) -> float:
        """For curvatures of the objective: the optimiser's own moments are of the smaller loss."""
        return self.rate * self.share


class Subject(ABC):
    """What is measured.

    Args:
        agent: read, never changed.
        seed: of the run; the measurements' random numbers come from it and the update count.
        channels: of the observations, all of them in their order, where the adapter describes them.
    """

    agent: Agent
    views: dict[str, View]
    """``actor`` and ``critic`` or ``value``, and ``target_critic``."""
    learning: tuple[str, ...]
    """Roles that an optimiser trains."""
    critic_role: str
    """The view whose ``outputs`` are values."""
    gamma: float
    joins: Literal["min", "mean"] = "mean"
    """What targets and the policy take of the members' values."""
    n_step: int
    """Rewards that targets sum before the bootstrap; 1 where no entropy counts."""
    batch_size: int
    """Rows of a gradient step B."""
    discrete: bool
    squashed: bool
    """Whether actions are tanh of what the actor says."""
    bounded: bool
    """Whether actions end at the limits of their range."""
    joints: tuple[str, ...]
    """Names of what actions move, or of choices."""
    log_std_range: tuple[float, float]
    """Of the actor's log standard deviations; of no meaning where actions are discrete."""

    def __init__(
        self,
        agent: Agent,
        *,
        seed: int,
        channels: Sequence[Channel] = (),
    ) -> None:
        self.agent = agent
        self.channels = channels
        self.seed = seed

    @property
    def updates(self) -> int:
        """Gradient steps so far."""
        return self.agent.updates

    def generator(self, name: str) -> torch.Generator:
        """For one measurement: the same numbers whenever it is repeated."""
        return generator_for(self.agent.device, self.seed, self.updates, name)

    @abstractmethod
    def inputs(self, role: str, data: Transitions) -> Tensor:
        """What a network reads of each transition, raw, (N, D)."""

    @abstractmethod
    def next_inputs(self, role: str, data: Transitions) -> Tensor:
        """What it reads at the next step; a critic with the policy's most likely action, (N, D)."""

    @abstractmethod
    def objective(self, role: str, data: Transitions) -> Objective:
        """The loss of a network in ``learning``, targets and noise fixed."""

    @abstractmethod
    def regression(
        self, role: str, data: Transitions
    ) -> tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]:
        """The loss of a value network in two halves, for Gauss-Newton.

        Returns:
            (module, *rows) -> what the loss reads of the network; (that, *rows) -> the loss, mean
            over rows, summed over members; the rows.

        Raises:
            InputError: the loss is not convex in what the network says.
        """

    def groups(self, role: str) -> tuple[str, ...]:
        """Observation groups a network reads."""
        return self.agent.actor_groups if role == "actor" else self.agent.critic_groups

    def channel_noise(self, role: str) -> dict[int, float]:
        """Declared noise of a network's inputs, by their place [the channel's unit]."""
        by_group = [[c for c in self.channels if c.group == name] for name in self.groups(role)]
        described = [channel for group in by_group for channel in group]
        return {i: each.noise for i, each in enumerate(described) if each.noise is not None}

    def squash(self, mean: Tensor) -> Tensor:
        """Deterministic actions from means."""
        return torch.tanh(mean) if self.squashed else mean.clamp(-1, 1)

    def clipped_mass(self, data: Transitions) -> Tensor:
        """Share of the targets that lay outside the value range, 0-d."""
        raise InputError("this critic has no value range to clip targets to")

    def target_distribution(self, data: Transitions) -> Tensor:
        """What the critic regresses onto, (N, ...)."""
        return self.targets(data)

    @abstractmethod
    def targets(self, data: Transitions) -> Tensor:
        """Expected values of the critic's targets, (N,), in the units of its ``outputs``."""

    def joined(self, value_EN: Tensor) -> Tensor:
        """Values as targets use them, (N,)."""
        return value_EN.amin(0) if self.joins == "min" else value_EN.mean(0)

    @abstractmethod
    def next_values(self, data: Transitions) -> Tensor:
        """Of what follows, as the critic sees it, entropy bonus included, (N,)."""

    def along(self, episodes: Transitions) -> tuple[Tensor, Tensor]:
        """Values of whole episodes in order, of each member (E, N), and ``next_values`` (N,)."""
        view = self.views[self.critic_role]
        value_EN = view.outputs(view.module, self.inputs(view.role, episodes))[..., 0]
        return value_EN, self.next_values(episodes)

    def scale_reward(self, reward: Tensor) -> Tensor:
        """Rewards in the critic's units."""
        return reward / self.agent.reward_scaler.denominator()

    @abstractmethod
    def entropy_cost(self, data: Transitions) -> Tensor:
        """Alpha log pi(a | s) of the stored actions, (N,), by which soft values differ; else 0."""

    @abstractmethod
    def policy_params(self, obs_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations before squashing; logits twice where discrete."""

    @abstractmethod
    def moments(self, role: str) -> Moments:
        """Of the optimiser that trains a network."""

    def probe_rate(self, role: str) -> float:
        """Learning rate at which a network is asked to learn something new."""
        return self.moments(role).rate

    def clipped(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients as the optimiser gets them."""
        return gradients

    @abstractmethod
    def projected(self, role: str) -> bool:
        """Whether the network's norms are restored after each step."""

    @abstractmethod
    def fresh(self, number: int, data: Transitions) -> Subject:
        """The same agent with untrained networks, their statistics taken from ``data``.

        Args:
            number: of the twin; each has a seed of its own.
            data: what batch norms are calibrated on.
        """

    def learning_views(self) -> list[View]:
        """Of the networks that an optimiser trains."""
        return [self.views[role] for role in self.learning]


def subject_of(
    agent: Agent,
    *,
    seed: int,
    channels: Sequence[Channel] = (),
) -> Subject:
    """The subject of an agent; arguments as ``Subject`` takes them.

    Raises:
        InputError: an agent the diagnostics do not know.
    """
    # Here, because they are subclasses of what this file defines.
    from supple.diagnostics.subject_flashsac import FlashSACSubject
    from supple.diagnostics.subject_ppo import PPOSubject

    kinds: dict[type[Agent], type[Subject]] = {FlashSAC: FlashSACSubject, PPO: PPOSubject}
    for kind, subject in kinds.items():
        if isinstance(agent, kind):
            return subject(agent, seed=seed, channels=channels)
    raise InputError(
        f"diagnostics know {', '.join(each.__name__ for each in kinds)}, got"
        f" {type(agent).__name__}: write a Subject for it (diagnostics/subject.py)"
    )
