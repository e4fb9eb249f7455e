"""What ``supple.envs.check`` records of an environment, and how it judges the record.

Each ``check_...`` returns one sentence for a finding, or raises ``BrokenError`` with what was
expected, what was got and how to fix it.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import STEP_FIELDS, Box, Discrete, Env, EnvSpec


class BrokenError(Exception):
    """A check failed; the text is its finding's detail."""


@contextmanager
def calling(where: str) -> Iterator[None]:
    """Turn an exception of the environment into a failure that says where it came from."""
    try:
        yield
    except BrokenError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
        place = f", at {own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""
        raise BrokenError(
            f"{where} raised {type(error).__name__}: {error}{place}: expected no exception"
        ) from error


@dataclass(frozen=True, slots=True)
class Rollout:
    """Copies, on the CPU, of everything ``T`` steps returned."""

    observation: dict[str, Tensor]
    """Per group (T + 1, N, D), the reset's first; (T, N, D) without a reset."""
    final: dict[str, Tensor]
    """Per group (T, N, D)."""
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    overwritten: str | None
    """The first returned tensor that a later step changed."""

    @property
    def ended(self) -> Tensor:
        """(T, N) bool."""
        return self.terminated | self.truncated

    def series(self) -> dict[str, tuple[int, Tensor]]:
        """Every defined number, by name: the step of its first entry (0 is the reset), values."""
        ended = self.ended.unsqueeze(-1)
        taken = len(self.reward)
        found = {
            f"observation/{group}": (1 + taken - len(values), values)
            for group, values in self.observation.items()
        }
        for group, values in self.final.items():
            found[f"final_observation/{group}"] = (1, torch.where(ended, values, 0.0))
        for name in STEP_FIELDS:
            found[name] = (1, getattr(self, name))
        return found


def roll_on(env: Env, actions: Tensor, seed: int | None) -> Rollout:
    """Step ``env`` with (T, ...) actions, after a reset unless ``seed`` is None.

    Raises:
        BrokenError: the environment raised, or its results are laid out wrongly.
    """
    spec = env.spec
    returned: list[tuple[str, TensorDict]] = []
    copies: list[TensorDict] = []
    if seed is not None:
        with calling(f"reset(seed={seed})"):
            first = env.reset(seed)
        _check_layout(first, spec, "reset()", reset=True)
        returned.append(("reset()", first))
        copies.append(first.clone())
    for index, action in enumerate(actions, start=1):
        given = action.clone()
        with calling(f"step {index}"):
            step = env.step(given)
        _check_layout(step, spec, f"step {index}", reset=False)
        returned.append((f"step {index}", step))
        copies.append(step.clone())
        if not torch.equal(given, action):
            raise BrokenError(
                f"step {index} changed the action tensor it was given, expected it untouched: "
                "clone the action before scaling or clipping it in place"
            )
    overwritten = _first_overwritten(returned, copies)
    steps = copies if seed is None else copies[1:]

    def stacked(key: str | tuple[str, str], source: Sequence[TensorDict]) -> Tensor:
        return torch.stack([item[key].cpu() for item in source])

    return Rollout(
        {group: stacked(("observation", group), copies) for group in spec.observation},
        {group: stacked(("final_observation", group), steps) for group in spec.observation},
        stacked("reward", steps),
        stacked("terminated", steps),
        stacked("truncated", steps),
        stacked("valid", steps),
        overwritten,
    )


