"""Whole episodes of a frozen policy, as diagnostics need them: nominal, drawn, or disturbed.

Shapes: ``N`` environments, ``n`` steps of all episodes, ``D`` observation width, ``H`` memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from supple.agents.base import concat
from supple.diagnostics.data import Transitions
from supple.diagnostics.policies import Policy
from supple.envs.base import Discrete, Env
from supple.errors import InputError, SimulatorError
from supple.evaluate import MAX_EPISODE_STEPS
from supple.rng import derive_seed

Sense = Callable[[Tensor, int], Tensor]
"""What the policy is told instead of its observation (N, D), at a step of the episode."""
Choose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Observations and memories to actions and memories."""


class Rollout(NamedTuple):
    """Episodes one after another, each in order of time."""

    steps: Transitions
    memory: Tensor
    """Before each step, (n, H)."""
    told: Tensor
    """What the policy was told, its groups side by side, (n, D)."""
    returns: Tensor
    """Undiscounted, of each episode, float64."""

    @property
    def episodes(self) -> int:
        """How many."""
        return len(self.returns)


@torch.no_grad()
def roll(
    policy: Policy,
    env: Env,
    *,
    episodes: int,
    seed: int,
    draw: torch.Generator | None = None,
    random: torch.Generator | None = None,
    sense: Sense | None = None,
) -> Rollout:
    """Run whole episodes, in rounds: all environments start together, each counts until its end.

    Args:
        policy: frozen.
        env: nobody else's.
        episodes: how many, >= 1.
        seed: of the first round; equal seeds give equal starts in all, whatever is sensed.
        draw: take actions drawn from the policy with these numbers, not the most likely ones.
        random: take uniform actions instead of the policy's.
        sense: disturbs what the policy is told.

    Raises:
        InputError: ``episodes`` < 1.
        SimulatorError: a reward is not finite.
    """
    if episodes < 1:
        raise InputError(f"episodes must be >= 1, got {episodes}")
    choose: Choose = policy.step
    if draw is not None:
        choose = partial(policy.sample, generator=draw)
    elif random is not None:
        choose = _uniform(env, random)
    rounds: list[Rollout] = []
    while (done := sum(found.episodes for found in rounds)) < episodes:
        counted = min(env.spec.num_envs, episodes - done)
        # What is left of the environment's own stream depends on how episodes went.
        own_seed = derive_seed(seed, len(rounds)) if rounds else seed
        rounds.append(_round(policy, env, choose, own_seed, counted, sense))
    return Rollout(
        Transitions.join([found.steps for found in rounds]),
        *(torch.cat(found) for found in zip(*(each[1:] for each in rounds), strict=True)),
    )


def _uniform(env: Env, generator: torch.Generator) -> Choose:
    action, count, device = env.spec.action, env.spec.num_envs, env.spec.device

    def choose(obs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(action, Discrete):
            return torch.randint(action.n, (count,), generator=generator).to(device), memory
        uniform = torch.rand(count, action.size, generator=generator)
        return (2 * uniform - 1).to(device), memory

    return choose


def _round(
    policy: Policy, env: Env, choose: Choose, seed: int, counted: int, sense: Sense | None
) -> Rollout:
    """One episode of each of the first ``counted`` environments."""
    obs = env.reset(seed)["observation"].to_dict()
    memory = policy.empty_memory(concat(obs, policy.groups))
    running = torch.arange(env.spec.num_envs, device=env.spec.device) < counted
    rows: list[dict[str, Tensor]] = []
    for number in range(env.spec.max_episode_steps or MAX_EPISODE_STEPS):
        told = concat(obs, policy.groups)
        told = sense(told.cpu(), number).to(told.device) if sense else told
        action, after = choose(told, memory)
        step = env.step(action).to_dict()
        ended = step["terminated"] | step["truncated"]
        live = running & step["valid"]
        rows.append({"live": live, "action": action, "memory": memory, "told": told})
        rows[-1] |= {name: step[name] for name in ("reward", "terminated", "truncated")}
        for group, own in obs.items():
            final, following = step["final_observation"][group], step["observation"][group]
            after_step = torch.where(ended[:, None], final, following)
            rows[-1] |= {f"obs {group}": own, f"next {group}": after_step}
        running = running & ~(live & ended)
        obs, memory = step["observation"], torch.where(ended[:, None], 0, after)
        if not bool(running.any()):
            break
    return _collected(env, {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]})


def _collected(env: Env, column_NT: dict[str, Tensor]) -> Rollout:
    """The live steps, environment after environment.

    Raises:
        SimulatorError: a reward is not finite.
    """
    live_NT = column_NT.pop("live")
    reward_NT = torch.where(live_NT, column_NT["reward"].double(), 0)
    if not bool(reward_NT.isfinite().all()):
        raise SimulatorError(f"{env.spec.task_id}: a reward of a diagnostic episode is not finite")
    flat = {name: column[live_NT] for name, column in column_NT.items()}
    episode_NT = torch.arange(len(live_NT), device=live_NT.device)[:, None].expand_as(live_NT)
    steps = Transitions(
        observation={group: flat[f"obs {group}"] for group in env.spec.observation},
        next_observation={group: flat[f"next {group}"] for group in env.spec.observation},
        **{name: flat[name] for name in ("action", "reward", "terminated", "truncated")},
        episode=episode_NT[live_NT],
        step=(live_NT.long().cumsum(1) - 1)[live_NT],
    )
    counted = live_NT.any(1)
    return Rollout(steps, flat["memory"], flat["told"], reward_NT.sum(1)[counted])
