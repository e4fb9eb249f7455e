"""The transitions that diagnostics are measured on: raw, drawn by generators of their own.

* ``anchor``: uniform over the replay ring (PPO: over its last rollouts), drawn once early in the
  run and kept in every checkpoint, for every comparison across time.
* ``recent``: of the newest tenth of the ring (PPO: the newest rollout), drawn anew each time.

Observations are stored raw: each checkpoint applies its own normalisers, so that what moved is the
network, not the scale it reads.

Shapes: ``N`` transitions, ``D`` observation width, ``A`` actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from supple.agents.base import concat
from supple.errors import InputError
from supple.replay import Replay
from supple.rng import derive_seed

ROWS = 2048
"""Transitions of a data set [spec of the diagnostics, 1.2]."""
CANDIDATES = 4
"""Rows looked at per row that is drawn, of which some may be invalid or drawn twice."""
NEWEST = 0.1
"""Share of the ring that ``recent`` comes from."""


def generator_for(device: torch.device | str, seed: int, *names: str | int) -> torch.Generator:
    """A generator of one purpose, which shares no state with those of training.

    Args:
        device: where it draws.
        seed: of the run.
        names: for example the update's number and the metric.
    """
    return torch.Generator(device).manual_seed(derive_seed(seed, "diagnostics", *names))


@dataclass(frozen=True, kw_only=True, slots=True)
class Transitions:
    """Steps of an environment as they were stored."""

    observation: dict[str, Tensor]
    """Each group (N, D) float32, raw."""
    next_observation: dict[str, Tensor]
    """What followed, before any reset."""
    action: Tensor
    """(N, A) as the policy chose it, or (N,) int64."""
    reward: Tensor
    """Raw, (N,)."""
    terminated: Tensor
    """(N,) bool."""
    truncated: Tensor
    episode: Tensor
    """A number per episode, the same within it, (N,) int64."""
    step: Tensor
    """Within the episode, (N,) int64."""

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self.reward.device

    def obs(self, names: tuple[str, ...]) -> Tensor:
        """Groups side by side, (N, D)."""
        return concat(self.observation, names)

    def next_obs(self, names: tuple[str, ...]) -> Tensor:
        """Groups of what followed, side by side, (N, D)."""
        return concat(self.next_observation, names)

    def rows(self, index: Tensor | slice) -> Transitions:
        """Some of them."""
        return self._map(lambda value: value[index])

    def spread(self, count: int) -> Transitions:
        """At most so many of them, evenly over time: neighbours in time are alike.

        Which of each stretch is drawn: a fixed stride may meet the same environments every time.
        """
        if count >= len(self):
            return self
        edges = torch.arange(count + 1) * len(self) // count
        random = torch.Generator().manual_seed(len(self))
        place = torch.rand(count, generator=random, dtype=torch.float64) * edges.diff()
        return self.rows((edges[:-1] + place.long()).to(self.device))

    def to(self, device: torch.device | str) -> Transitions:
        """On another device."""
        return self._map(lambda value: value.to(device))

    def _map(self, change: Any) -> Transitions:
        changed: dict[str, Any] = {}
        for name, value in self.state_dict().items():
            grouped = isinstance(value, dict)
            changed[name] = {g: change(v) for g, v in value.items()} if grouped else change(value)
        return Transitions(**changed)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Transitions:
        """What ``state_dict`` gave."""
        return Transitions(**state)

    @staticmethod
    def join(parts: Sequence[Transitions]) -> Transitions:
        """One after another; episodes of different parts stay different.

        Raises:
            InputError: nothing to join, or other observation groups.
        """
        if not parts or len({tuple(sorted(part.observation)) for part in parts}) != 1:
            raise InputError("joining transitions needs at least one part and the same groups")
        first, fields = parts[0], [item.name for item in dataclasses.fields(Transitions)]
        joined: dict[str, Any] = {}
        for name in fields:
            values = [getattr(part, name) for part in parts]
            if name in ("observation", "next_observation"):
                groups = getattr(first, name)
                joined[name] = {g: torch.cat([value[g] for value in values]) for g in groups}
            else:
                joined[name] = torch.cat(values)
        offset, episodes = 0, []
        for part in parts:
            episodes.append(part.episode + offset)
            offset += int(part.episode.max()) + 1
        return Transitions(**(joined | {"episode": torch.cat(episodes)}))


@torch.no_grad()
def draw(
    replay: Replay, rows: int, *, generator: torch.Generator, newest: float = 1.0
) -> Transitions:
    """Valid transitions of a ring without replacement, fewer where it holds fewer.

    Reads the ring, changes nothing; right after an on-policy update it still finds the rollout.

    Args:
        replay: the ring.
        rows: how many.
        generator: on the ring's device.
        newest: share of the stored vector steps, from the newest, that they come from.

    Raises:
        InputError: no valid row is stored.
    """
    stored, envs = replay.stored_rows(newest), replay.num_envs
    total = len(stored) * envs
    # A permutation of a large ring would be larger than all that is drawn from it.
    spare = CANDIDATES * rows
    if total <= spare:
        picked = torch.randperm(total, generator=generator, device=replay.device)
    else:
        picked = torch.randint(total, (spare,), generator=generator, device=replay.device).unique()
        order = torch.randperm(len(picked), generator=generator, device=replay.device)
        picked = picked[order]
    cells = stored[picked // envs] * envs + picked % envs
    picked = picked[replay.columns["valid"].flatten()[cells]][:rows]
    if not len(picked):
        raise InputError("the replay ring holds no valid transition yet: collect more steps first")
    # In time order, so that a fold of rows holds whole pieces of episodes.
    picked = picked.sort().values
    place, env = picked // envs, picked % envs
    found = replay.transitions(stored[place] * envs + env)
    key = torch.stack((env, place - found["step"]))
    episode = torch.unique(key, dim=1, return_inverse=True)[1]
    return Transitions(episode=episode, **found)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSets:
    """What a checkpoint brings along, and what ``diagnose`` adds; any may be missing."""

    recent: Transitions | None = None
    anchor: Transitions | None = None
    rollout: Transitions | None = None
    """Whole episodes of the frozen deterministic policy, in order."""
    sampled: Transitions | None = None
    """Whole episodes with actions drawn from the policy, in order: what critics predict."""

    @property
    def stored(self) -> bool:
        """Whether any comes from the run itself."""
        return self.recent is not None or self.anchor is not None

    def to(self, device: torch.device) -> DataSets:
        """On another device."""
        sets = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        there = {name: found.to(device) for name, found in sets.items() if found is not None}
        return DataSets(**there)

    def current(self) -> Transitions:
        """``recent``, or what there is instead.

        Raises:
            InputError: nothing at all.
        """
        for found in (self.recent, self.anchor, self.sampled, self.rollout):
            if found is not None:
                return found
        raise InputError(
            "there are no transitions to measure on: use a checkpoint written with"
            " --diagnostics.enabled, or give rollouts"
        )

    def comparable(self) -> Transitions:
        """``anchor``, or what there is instead."""
        return self.anchor if self.anchor is not None else self.current()