def _first_overwritten(
    returned: Sequence[tuple[str, TensorDict]], copies: Sequence[TensorDict]
) -> str | None:
    for (where, now), then in zip(returned, copies, strict=True):
        for key in then.keys(include_nested=True, leaves_only=True):
            if not _equal(now[key], then[key]).all():
                name = key if isinstance(key, str) else "/".join(key)
                return f"{name} of {where}"
    return None


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Element by element; NaN equals NaN."""
    return (a == b) | ((a != a) & (b != b))


def first_difference(a: Rollout, b: Rollout) -> tuple[int, str, float] | None:
    """The first step at which two rollouts differ, the field, and the relative difference."""
    found: list[tuple[int, str, float]] = []
    others = b.series()
    for name, (offset, values) in a.series().items():
        other = others[name][1]
        length = min(len(values), len(other))
        mine, theirs = values[:length].flatten(1), other[:length].flatten(1)
        steps = (~_equal(mine, theirs)).any(1).nonzero()
        if len(steps):
            row = int(steps[0])
            x, y = mine[row].double(), theirs[row].double()
            size = ((x - y).abs() / (1 + x.abs())).nan_to_num(math.inf).max()
            found.append((row + offset, name, float(size)))
    return min(found, default=None)


def check_spec(spec: object) -> str:
    """The static facts agree with each other and survive ``spec.json``."""
    if not isinstance(spec, EnvSpec):
        raise BrokenError(
            f"env.spec is a {type(spec).__name__}, expected a supple.envs.base.EnvSpec"
        )
    action: object = spec.action
    widths = spec.observation
    privileged = spec.critic_contains_policy
    rules = [
        (spec.num_envs >= 1, f"num_envs={spec.num_envs}: expected >= 1"),
        ("policy" in widths, f"observation groups {sorted(widths)}: expected one named 'policy'"),
        (all(width >= 1 for width in widths.values()), f"widths {dict(widths)}: expected >= 1"),
        (
            not privileged or widths.get("critic", 0) >= widths.get("policy", 0),
            "critic_contains_policy is True, expected a 'critic' group at least as wide as "
            "'policy': add the group, or set it False",
        ),
        (
            spec.max_episode_steps is None or spec.max_episode_steps >= 1,
            f"max_episode_steps={spec.max_episode_steps}: expected >= 1, or None",
        ),
        (
            spec.control_dt is None or 0 < spec.control_dt < math.inf,
            f"control_dt={spec.control_dt}: expected seconds > 0, or None",
        ),
    ]
    if isinstance(action, Discrete):
        rules.append((action.n >= 2, f"Discrete(n={action.n}): expected n >= 2"))
    elif isinstance(action, Box):
        ordered = len(action.low) == len(action.high) >= 1 and all(
            -math.inf < low < high < math.inf
            for low, high in zip(action.low, action.high, strict=True)
        )
        rules.append((ordered, f"{action}: expected finite low < high for every action"))
    else:
        rules.append((False, f"action is a {type(action).__name__}: expected Box or Discrete"))
    rules += [
        (
            len([c for c in spec.channels or () if c.group == group]) in (0, width),
            f"channels describe another number of entries than the {width} of group {group!r}: "
            "list one channel per entry",
        )
        for group, width in widths.items()
    ]
    for kept, problem in rules:
        if not kept:
            raise BrokenError(f"spec: {problem}")
    again = EnvSpec.from_json(json.loads(json.dumps(spec.to_json())))
    for item in fields(spec):
        told, read = getattr(spec, item.name), getattr(again, item.name)
        if told != read:
            raise BrokenError(
                f"spec: {item.name} differs after a round trip through JSON, expected {told}, got "
                f"{read}: use plain int, float, str and tuples in EnvSpec, lists in its mappings"
            )
    return f"{spec.task_id}: {spec.num_envs} environments, groups {dict(widths)}"


def check_finite(seen: Rollout, spec: EnvSpec) -> str:
    """No NaN and no infinity where a number is defined."""
    for name, (offset, values) in seen.series().items():
        if name.startswith("final_observation") and not spec.has_final_obs:
            continue
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            raise BrokenError(
                f"{name} holds {float(values[tuple(bad[0])])} at step {int(bad[0][0]) + offset} of "
                f"environment {int(bad[0][1])}, expected finite numbers: end such an episode "
                "before its state diverges"
            )
    return "every observation and reward is finite"


def check_aliasing(seen: Rollout, spec: EnvSpec) -> str:
    """What a step returned stays as it was."""
    if seen.overwritten is not None:
        raise BrokenError(
            f"{seen.overwritten} was changed by a later step, expected it untouched: clone the "
            "simulator's buffers before returning them"
        )
    return "no later step changed a returned tensor"


def check_bridge_rows(seen: Rollout, spec: EnvSpec) -> str:
    """A row that is no environment step carries neither an end nor a reward."""
    bridge = ~seen.valid
    for name, values in (("an end", seen.ended), ("a reward", seen.reward != 0)):
        bad = (bridge & values).nonzero()
        if len(bad):
            raise BrokenError(
                f"the row of environment {int(bad[0][1])} at step {int(bad[0][0]) + 1} has valid "
                f"False and carries {name}, expected none: only valid rows may"
            )
    if bridge.all():
        raise BrokenError("valid is False in every row, expected True wherever a step was taken")
    return f"{int(bridge.sum())} bridge rows, all empty"


def check_final_observation(seen: Rollout, spec: EnvSpec) -> str:
    """``final_observation`` is what the episode reached, not what the reset returned."""
    if not spec.has_final_obs:
        return "note: has_final_obs is False: off-policy agents refuse this environment"
    steps = len(seen.reward)
    now = torch.cat(list(seen.observation.values()), dim=-1)
    before, after = now[: steps - 1], now[1:steps]
    # The last step is left out: only the row after an end tells which kind of reset it was.
    final = torch.cat(list(seen.final.values()), dim=-1)[: steps - 1]
    bridged = ~seen.valid[1:].unsqueeze(-1)
    reset = torch.where(bridged, now[2:], after)
    ended = seen.ended[:-1]
    if not ended.any():
        return f"note: no episode ended early enough in {steps} steps to see one: raise --steps"
    constant = bool((now == now[0, 0]).all())
    kinds = {
        "terminated": seen.terminated[:-1],
        "truncated": (seen.truncated & ~seen.terminated)[:-1],
    }
    for kind, rows in kinds.items():
        if rows.any() and not constant and bool((final[rows] == reset[rows]).all()):
            raise BrokenError(
                "final_observation equals the observation after the reset in all "
                f"{int(rows.sum())} {kind} rows, expected the one before it: copy the observation "
                "before resetting, or set has_final_obs=False; if nothing was reset, reset it"
            )
    inside = seen.valid[:-1] & ~ended
    moved = (after != before).any(-1)
    if inside.any() and moved[inside].all() and not (final != before).any(-1)[ended].any():
        raise BrokenError(
            f"final_observation equals the previous step's observation in all {int(ended.sum())} "
            "rows that ended, though every other step changed it, expected the one after the last "
            "action: read it after stepping the simulator"
        )
    # Recomputed after the reset with fresh noise, it equals neither; only distances tell.
    scale = now.flatten(0, 1).std(0).clamp_min(1e-6)
    jump = ((final - before) / scale).norm(dim=-1)[ended]
    to_reset = ((final - reset) / scale).norm(dim=-1)[ended]
    stride = ((after - before) / scale).norm(dim=-1)[inside]
    if (
        len(jump) >= 3
        and len(stride)
        and bool(((jump > 3 * stride.max()) & (jump > to_reset)).all())
    ):
        raise BrokenError(
            "final_observation is far from the previous observation and closer to the one after "
            f"the reset in all {len(jump)} rows that ended, expected the reverse: compute it "
            "before resetting"
        )
    return f"{len(jump)} rows ended with the observation before their reset"


def check_auto_reset(seen: Rollout, spec: EnvSpec) -> str:
    """An ended environment starts again, by itself."""
    ended_before = seen.ended.cumsum(0) - seen.ended.int() > 0
    later = ended_before & seen.valid
    if not later.any():
        return f"note: no step after an end in {len(seen.reward)} steps: raise --steps"
    ran_before = (seen.valid & ~seen.ended & ~ended_before).sum(0) >= 2
    watched = ran_before & (later.sum(0) >= 3)
    stuck = watched & (seen.ended | ~later).all(0)
    if watched.any() and bool((stuck == watched).all()):
        raise BrokenError(
            "every step after an environment's first end is an end too, in all "
            f"{int(watched.sum())} environments seen, expected new episodes: reset ended "
            "environments within step()"
        )
    return "ended environments started again"


def check_time_limit(seen: Rollout, spec: EnvSpec) -> str:
    """Episodes end no later than the limit, and are truncated there."""
    limit = spec.max_episode_steps
    length = torch.zeros(spec.num_envs, dtype=torch.int64)
    longest, cut_at = 0, []
    for valid, ended, terminated in zip(seen.valid, seen.ended, seen.terminated, strict=True):
        length = length + valid
        longest = max(longest, int(length.max()))
        cut_at += length[ended & ~terminated].tolist()
        length = torch.where(ended, 0, length)
    lengths = sorted(set(cut_at))
    if limit is None:
        if not lengths:
            return "no time limit declared, none seen"
        after = ", ".join(map(str, lengths[:5])) + (", ..." if len(lengths) > 5 else "")
        return (
            f"note: max_episode_steps is None, yet episodes are truncated after {after} steps:"
            " where that is a time limit, set it in the spec"
        )
    if longest > limit:
        raise BrokenError(
            f"an episode ran for {longest} steps or more, expected an end by "
            f"max_episode_steps={limit}: correct the spec, or truncate there"
        )
    if len(cut_at) >= 2 and len(lengths) == 1 and lengths[0] < limit:
        raise BrokenError(
            f"all {len(cut_at)} truncated episodes had {lengths[0]} steps, expected "
            f"max_episode_steps={limit}: set it to {lengths[0]}"
        )
    if lengths and lengths[0] < limit:
        return f"note: episodes are also truncated before step {limit}, first after {lengths[0]}"
    if longest < limit:
        return f"note: no episode reached the limit of {limit} steps: raise --steps to see it"
    return f"episodes end by step {limit}"


def check_critic_group(seen: Rollout, spec: EnvSpec) -> str:
    """``critic_contains_policy`` is true of the numbers, where claimed."""
    if not spec.critic_contains_policy:
        return "not claimed to contain the policy group"
    policy, critic = seen.observation["policy"], seen.observation["critic"]
    for column in range(policy.shape[-1]):
        if not (critic == policy[..., column : column + 1]).flatten(0, 1).all(0).any():
            raise BrokenError(
                f"entry {column} of the policy group is no entry of the critic group, expected "
                "every one because critic_contains_policy is True: add them, or set it False"
            )
    return "the critic group holds every entry of the policy group"


def check_plain(value: object, where: str) -> None:
    """A checkpoint can hold ``value``: tensors, arrays, numbers, strings, dicts and lists.

    Raises:
        BrokenError: it cannot; the text names the entry.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif not (
        value is None or isinstance(value, Tensor | np.ndarray | np.generic | int | float | str)
    ):
        raise BrokenError(
            f"{where} is a {type(value).__name__}, expected tensors, arrays, numbers, strings and "
            "dicts of them: convert it, a checkpoint cannot hold it"
        )


