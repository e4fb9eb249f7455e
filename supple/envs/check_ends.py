"""How ``supple.envs.check`` judges the ends of episodes: their flags, their reset, their last row.

As in ``check_rollout``, each ``check_...`` returns one sentence or raises ``BrokenError``. An end
proves nothing alone: every rule wants several, and no exception among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from supple.envs.base import EnvSpec
from supple.envs.check_rollout import BrokenError, Rollout

FEW = 3
"""Ends that must agree before they count as a fault."""
JUMP = 3.0
"""Times the longest ordinary step, above which an observation has been reset."""


@dataclass(frozen=True, slots=True)
class _End:
    row: int
    env: int
    length: int
    """Steps of the episode, without bridge rows."""
    first: bool
    """Whether it was the environment's first episode, which may have begun anywhere."""
    terminated: bool
    truncated: bool


def _ends(seen: Rollout) -> list[_End]:
    found = []
    for env in range(seen.reward.shape[1]):
        length, first = 0, True
        for row in range(len(seen.reward)):
            length += int(seen.valid[row, env])
            terminated, truncated = bool(seen.terminated[row, env]), bool(seen.truncated[row, env])
            if terminated or truncated:
                found.append(_End(row, env, length, first, terminated, truncated))
                length, first = 0, False
    return found


def check_flags(seen: Rollout, spec: EnvSpec) -> str:
    """``terminated`` is a true end and ``truncated`` a cut; neither stands for both."""
    ends, limit = _ends(seen), spec.max_episode_steps
    if len(ends) < FEW:
        return f"note: {len(ends)} episodes ended, too few to judge their flags: raise --steps"
    if all(end.terminated and end.truncated for end in ends):
        raise BrokenError(
            f"terminated and truncated are both set in all {len(ends)} ends, expected one of them: "
            "set terminated only where the task ended and truncated only where time ran out"
        )
    if limit is None:
        lengths = {end.length for end in ends}
        if len(lengths) == 1 and all(end.terminated for end in ends):
            return (
                f"note: all {len(ends)} episodes are terminated after {lengths.pop()} steps: if"
                " that is a time limit, set truncated there, or what follows counts for nothing"
            )
        return f"{len(ends)} ends, no time limit declared"
    at_limit = [end for end in ends if end.length == limit]
    if len(at_limit) >= FEW and not any(end.truncated for end in ends):
        raise BrokenError(
            f"all {len(at_limit)} episodes of max_episode_steps={limit} steps are terminated and "
            "none is truncated, expected a time-out to be truncated: set truncated there, or "
            "max_episode_steps=None where the horizon is part of the task"
        )
    early = sorted({end.length for end in ends if not end.first and end.length < limit})
    if len(early) >= FEW and not any(end.terminated for end in ends):
        raise BrokenError(
            f"episodes are truncated after {', '.join(map(str, early[:5]))} steps, before "
            f"max_episode_steps={limit}, and none is terminated, expected terminated where a task "
            "fails: a failure flagged as a time-out goes on being worth its next state"
        )
    return f"{len(ends)} ends, {sum(end.terminated for end in ends)} of them terminated"


def check_reset_time(seen: Rollout, spec: EnvSpec) -> str:
    """The observation jumps to the next episode in the row that ends one, not a row off."""
    stride = _strides(seen)
    ends = [end for end in _ends(seen) if 2 <= end.row < len(stride) - 1]
    ends = [end for end in ends if bool(seen.valid[end.row + 1, end.env])]
    if len(ends) < FEW:
        return f"note: {len(ends)} ends with steps around them, too few to judge: raise --steps"
    ordinary = seen.valid.clone()
    for end in _ends(seen):
        ordinary[max(end.row - 1, 0) : end.row + 2, end.env] = False
    if not ordinary.any():
        return "note: no step far from an end to compare with: raise --steps"
    longest = JUMP * float(stride[ordinary].max())
    for offset, when, fix in (
        (1, "late", "reset within the step that ends an episode, or mark the row with valid=False"),
        (-1, "early", "flag the end in the step whose observation is the reset's"),
    ):
        jumps = [float(stride[end.row + offset, end.env]) > longest for end in ends]
        stays = [float(stride[end.row, end.env]) <= longest for end in ends]
        if all(jumps) and all(stays):
            raise BrokenError(
                f"the observation jumps one step {when}, not in the row that ended, at all "
                f"{len(ends)} ends, expected the reset's observation there: {fix}"
            )
    return f"{len(ends)} ends were reset in their own row"


def check_fresh_final(seen: Rollout, spec: EnvSpec) -> str:
    """``final_observation`` is of this end, not kept from an earlier one."""
    if not spec.has_final_obs:
        return "not claimed to give final observations"
    final = torch.cat(list(seen.final.values()), dim=-1)
    before = _observations(seen)
    pairs, repeated, last = 0, 0, dict[int, _End]()
    for end in _ends(seen):
        previous = last.get(end.env)
        last[end.env] = end
        if previous is None or torch.equal(before[end.row, end.env], before[previous.row, end.env]):
            continue
        pairs += 1
        mine, theirs = final[end.row, end.env], final[previous.row, end.env]
        repeated += bool(mine.isfinite().all()) and torch.equal(mine, theirs)
    if pairs >= FEW and repeated == pairs:
        raise BrokenError(
            f"final_observation repeats that of the environment's previous end in all {pairs} "
            "later ends, expected this end's own: it is stale, read it again at every end"
        )
    return f"{pairs} later ends, each with a final observation of its own"


def _observations(seen: Rollout) -> Tensor:
    """(T + 1, N, D) of all groups."""
    return torch.cat(list(seen.observation.values()), dim=-1)


def _strides(seen: Rollout) -> Tensor:
    """How far each step moved the observation, in its own standard deviations, (T, N)."""
    now = _observations(seen)
    scale = now.flatten(0, 1).std(0).clamp_min(1e-6)
    strides: Tensor = ((now[1:] - now[:-1]) / scale).norm(dim=-1)
    return strides
