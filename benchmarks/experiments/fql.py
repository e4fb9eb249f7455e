"""The actor of flow Q-learning, for FlashSAC's critics: a policy held near the recorded actions.

A behaviour network learns, by flow matching, which actions the ring holds in a state. The one-step
policy, which acts, is pulled towards what the behaviour network makes of the same noise and climbs
the critic's value; ``--agent.bc-alpha`` weighs the pull against values in rewards as they came,
which is alpha as published. There is no entropy and no temperature, random actions do not come
first, and evaluation draws noise, anew each time. As published, too, the policy climbs the mean of
the critic's members. For one process.

    supple train TASK --agent benchmarks.experiments.fql:FQL --agent.bc-alpha 3
        --agent.actor-period 1 --agent.noise.max-hold 1 --replay.prefill FILE
        --diagnostics.no-enabled

Both networks have ``actor_blocks`` hidden layers of ``actor_hidden`` units.

Shapes: ``B`` rows, ``D`` observation width, ``A`` actions.
Source: arXiv:2502.02538, and arXiv:2603.04333, which learns online with it; seohongpark/fql
(agents/fql.py, utils/networks.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from supple.agents import FlashSAC
from supple.agents.base import concat
from supple.distributed import world
from supple.envs.base import Groups
from supple.errors import InputError
from supple.rng import derive_seed

FLOW_STEPS = 5
"""Euler steps by which the behaviour network makes an action; published are ten, for tasks with
longer actions."""


class Perceptron(nn.Sequential):
    """Linear layers with GELU between, Xavier-uniform weights.

    Args:
        widths: of input, hidden layers and output.
        generator: draws the weights.
    """

    def __init__(self, widths: Sequence[int], generator: torch.Generator) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            linear = nn.Linear(before, after, device=generator.device)
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU("tanh")]
        super().__init__(*layers[:-1])


class FQLActor(nn.Module):
    """Behaviour network and one-step policy.

    Args:
        inputs: D.
        actions: A.
        hidden: widths of the hidden layers.
        generator: draws the weights.
    """

    def __init__(
        self, inputs: int, actions: int, *, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.behaviour = Perceptron((inputs + actions + 1, *hidden, actions), generator)
        self.one_step = Perceptron((inputs + actions, *hidden, actions), generator)

    def forward(self, obs_BD: Tensor, noise_BA: Tensor) -> Tensor:
        """The policy's action before it is clipped, (B, A) float32."""
        action: Tensor = self.one_step(torch.cat((obs_BD, noise_BA), dim=-1))
        return action.float()

    def clipped(self, obs_BD: Tensor, noise_BA: Tensor) -> Tensor:
        """The policy's action, (B, A) in [-1, 1]."""
        action: Tensor = self(obs_BD, noise_BA)
        return action.clamp(-1, 1)

    def velocity(self, obs_BD: Tensor, at_BA: Tensor, time_B1: Tensor) -> Tensor:
        """Where the behaviour's flow goes from an action at a time in [0, 1], (B, A) float32."""
        found: Tensor = self.behaviour(torch.cat((obs_BD, at_BA, time_B1), dim=-1))
        return found.float()

    def recorded(self, obs_BD: Tensor, noise_BA: Tensor) -> Tensor:
        """An action such as the ring's, from noise, (B, A) in [-1, 1]."""
        at_BA = noise_BA
        for step in range(FLOW_STEPS):
            time_B1 = torch.full_like(at_BA[:, :1], step / FLOW_STEPS)
            at_BA = at_BA + self.velocity(obs_BD, at_BA, time_B1) / FLOW_STEPS
        return at_BA.clamp(-1, 1)


class Noiseless(nn.Module):
    """The one-step policy at noise zero: (B, D) -> actions (B, A)."""

    def __init__(self, actor: FQLActor, actions: int) -> None:
        super().__init__()
        self.actor, self._actions = copy.deepcopy(actor).requires_grad_(False), actions

    def forward(self, obs_BD: Tensor) -> Tensor:
        """Actions in [-1, 1]."""
        return self.actor.clipped(obs_BD, obs_BD.new_zeros(len(obs_BD), self._actions))