def _check_layout(result: object, spec: EnvSpec, where: str, *, reset: bool) -> None:
    """Keys, shapes, dtypes and devices of what ``reset`` or ``step`` returned."""
    if not isinstance(result, TensorDict):
        raise BrokenError(
            f"{where} returned a {type(result).__name__}, expected a TensorDict: build it with "
            f"supple.envs.base.{'reset_result' if reset else 'step_result'}"
        )
    if tuple(result.batch_size) != (spec.num_envs,):
        raise BrokenError(
            f"{where} returned batch_size {tuple(result.batch_size)}, expected ({spec.num_envs},)"
        )
    for name in ("observation",) if reset else ("observation", "final_observation"):
        groups = result.get(name, None)
        got = sorted(groups.keys()) if isinstance(groups, TensorDict) else groups
        if got != sorted(spec.observation):
            raise BrokenError(
                f"{where} returned the groups {got} in {name!r}, expected "
                f"{sorted(spec.observation)}: return exactly the groups of spec.observation"
            )
        for group, width in spec.observation.items():
            _check_tensor(groups[group], f"{where}: {name}/{group}", spec, torch.float32, (width,))
    if reset:
        return
    present = set(result.keys())
    for name in (*STEP_FIELDS, *(present & {"success"})):
        if name not in present:
            raise BrokenError(
                f"{where} returned no {name!r}, expected a tensor ({spec.num_envs},): build the "
                "result with supple.envs.base.step_result"
            )
        dtype = torch.float32 if name == "reward" else torch.bool
        _check_tensor(result[name], f"{where}: {name}", spec, dtype, ())


def _check_tensor(
    value: Tensor, where: str, spec: EnvSpec, dtype: torch.dtype, width: tuple[int, ...]
) -> None:
    shape = (spec.num_envs, *width)
    if tuple(value.shape) != shape:
        raise BrokenError(f"{where} has shape {tuple(value.shape)}, expected {shape}: reshape it")
    if value.dtype != dtype:
        raise BrokenError(
            f"{where} is {value.dtype}, expected {dtype}: convert it with .to({dtype})"
        )
    wanted = spec.device
    if value.device.type != wanted.type or wanted.index not in (None, value.device.index):
        raise BrokenError(
            f"{where} is on {value.device}, expected spec.device={wanted}: move it there"
        )
