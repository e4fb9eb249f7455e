"""FlashSAC as the diagnostics see it.

Shapes: ``N`` transitions, ``D`` widths of inputs, ``A`` actions, ``E`` members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from supple.agents.actor import LOG_STD_HIGH, LOG_STD_LOW, Actor, squashed_sample
from supple.agents.adam import Adam
from supple.agents.critics import CategoricalCritic, HeadCritic
from supple.agents.flashsac import FlashSAC
from supple.agents.flow_critics import FlowCritic
from supple.diagnostics.channels import actuators_of
from supple.diagnostics.data import Transitions, generator_for
from supple.diagnostics.subject import Moments, Subject
from supple.diagnostics.views import ActorView, Objective, calibrate, critic_view
from supple.errors import InputError

UNDONE = 1 - 1e-6
"""Up to here float32 has enough digits to undo tanh."""


class FlashSACSubject(Subject):
    """``critic`` is the ensemble, ``target_critic`` its average; values are soft and scaled."""

    agent: FlashSAC
    learning = ("actor", "critic")
    critic_role = "critic"
    discrete = False
    squashed = bounded = True
    log_std_range = (LOG_STD_LOW, LOG_STD_HIGH)

    def __init__(self, agent: FlashSAC, **facts: Any) -> None:
        super().__init__(agent, **facts)
        for network, kinds in ((agent.actor, (Actor,)), (agent.critic, (HeadCritic, FlowCritic))):
            if not isinstance(network, kinds):
                raise InputError(
                    f"diagnostics look into {' and '.join(kind.__name__ for kind in kinds)}, got"
                    f" {type(network).__name__}: train with --diagnostics.no-enabled, or write a"
                    " Subject for it (diagnostics/subject.py)"
                )
        self._use(agent.actor, agent.critic, agent.target_critic)
        self.joints = actuators_of(agent.spec).names
        self.gamma = agent.settings.gamma
        self.joins = agent.critic.joins
        self.n_step = agent.settings.n_step
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

    def _next_drawn(self, data: Transitions) -> tuple[Tensor, Tensor]:
        """What a critic reads of next steps with drawn actions, and what these cost of entropy."""
        agent = self.agent
        mean, log_std = self._actor(data.next_obs(agent.actor_groups), train=False)
        noise = torch.randn(mean.shape, generator=self.generator("policy"), device=agent.device)
        action, log_prob = squashed_sample(mean, log_std, noise)
        x_ND = torch.cat((data.next_obs(agent.critic_groups), action), dim=-1)
        return x_ND, self.alpha * log_prob

    @torch.no_grad()
    def next_values(self, data: Transitions) -> Tensor:
        """Soft: of drawn actions, less what they cost of entropy."""
        view, (x_ND, cost_N) = self.views["critic"], self._next_drawn(data)
        return self.joined(view.outputs(view.module, x_ND)[..., 0]) - cost_N

    @torch.no_grad()
    def _bellman(self, data: Transitions) -> tuple[Tensor, Tensor]:
        """The target network's one-step target, as ``Critic.target`` gives it."""
        agent = self.agent
        x_ND, cost_N = self._next_drawn(data)
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
            cost_N,
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

    @torch.no_grad()
    def entropy_cost(self, data: Transitions) -> Tensor:
        """Of the squashed Gaussian; at the bounds, of the likeliest draw that leads there.

        A policy that pushes against a bound is sure of what it does: the bound itself would look
        like a draw of many deviations, and its return like a great bonus.
        """
        mean, log_std = self._actor(data.obs(self.agent.actor_groups), train=False)
        before = torch.atanh(data.action.clamp(-UNDONE, UNDONE))
        likeliest = torch.where(data.action > 0, before.maximum(mean), before.minimum(mean))
        before = torch.where(data.action.abs() >= UNDONE, likeliest, before)
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

    def moments(self, role: str) -> Moments:
        """Of its own Adam."""
        agent = self.agent
        adam: Adam = agent._optimizers[role]
        steps = agent._actor_updates if role == "actor" else agent.updates
        rate = agent.rate_scale * agent.learning_rate(steps)
        # A critic's loss is the mean over its members, its objective here their sum.
        share = 1.0 if role == "actor" else 1 / self._critic.size.members
        return Moments(adam.mean, adam.square, steps, rate, share, adam.decays)

    def projected(self, role: str) -> bool:
        """As its switch says."""
        settings = self.agent.settings
        return settings.project_actor if role == "actor" else settings.project_critic

    def fresh(self, number: int, data: Transitions) -> Subject:
        """Built as ``FlashSAC`` builds them."""
        agent = self.agent
        generator = generator_for(agent.device, self.seed, "fresh", number)
        actor, critic = agent.build_networks(generator)
        found = copy.copy(self)
        found._use(actor, critic, copy.deepcopy(critic))
        obs = torch.cat([each(agent.actor_groups) for each in (data.obs, data.next_obs)])
        calibrate(found._actor, lambda: found._actor(obs, train=True))
        x_ND = torch.cat([each("critic", data) for each in (found.inputs, found.next_inputs)])
        for network in (found._critic, found._target):
            calibrate(network, partial(network, x_ND, train=True))
        return found
