"""The states at which a policy is looked at.

Shapes: ``N`` states, ``D`` observation width, ``H`` memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from supple.diagnostics.data import Transitions
from supple.diagnostics.policies import Policy
from supple.diagnostics.rollouts import Rollout


class States(NamedTuple):
    """Where a policy is looked at."""

    obs: Tensor
    """Raw, the policy's groups side by side, (N, D)."""
    critic_obs: Tensor
    memory: Tensor
    """(N, H)."""
    episode: Tensor
    """(N,) int64."""
    source: str
    """``rollout``: whole episodes in order; else the name of a stored set."""

    @property
    def in_order(self) -> bool:
        """Whether consecutive states follow each other."""
        return self.source == "rollout"

    def rows(self, index: Tensor | slice) -> States:
        """Some of them."""
        return self._map(lambda part: part[index])

    def cpu(self) -> States:
        """On the processor, where directions are computed."""
        return self._map(lambda part: part.cpu())

    def _map(self, change: Callable[[Tensor], Tensor]) -> States:
        parts = (self.obs, self.critic_obs, self.memory, self.episode)
        obs, critic_obs, memory, episode = (change(part) for part in parts)
        return States(obs, critic_obs, memory, episode, self.source)

    def thinned(self, most: int) -> States:
        """Evenly many of each episode."""
        return self.rows(slice(None, None, -(-len(self.obs) // most)))

    def first(self, episodes: int, most: int) -> States:
        """Every step of the first episodes: of as many as ``most`` states hold, of one at least."""
        ends = self.episode.unique_consecutive(return_counts=True)[1].cumsum(0)[:episodes]
        return self.rows(slice(int(ends[max(int((ends <= most).sum()), 1) - 1])))


def visited(policy: Policy, rollout: Rollout) -> States:
    """The states of whole episodes, as the policy was told them."""
    critic_obs = rollout.steps.obs(policy.critic_groups)
    return States(rollout.told, critic_obs, rollout.memory, rollout.steps.episode, "rollout")


def stored(policy: Policy, data: Transitions, name: str) -> States:
    """States from replay; a recurrent policy meets them with an empty memory."""
    obs = data.obs(policy.groups)
    return States(obs, data.obs(policy.critic_groups), policy.empty_memory(obs), data.episode, name)
