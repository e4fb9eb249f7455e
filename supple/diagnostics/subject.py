"""An agent at one moment, as every measurement sees it: networks by role, their losses on a batch.

The only place of the diagnostics that knows agents by their kind. A measurement asks a subject for
``views`` (``diagnostics/views.py``) and for ``objective`` or ``inputs`` of one, and works for all.

Losses are those of training with these differences: networks are in evaluation mode, returns have
one step (FlashSAC's n-step, PPO's lambda need whole pieces of episodes), random numbers are fixed.

Shapes: ``N`` transitions, ``D`` widths of inputs, ``A`` actions, ``E`` members, ``R`` uniform
numbers per row.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supple.agents.actor import squashed_sample
from supple.agents.adam import Adam
from supple.agents.base import Agent
from supple.agents.critics import CategoricalCritic, HeadCritic
from supple.agents.distributions import Categorical, Distribution, SquashedGaussian
from supple.agents.flashsac import FlashSAC
from supple.agents.flow_critics import FlowCritic
from supple.agents.mlp import Network
from supple.agents.nets import project_
from supple.agents.ppo import ACTOR_GAIN, CRITIC_GAIN, PPO
from supple.diagnostics.data import Transitions, generator_for
from supple.diagnostics.views import (
    ActorView,
    Objective,
    PerceptronView,
    View,
    calibrate,
    critic_view,
    twin,
)
from supple.envs.base import Box, Channel
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


class Subject(ABC):
    """What is measured.

    Args:
        agent: read, never changed.
        seed: of the run; the measurements' random numbers come from it and the update count.
        env_steps: environment steps the agent has seen.
        label: how reports call it.
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
    batch_size: int
    """Rows of a gradient step B."""
    discrete: bool
    squashed: bool
    """Whether actions are tanh of what the actor says."""

    def __init__(
        self,
        agent: Agent,
        *,
        seed: int,
        env_steps: int = 0,
        label: str = "",
        channels: Sequence[Channel] = (),
    ) -> None:
        self.agent = agent
        self.channels = channels
        self.seed = seed
        self.env_steps = env_steps
        self.label = label

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

    @abstractmethod
    def groups(self, role: str) -> tuple[str, ...]:
        """Observation groups a network reads."""

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

    @abstractmethod
    def scale_reward(self, reward: Tensor) -> Tensor:
        """Rewards in the critic's units."""

    @abstractmethod
    def entropy_cost(self, data: Transitions) -> Tensor:
        """Alpha log pi(a | s) of the stored actions, (N,), by which soft values differ; else 0."""

    @abstractmethod
    def action_means(self, obs_ND: Tensor) -> Tensor:
        """Deterministic actions (N, A) in [-1, 1], or logits (N, choices)."""

    @abstractmethod
    def policy_params(self, obs_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations before squashing; logits twice where discrete."""

    @abstractmethod
    def moments(self, role: str) -> Moments:
        """Of the optimiser that trains a network."""

    def clipped(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients as the optimiser gets them."""
        return gradients

    @abstractmethod
    def sample(self, obs_ND: Tensor, generator: torch.Generator) -> Tensor:
        """Actions drawn from the policy, as the environment takes them."""

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
    env_steps: int = 0,
    label: str = "",
    channels: Sequence[Channel] = (),
) -> Subject:
    """The subject of an agent; arguments as ``Subject`` takes them.

    Raises:
        InputError: an agent the diagnostics do not know.
    """
    kinds: dict[type[Agent], type[Subject]] = {FlashSAC: FlashSACSubject, PPO: PPOSubject}
    for kind, subject in kinds.items():
        if isinstance(agent, kind):
            facts = {"seed": seed, "env_steps": env_steps, "label": label, "channels": channels}
            return subject(agent, **facts)  # type: ignore[arg-type]
    raise InputError(
        f"diagnostics know {', '.join(each.__name__ for each in kinds)}, got"
        f" {type(agent).__name__}: write a Subject for it (diagnostics/subject.py)"
    )


