"""PPO as the diagnostics see it.

Shapes: ``N`` transitions, ``D`` widths of inputs, ``A`` actions, ``E`` members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from supple.agents.distributions import (
    LOG_STD_HIGH,
    LOG_STD_LOW,
    Categorical,
    Distribution,
    SquashedGaussian,
)
from supple.agents.mlp import Network
from supple.agents.ppo import ACTOR_GAIN, CRITIC_GAIN, PPO
from supple.diagnostics.channels import actuators_of
from supple.diagnostics.data import Transitions, generator_for
from supple.diagnostics.subject import Moments, Subject
from supple.diagnostics.views import Objective, PerceptronView, twin
from supple.envs.base import Box
from supple.errors import InputError


class PPOSubject(Subject):
    """``value`` is the critic; its values are plain returns, scaled where rewards are."""

    agent: PPO
    learning = ("actor", "value")
    critic_role = "value"
    log_std_range = (LOG_STD_LOW, LOG_STD_HIGH)

    def __init__(self, agent: PPO, **facts: Any) -> None:
        super().__init__(agent, **facts)
        action = agent.spec.action
        self.discrete = not isinstance(action, Box)
        self.squashed = isinstance(agent.distribution, SquashedGaussian)
        self.bounded = self.squashed or (isinstance(action, Box) and action.clip)
        self.joints = actuators_of(agent.spec).names
        self.gamma = agent.settings.gamma
        self.n_step = 1
        rows = agent.horizon * agent.spec.num_envs
        self.batch_size = max(1, rows // agent.settings.minibatches)
        self._distribution: Distribution = twin(agent.distribution)
        self._use(agent.actor, agent.critic)

    def _use(self, actor: Network, critic: Network) -> None:
        width = None if self.discrete else self._distribution.draw_width
        self._actor = PerceptronView("actor", actor, width)
        self.views = {"actor": self._actor, "value": PerceptronView("value", critic)}

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
        view, distribution = self._actor, self._distribution
        advantage = target - self._values(self.inputs("value", data))
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

        def policy_loss(module: nn.Module, x_ND: Tensor, draw: Tensor, advantage: Tensor) -> Tensor:
            params = distribution.params(view.head(module, x_ND))
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
        after = self.next_values(data)
        return self.scale_reward(data.reward) + self.gamma * (~data.terminated) * after

    def next_values(self, data: Transitions) -> Tensor:
        """Of the next states."""
        return self._values(self.next_inputs("value", data))

    @torch.no_grad()
    def along(self, episodes: Transitions) -> tuple[Tensor, Tensor]:
        """With the memory that the critic has at each step, where it has one."""
        critic, role = self.views["value"].module, "value"
        if not critic.memory:
            return super().along(episodes)
        x_ND, next_ND = self.inputs(role, episodes), self.next_inputs(role, episodes)
        number_N = episodes.episode.unique(return_inverse=True)[1]
        memory_EH = x_ND.new_zeros(int(number_N.max()) + 1, critic.memory)
        value_N, next_N = x_ND.new_zeros(2, len(x_ND))
        for step in range(int(episodes.step.max()) + 1):
            rows = (episodes.step == step).nonzero().flatten()
            own = number_N[rows]
            value, after_MH = critic.step(x_ND[rows], memory_EH[own])
            value_N[rows], memory_EH[own] = value[:, 0], after_MH
            next_N[rows] = critic.step(next_ND[rows], after_MH)[0][:, 0]
        return value_N[None], next_N

    def entropy_cost(self, data: Transitions) -> Tensor:
        """None: values are not soft."""
        return torch.zeros_like(data.reward)

    def policy_params(self, obs_ND: Tensor) -> tuple[Tensor, Tensor]:
        """As the distribution describes itself."""
        params = self._distribution.params(self._actor.head(self._actor.module, obs_ND))
        if isinstance(self._distribution, Categorical):
            return params, params
        mean, log_std = params.chunk(2, dim=-1)
        return mean, log_std

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
        decays = [adam.decays[i] for i in kept]
        share = agent.settings.value_coef if role == "value" else 1.0
        return Moments(mean, square, agent.updates, float(agent._rate), share, decays)

    def probe_rate(self, role: str) -> float:
        """With a linear schedule that of its begin: at its end nothing is learned, by anyone."""
        agent = self.agent
        if agent.settings.lr_schedule == "linear":
            return float(agent.rate_scale * agent.settings.lr)
        return super().probe_rate(role)

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