class FQL(FlashSAC):
    """FlashSAC's critics and replay with the actor of flow Q-learning.

    Raises:
        InputError: no weight of the pull towards the recorded actions, or several processes.
    """

    actor: Any  # FlashSAC's is a Gaussian

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.settings.bc_alpha == 0:
            raise InputError("FQL is held near the recorded actions by --agent.bc-alpha, got 0")
        if world().size > 1:  # the actor's step reads the rewards' scale of this process
            raise InputError("FQL learns in one process: leave out torchrun")
        self._acting = True

    def build_actor(self, inputs: int, generator: torch.Generator) -> Any:
        """Both networks, untrained."""
        hidden = [self.settings.actor_hidden] * self.settings.actor_blocks
        return FQLActor(inputs, self._num_actions, hidden=hidden, generator=generator)

    @torch.no_grad()
    def act(self, obs: Groups, *, explore: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """With noise of its own each step; without noise to evaluate."""
        if explore:
            return super().act(obs, explore=True)
        obs_ND = concat(obs, self.actor_groups)
        return self.actor.clipped(obs_ND, obs_ND.new_zeros(len(obs_ND), self._num_actions)), {}

    def policy(self) -> nn.Module:
        """The action at noise zero."""
        return Noiseless(self.actor, self._num_actions)

    def greedy(self) -> Callable[[Groups], Tensor]:
        """The policy as it is now, with noise of this moment of training."""
        actor = copy.deepcopy(self.actor)
        random = torch.Generator(self.device)
        random.manual_seed(derive_seed(self.updates, "FQL evaluation"))

        @torch.no_grad()
        def act(obs: Groups) -> Tensor:
            obs_ND = concat(obs, self.actor_groups)
            shape = (len(obs_ND), self._num_actions)
            noise_NA = torch.randn(shape, generator=random, device=self.device)
            action: Tensor = actor.clipped(obs_ND, noise_NA)
            return action

        return act

    def _explore(self, obs_ND: Tensor, fresh_NA: Tensor, uniform: Tensor) -> Tensor:
        action: Tensor = self.actor.clipped(obs_ND, self.noise.hold(fresh_NA, uniform))
        return action

    def _draw_noise(self) -> tuple[Tensor, ...]:
        """As FlashSAC; the actor's has two more parts, (B, 2 A + 1): flow matching takes them."""
        policy, *rest = super()._draw_noise()
        more = torch.randn(
            (len(policy), self._num_actions + 1),
            generator=self.generators["behaviour"],
            device=self.device,
        )
        return torch.cat((policy, more), dim=-1), *rest

    def _next_actions(self, obs_BD: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
        obs_BD = obs_BD.repeat(self.settings.next_actions, 1)
        return self.actor.clipped(obs_BD, noise_BA), torch.zeros_like(noise_BA[:, 0])

    def _update_actor(
        self,
        actor_obs_2BD: Tensor,
        critic_obs_2BD: Tensor,
        action_BA: Tensor,
        noise_BA: Tensor,
        uniform_BR: Tensor | None = None,
    ) -> dict[str, Tensor]:
        rows, width = action_BA.shape
        noise_BA, from_BA, normal_B1 = noise_BA.split((width, width, 1), dim=-1)
        time_B1 = torch.special.ndtr(normal_B1)  # uniform
        obs_BD = actor_obs_2BD[:rows]
        with self.compute.autocast(self.device):
            at_BA = torch.lerp(from_BA, action_BA, time_B1)
            flow = self.actor.velocity(obs_BD, at_BA, time_B1) - (action_BA - from_BA)
            with torch.no_grad():
                recorded_BA = self.actor.recorded(obs_BD, noise_BA)
            new_action_BA = self.actor(obs_BD, noise_BA)
            x_BD = torch.cat((critic_obs_2BD[:rows], new_action_BA.clamp(-1, 1)), dim=-1)
            prediction = self.critic(x_BD, train=False)
        value_B = self.critic.value(prediction, uniform_BR).mean(0)
        behaviour_loss = flow.square().mean()
        distance = (new_action_BA - recorded_BA).square().mean()
        # The critic's values are of scaled rewards: so is the weight, for Adam the same as neither.
        pull = self.settings.bc_alpha / self.reward_scaler.denominator()
        loss = behaviour_loss + pull * distance - value_B.mean()
        self._descend("actor", loss, self._actor_params)
        return {
            "actor/loss": loss.detach(),
            "actor/behaviour_loss": behaviour_loss.detach(),
            "actor/distance": distance.detach(),
            "actor/mean_action": new_action_BA.detach().mean(),
        }
