"""A frozen policy as plain functions of raw observations, whatever agent it came from.

What executes on the robot is described: tanh(mean) of FlashSAC, the mean of PPO's Gaussian clipped
where the environment clips. A recurrent policy is differentiated by the current observation, with
its memory held.

Shapes: ``N`` states, ``D`` observation width, ``H`` memory (0 without one), ``A`` actions, ``C``
choices, ``J`` candidate actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from supple.agents.actor import squashed_sample
from supple.agents.base import Agent
from supple.agents.distributions import SquashedGaussian
from supple.agents.flashsac import FlashSAC
from supple.agents.ppo import PPO
from supple.diagnostics.sensitivity import Function
from supple.envs.base import Box
from supple.errors import InputError

CANDIDATES = 16
"""Actions whose values are compared at each state: the deterministic one, the others drawn."""
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Functions of a frozen policy. Those that do not apply are None."""

    groups: tuple[str, ...]
    """Observation groups that it reads, side by side."""
    critic_groups: tuple[str, ...]
    memory: int
    """H."""
    step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(N, D), (N, H) to what the environment takes, and the memory afterwards."""
    sample: Callable[..., tuple[Tensor, Tensor]]
    """As ``step``, but drawn from the policy, with a third argument ``generator``."""
    logits: Function | None = None
    """(N, D), (N, H) to (N, C)."""
    command: Function | None = None
    """(N, D), (N, H) to commands in half ranges, (N, A)."""
    gaussian: Function | None = None
    """(N, D), (N, H) to means and log standard deviations before squashing, (N, 2 A)."""
    value: Function | None = None
    """Critic's observations (N, D) and actions (N, A) to the value that the actor climbs, (N,)."""
    no_value: str = ""
    """Why there is no ``value``."""
    alpha: float = 0.0
    """Weight of the entropy in ``value``'s units."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Ways to measure its sensitivity."""
        if self.logits is not None:
            return ("choice", "information")
        return ("action", "fisher", "critic") if self.value is not None else ("action", "fisher")

    def empty_memory(self, obs_ND: Tensor) -> Tensor:
        """What an episode begins with, (N, H)."""
        return obs_ND.new_zeros(len(obs_ND), self.memory)


def policy_of(agent: Agent, device: torch.device | str | None = None) -> Policy:
    """The policy of an agent as it is now, a copy that stays so.

    Args:
        agent: read only.
        device: where the copy computes; the agent's own by default.

    Raises:
        InputError: an agent that is not known here.
    """
    if isinstance(agent, FlashSAC):
        return _flashsac(agent, device or agent.device)
    if isinstance(agent, PPO):
        return _ppo(agent, device or agent.device)
    raise InputError(
        f"policy instability is measured of FlashSAC and PPO, got {type(agent).__name__}: describe"
        " it by a Policy (diagnostics/policies.py)"
    )


def _frozen(module: M, device: torch.device | str) -> M:
    return copy.deepcopy(module).to(device).requires_grad_(False)


def _flashsac(agent: FlashSAC, device: torch.device | str) -> Policy:
    actor, critic = _frozen(agent.actor, device), _frozen(agent.critic, device)
    samples = critic.draws.value

    def command(obs_ND: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(actor(obs_ND, train=False)[0])

    def value(obs_ND: Tensor, action_NA: Tensor) -> Tensor:
        prediction = critic(torch.cat((obs_ND, action_NA), dim=-1), train=False)
        if not samples:
            return critic.climbed(prediction)
        # The same evenly spaced noise everywhere: it is no input of the policy.
        even_M = torch.linspace(0.01, 0.99, samples, device=obs_ND.device)
        return critic.climbed(prediction, even_M.expand(len(obs_ND), -1).contiguous())

    def sample(
        obs_ND: Tensor, memory_NH: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(obs_ND, train=False)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return squashed_sample(mean, log_std, noise)[0], memory_NH

    return Policy(
        groups=agent.actor_groups,
        critic_groups=agent.critic_groups,
        memory=0,
        step=lambda obs_ND, memory_NH: (command(obs_ND), memory_NH),
        sample=sample,
        command=command,
        gaussian=lambda obs_ND, *_: torch.cat(actor(obs_ND, train=False), dim=-1),
        value=value,
        alpha=float(agent.log_alpha.detach().exp()),
    )


def _ppo(agent: PPO, device: torch.device | str) -> Policy:
    actor, distribution = _frozen(agent.actor, device), _frozen(agent.distribution, device)

    def head(obs_ND: Tensor, memory_NH: Tensor) -> Tensor:
        return actor.step(obs_ND, memory_NH)[0]

    def step(obs_ND: Tensor, memory_NH: Tensor) -> tuple[Tensor, Tensor]:
        out, after = actor.step(obs_ND, memory_NH)
        return distribution.mode(out), after

    def sample(
        obs_ND: Tensor, memory_NH: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        out, after = actor.step(obs_ND, memory_NH)
        params = distribution.params(out)
        draw = torch.rand if distribution.uniform else torch.randn
        shape = (len(out), agent.spec.action.size)
        found = distribution.sample(params, draw(shape, generator=generator, device=out.device))
        return distribution.action(found), after

    common: dict[str, Any] = {
        "groups": agent.actor_groups,
        "critic_groups": agent.critic_groups,
        "memory": agent.settings.memory,
        "step": step,
        "sample": sample,
        "no_value": "PPO's critic values states, not actions: there is no mode critic",
    }
    action = agent.spec.action
    if not isinstance(action, Box):
        return Policy(logits=head, **common)
    bounded = action.clip or isinstance(distribution, SquashedGaussian)

    def command(obs_ND: Tensor, memory_NH: Tensor) -> Tensor:
        mean = distribution.mode(head(obs_ND, memory_NH))
        return mean.clamp(-1, 1) if bounded else mean

    def gaussian(obs_ND: Tensor, memory_NH: Tensor) -> Tensor:
        return distribution.params(head(obs_ND, memory_NH))

    return Policy(command=command, gaussian=gaussian, **common)


@torch.no_grad()
def candidates(policy: Policy, obs_ND: Tensor, generator: torch.Generator) -> Tensor:
    """Actions to choose among at each state: the deterministic one first, (N, J, A)."""
    memory_NH = policy.empty_memory(obs_ND)
    drawn = [policy.sample(obs_ND, memory_NH, generator)[0] for _ in range(CANDIDATES - 1)]
    return torch.stack([policy.step(obs_ND, memory_NH)[0], *drawn], dim=1)


@torch.no_grad()
def preference_temperature(value: Function, alpha: float, obs_ND: Tensor, held: Tensor) -> float:
    """Of the softmax over candidates' values: the entropy's weight, unless the values dwarf it.

    Args:
        value: (N, D), (N, J, A) to (N, J).
        alpha: the entropy's weight.
        obs_ND: the critic's observations.
        held: candidates (N, J, A).
    """
    spread = float(value(obs_ND, held).std(-1).mean())
    return alpha if alpha > spread / 10 else max(spread, 1e-12)