class FlashSACSubject(Subject):
    """``critic`` is the ensemble, ``target_critic`` its average; values are soft and scaled."""

    agent: FlashSAC
    learning = ("actor", "critic")
    critic_role = "critic"
    discrete = False
    squashed = True

    def __init__(self, agent: FlashSAC, **facts: Any) -> None:
        super().__init__(agent, **facts)
        self._use(agent.actor, agent.critic, agent.target_critic)
        self.gamma = agent.settings.gamma
        self.batch_size = agent.settings.batch_size
        self.alpha = agent.log_alpha.detach().exp()

    def _use(self, actor: Any, critic: Any, target: Any) -> None:
        views = (
            ActorView(actor),
            critic_view("critic", critic),
            critic_view("target_critic", target),
        )
        self.views = {view.role: view for view in views}
        self._actor, self._critic, self._target = (view.module for view in views)

    def inputs(self, role: str, data: Transitions) -> Tensor:
        """Observations, and for critics the stored actions beside them."""
        if role == "actor":
            return data.obs(self.agent.actor_groups)
        return torch.cat((data.obs(self.agent.critic_groups), data.action), dim=-1)

    @torch.no_grad()
    def next_inputs(self, role: str, data: Transitions) -> Tensor:
        """With tanh(mean) of the current actor."""
        if role == "actor":
            return data.next_obs(self.agent.actor_groups)
        action = self.action_means(data.next_obs(self.agent.actor_groups))
        return torch.cat((data.next_obs(self.agent.critic_groups), action), dim=-1)

    def objective(self, role: str, data: Transitions) -> Objective:
        """Cross-entropy, squared error or flow matching; the soft policy loss of the actor."""
        return self._actor_objective(data) if role == "actor" else self._critic_objective(data)

    def _critic_objective(self, data: Transitions) -> Objective:
        target, _ = self._bellman(data)
        draws = self._critic.draws.loss
        rows = [self.inputs("critic", data), target]
        if draws:
            shape = (len(data), draws)
            device = self.agent.device
            rows.append(torch.rand(shape, generator=self.generator("loss"), device=device))

        def loss(critic: Any, x_ND: Tensor, target: Tensor, *uniform: Tensor) -> Tensor:
            mean: Tensor = critic.loss(critic(x_ND, train=False), target, *uniform)
            summed: Tensor = critic.size.members * mean
            return summed

        return Objective(tuple(rows), loss)

    def regression(
        self, role: str, data: Transitions
    ) -> tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]:
        """Logits, values or velocities."""
        if role == "actor":
            raise InputError("the actor's loss is not a regression: it has no Gauss-Newton matrix")
        members, rows = self._critic.size.members, self.objective(role, data).rows
        if isinstance(self._critic, FlowCritic):
            scale, reduction = self._critic.velocity_scale, self._critic.settings.reduction

            def missed(critic: FlowCritic, x_ND: Tensor, target: Tensor, uniform: Tensor) -> Tensor:
                found, goal, _ = critic.regression(critic(x_ND, train=False), target, uniform)
                error: Tensor = (found - goal) / scale
                return error

            def squares(error: Tensor, *rows: Tensor) -> Tensor:
                square = error.square()
                if reduction == "sum":
                    square = square.sum(-1)
                summed: Tensor = members * square.mean()
                return summed

            return missed, squares, rows

        def heads(critic: HeadCritic, x_ND: Tensor, target: Tensor) -> Tensor:
            return critic.heads(x_ND, train=False, rows=slice(None))

        def loss(head: Tensor, x_ND: Tensor, target: Tensor) -> Tensor:
            prediction = head.log_softmax(-1) if head.shape[-1] > 1 else head.squeeze(-1)
            mean: Tensor = self._critic.loss(prediction, target)
            summed: Tensor = members * mean
            return summed

        return heads, loss, rows

    def groups(self, role: str) -> tuple[str, ...]:
        """As the agent has them."""
        return self.agent.actor_groups if role == "actor" else self.agent.critic_groups

    @torch.no_grad()
    def _bellman(self, data: Transitions) -> tuple[Tensor, Tensor]:
        """The target network's one-step target, as ``Critic.target`` gives it."""
        agent = self.agent
        mean, log_std = self._actor(data.next_obs(agent.actor_groups), train=False)
        noise = torch.randn(mean.shape, generator=self.generator("policy"), device=agent.device)
        action, log_prob = squashed_sample(mean, log_std, noise)
        x_ND = torch.cat((data.next_obs(agent.critic_groups), action), dim=-1)
        draws = self._target.draws.target
        uniform: tuple[Tensor, ...] = ()
        if draws:
            shape = (len(data), draws)
            generator = self.generator("target")
            uniform = (torch.rand(shape, generator=generator, device=agent.device),)
        found: tuple[Tensor, Tensor] = self._target.target(
            self._target(x_ND, train=False),
            self.scale_reward(data.reward),
            self.gamma * (~data.terminated).float(),
            self.alpha * log_prob,
            *uniform,
        )
        return found

    def clipped_mass(self, data: Transitions) -> Tensor:
        """Share of the targets that lay outside the value range, 0-d."""
        return self._bellman(data)[1]

    def target_distribution(self, data: Transitions) -> Tensor:
        """What the critic regresses onto, (N, ...)."""
        return self._bellman(data)[0]

    def targets(self, data: Transitions) -> Tensor:
        """Means over atoms or noise samples."""
        target, _ = self._bellman(data)
        if isinstance(self._critic, CategoricalCritic):
            return target @ self._critic.atoms
        return target if target.dim() == 1 else target.mean(-1)

    def _actor_objective(self, data: Transitions) -> Objective:
        agent, critic = self.agent, self._critic
        shape = (len(data), data.action.shape[1])
        device = agent.device
        rows = [data.obs(agent.actor_groups), data.obs(agent.critic_groups)]
        rows.append(torch.randn(shape, generator=self.generator("policy"), device=device))
        if critic.draws.value:
            shape = (len(data), critic.draws.value)
            rows.append(torch.rand(shape, generator=self.generator("value"), device=device))

        def loss(
            actor: Any, obs: Tensor, critic_obs: Tensor, noise: Tensor, *uniform: Tensor
        ) -> Tensor:
            mean, log_std = actor(obs, train=False)
            action, log_prob = squashed_sample(mean, log_std, noise)
            prediction = critic(torch.cat((critic_obs, action), dim=-1), train=False)
            cost: Tensor = self.alpha * log_prob - critic.climbed(prediction, *uniform)
            return cost.mean()

        return Objective(tuple(rows), loss)

    def scale_reward(self, reward: Tensor) -> Tensor:
        """Over the running denominator."""
        return reward / self.agent.reward_scaler.denominator()

    @torch.no_grad()
    def entropy_cost(self, data: Transitions) -> Tensor:
        """Of the squashed Gaussian; actions at the bounds are taken a hair inside."""
        mean, log_std = self._actor(data.obs(self.agent.actor_groups), train=False)
        before = torch.atanh(data.action.clamp(-1 + 1e-6, 1 - 1e-6))
        noise = (before - mean) * (-log_std).exp()
        cost: Tensor = self.alpha * squashed_sample(mean, log_std, noise)[1]
        return cost

    def action_means(self, obs_ND: Tensor) -> Tensor:
        """tanh(mean)."""
        mean_NA, _ = self.policy_params(obs_ND)
        return torch.tanh(mean_NA)

    def policy_params(self, obs_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Before tanh."""
        found: tuple[Tensor, Tensor] = self._actor(obs_ND, train=False)
        return found

    @torch.no_grad()
    def sample(self, obs_ND: Tensor, generator: torch.Generator) -> Tensor:
        """From the squashed Gaussian, without the held noise of training."""
        mean, log_std = self.policy_params(obs_ND)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return torch.tanh(mean + log_std.exp() * noise)

    def moments(self, role: str) -> Moments:
        """Of its own Adam."""
        agent = self.agent
        adam: Adam = agent._optimizers[role]
        steps = agent._actor_updates if role == "actor" else agent.updates
        return Moments(adam.mean, adam.square, steps, agent.learning_rate(steps))

    def projected(self, role: str) -> bool:
        """As its switch says."""
        settings = self.agent.settings
        return settings.project_actor if role == "actor" else settings.project_critic

    def fresh(self, number: int, data: Transitions) -> Subject:
        """Built as ``FlashSAC`` builds them."""
        agent = self.agent
        generator = generator_for(agent.device, self.seed, "fresh", number)
        actor, critic = agent.build_networks(generator)
        project_(actor)
        project_(critic)
        found = copy.copy(self)
        found._use(actor, critic, copy.deepcopy(critic))
        obs = torch.cat([each(agent.actor_groups) for each in (data.obs, data.next_obs)])
        calibrate(found._actor, lambda: found._actor(obs, train=True))
        x_ND = torch.cat([each("critic", data) for each in (found.inputs, found.next_inputs)])
        for network in (found._critic, found._target):
            calibrate(network, partial(network, x_ND, train=True))
        return found


class PPOSubject(Subject):
    """``value`` is the critic; its values are plain returns, scaled where rewards are."""

    agent: PPO
    learning = ("actor", "value")
    critic_role = "value"

    def __init__(self, agent: PPO, **facts: Any) -> None:
        super().__init__(agent, **facts)
        self.discrete = not isinstance(agent.spec.action, Box)
        self.squashed = isinstance(agent.distribution, SquashedGaussian)
        self.gamma = agent.settings.gamma
        rows = agent.horizon * agent.spec.num_envs
        self.batch_size = max(1, rows // agent.settings.minibatches)
        self._distribution: Distribution = twin(agent.distribution)
        self._use(agent.actor, agent.critic)

    def _use(self, actor: Network, critic: Network) -> None:
        views = (PerceptronView("actor", actor), PerceptronView("value", critic))
        self.views = {view.role: view for view in views}

    def regression(
        self, role: str, data: Transitions
    ) -> tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]:
        """Values."""
        if role == "actor":
            raise InputError("the actor's loss is not a regression: it has no Gauss-Newton matrix")
        view = self.views[role]

        def values(module: nn.Module, x_ND: Tensor, target_N: Tensor) -> Tensor:
            return view.outputs(module, x_ND)[0, :, 0]

        def loss(value_N: Tensor, x_ND: Tensor, target_N: Tensor) -> Tensor:
            return (value_N - target_N).square().mean()

        return values, loss, self.objective(role, data).rows

    def groups(self, role: str) -> tuple[str, ...]:
        """As the agent has them."""
        return self.agent.actor_groups if role == "actor" else self.agent.critic_groups

    def inputs(self, role: str, data: Transitions) -> Tensor:
        """Observations; normalisers are part of the networks."""
        return data.obs(self.groups(role))

    def next_inputs(self, role: str, data: Transitions) -> Tensor:
        """The next observations."""
        return data.next_obs(self.groups(role))

    def objective(self, role: str, data: Transitions) -> Objective:
        """Squared error of the value; minus advantage times log-probability of the actor.

        The latter has the gradient of the clipped surrogate where the policy has not moved yet.
        """
        target = self.targets(data)
        if role == "value":
            view = self.views[role]

            def value_loss(module: nn.Module, x_ND: Tensor, target_N: Tensor) -> Tensor:
                return (view.outputs(module, x_ND)[0, :, 0] - target_N).square().mean()

            return Objective((self.inputs(role, data), target), value_loss)
        view, distribution = self.views["actor"], self._distribution
        advantage = target - self._values(self.inputs("value", data))
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

        def policy_loss(module: nn.Module, x_ND: Tensor, draw: Tensor, advantage: Tensor) -> Tensor:
            params = distribution.params(view.outputs(module, x_ND)[0])
            return -(advantage * distribution.log_prob(params, draw)).mean()

        return Objective((self.inputs(role, data), self._draws(data), advantage), policy_loss)

    def _draws(self, data: Transitions) -> Tensor:
        if self._distribution.keeps_draw:  # the ring's column of draws is not part of the data
            return torch.atanh(data.action.clamp(-1 + 1e-6, 1 - 1e-6))
        return self._distribution.draw_of(data.action)

    @torch.no_grad()
    def _values(self, x_ND: Tensor) -> Tensor:
        view = self.views["value"]
        return view.outputs(view.module, x_ND)[0, :, 0]

    def targets(self, data: Transitions) -> Tensor:
        """One step of reward and the next value."""
        after = self._values(self.next_inputs("value", data))
        return self.scale_reward(data.reward) + self.gamma * (~data.terminated) * after

    def scale_reward(self, reward: Tensor) -> Tensor:
        """Over the running denominator; 1 where rewards are not normalised."""
        return reward / self.agent.reward_scaler.denominator()

    def entropy_cost(self, data: Transitions) -> Tensor:
        """None: values are not soft."""
        return torch.zeros_like(data.reward)

    def action_means(self, obs_ND: Tensor) -> Tensor:
        """The mode, or logits."""
        view = self.views["actor"]
        head = view.outputs(view.module, obs_ND)[0]
        return head if self.discrete else self._distribution.mode(head)

    def policy_params(self, obs_ND: Tensor) -> tuple[Tensor, Tensor]:
        """As the distribution describes itself."""
        view = self.views["actor"]
        params = self._distribution.params(view.outputs(view.module, obs_ND)[0])
        if isinstance(self._distribution, Categorical):
            return params, params
        mean, log_std = params.chunk(2, dim=-1)
        return mean, log_std

    @torch.no_grad()
    def sample(self, obs_ND: Tensor, generator: torch.Generator) -> Tensor:
        """From the distribution."""
        distribution, view = self._distribution, self.views["actor"]
        params = distribution.params(view.outputs(view.module, obs_ND)[0])
        draw = torch.rand if distribution.uniform else torch.randn
        shape = (len(obs_ND), self.agent.spec.action.size)
        noise = draw(shape, generator=generator, device=obs_ND.device)
        return distribution.action(distribution.sample(params, noise))

    def clipped(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """To the joint norm that the settings allow."""
        limit = self.agent.settings.max_grad_norm
        norm = torch.nn.utils.get_total_norm(gradients)
        factor = (limit / (norm + 1e-6)).clamp_max(1.0) if limit else torch.ones_like(norm)
        return tuple(factor * part for part in gradients)

    def moments(self, role: str) -> Moments:
        """The network's part of the joint optimiser; the standard deviation's parameter is not."""
        agent, adam = self.agent, self.agent._optimizer
        own = {id(part) for part in (agent.actor if role == "actor" else agent.critic).parameters()}
        kept = [i for i, part in enumerate(adam.params) if id(part) in own]
        mean, square = ([each[i] for i in kept] for each in (adam.mean, adam.square))
        return Moments(mean, square, agent.updates, float(agent._rate))

    def projected(self, role: str) -> bool:
        """Never."""
        return False

    def fresh(self, number: int, data: Transitions) -> Subject:
        """Built as ``PPO`` builds them, with the normalisers' moments of the trained ones."""
        agent = self.agent
        generator = generator_for(agent.device, self.seed, "fresh", number)
        networks = []
        for role, gain, hidden in (
            ("actor", ACTOR_GAIN, agent.settings.actor_hidden),
            ("value", CRITIC_GAIN, agent.settings.critic_hidden),
        ):
            trained = self.views[role].module
            network = Network(
                trained.normaliser.mean.numel(),
                trained.layers[-1].out_features,
                hidden=hidden,
                activation=agent.settings.activation,
                memory=trained.memory,
                normalise=trained.normaliser.enabled,
                output_gain=gain,
                generator=generator,
            )
            network.normaliser.load_state_dict(trained.normaliser.state_dict())
            networks.append(network)
        found = copy.copy(self)
        found._use(*networks)
        return found
