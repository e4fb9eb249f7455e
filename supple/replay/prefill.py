"""Starting a ring from recorded transitions.

File format: one ``.safetensors`` with ``M`` transitions in the order they were recorded:
``observation/<group>`` and ``next_observation/<group>`` (M, D) for every group, ``action`` (M, A)
in the policy's [-1, 1] (or (M,) choices), ``reward`` (M,), ``terminated`` and ``truncated`` (M,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from supple.envs.base import Box, Discrete
from supple.errors import InputError
from supple.replay.buffer import Replay
from supple.replay.plan import FARTHEST, OBS_DTYPES


@torch.no_grad()
def prefill(replay: Replay, path: Path, *, reward_limit: float = math.inf) -> int:
    """Load recorded transitions into an empty ring.

    The recording is cut into ``N`` equal stretches, one per environment (at most ``N - 1``
    transitions at its end are left out). Where a next observation is not the following
    observation, the row is stored as truncated, so that no n-step window crosses the gap.

    Args:
        replay: an empty ring with room for all of it.
        path: the file.
        reward_limit: no reward may be farther from 0 (``--env.reward-limit``).

    Returns:
        How many transitions were loaded.

    Raises:
        InputError: the ring is not empty or too small, or the file is not of this format.
    """
    if replay.vector_steps:
        raise InputError(f"prefill needs an empty replay ring, this one has {replay.size} rows")
    data = _read(replay, path, reward_limit)
    envs = replay.num_envs
    rows = len(data["reward"]) // envs
    if not 1 <= rows <= replay.num_rows:
        raise InputError(
            f"{path} has {len(data['reward'])} transitions, the ring takes {envs} to"
            f" {replay.num_rows * envs}: set --replay.capacity to fit"
        )
    # (rows, N, ...): environment e holds recorded transitions e * rows ... (e + 1) * rows - 1.
    by_row = {
        key: value[: rows * envs].unflatten(0, (envs, rows)).transpose(0, 1)
        for key, value in data.items()
    }
    terminated, truncated = by_row["terminated"].bool(), by_row["truncated"].bool()
    gap = torch.zeros_like(terminated)
    for group in replay.storage:
        following, current = by_row[f"next_observation/{group}"], by_row[f"observation/{group}"]
        gap[:-1] |= (following[:-1] != current[1:]).any(-1)
    gap[-1] = True  # what follows the recording is a reset
    truncated |= gap & ~terminated
    ended = (terminated | truncated).flatten()
    finals = int(ended.sum())
    if finals > replay.plan.final_rows:
        needed = math.ceil(finals / (replay.num_rows * envs) * 1e6) / 1e6
        raise InputError(
            f"{path} has {finals} final observations, the ring holds {replay.plan.final_rows}:"
            f" raise --replay.final-fraction to {needed:.6f}"
        )
    slot = torch.where(ended, ended.cumsum(0) - 1, -1).view(rows, envs)
    columns = {
        "action": by_row["action"],
        "reward": by_row["reward"],
        "terminated": terminated,
        "truncated": truncated,
        "valid": torch.ones_like(terminated),
        "step_in_episode": _steps_since_end(terminated | truncated),
        "final_slot": slot,
    }
    for name, column in columns.items():
        replay.columns[name][:rows] = column.to(replay.columns[name].dtype)
    for group in replay.storage:
        following = by_row[f"next_observation/{group}"]
        replay.ring(group)[:rows] = by_row[f"observation/{group}"].to(replay.device)
        replay.ring(group)[rows] = following[-1]
        table = replay.final_table(group)
        table[:finals] = following.flatten(0, 1)[ended].to(table.dtype)
    replay.adopt_prefilled(rows, torch.nonzero(ended).squeeze(-1))
    return rows * envs


def _steps_since_end(ended: Tensor) -> Tensor:
    """Steps since the last ended row, (rows, N), counting from 0."""
    index = torch.arange(len(ended), device=ended.device)[:, None]
    last_end = torch.where(ended, index, -1).cummax(0).values
    before = torch.cat((torch.full_like(last_end[:1], -1), last_end[:-1]))
    return index - before - 1


def _read(replay: Replay, path: Path, reward_limit: float) -> Mapping[str, Tensor]:
    try:
        data = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read recorded transitions from {path}: {error}") from error
    spec = replay.spec
    action = (spec.action.size,) if isinstance(spec.action, Box) else ()
    shapes: dict[str, tuple[int, ...]] = {
        "action": action,
        "reward": (),
        "terminated": (),
        "truncated": (),
    }
    for group, width in spec.observation.items():
        shapes[f"observation/{group}"] = shapes[f"next_observation/{group}"] = (width,)
    missing = shapes.keys() - data.keys()
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: see supple/replay/prefill.py")
    length = len(data["action"]) if data["action"].ndim else 0
    for key, shape in shapes.items():
        if tuple(data[key].shape) != (length, *shape):
            raise InputError(
                f"{path}: {key} expected shape {(length, *shape)}, got {tuple(data[key].shape)}"
            )
        observed = key.startswith(("observation/", "next_observation/"))
        stored = data[key].to(OBS_DTYPES[replay.settings.obs_dtype]) if observed else data[key]
        if not bool((stored.float().abs() <= FARTHEST).all()):  # NaN is never smaller
            raise InputError(
                f"{path}: {key} holds NaN or infinity, a size beyond {FARTHEST:g}, or what"
                f" {stored.dtype} cannot hold"
            )
    for key in ("terminated", "truncated"):
        if not bool(((data[key] == 0) | (data[key] == 1)).all()):
            raise InputError(f"{path}: {key} holds other numbers than 0 and 1: make it booleans")
    if isinstance(spec.action, Discrete):
        choices = torch.arange(spec.action.n, dtype=torch.float64)
        if not bool(torch.isin(data["action"].double(), choices).all()):
            raise InputError(
                f"{path}: action holds other numbers than the choices 0 to {spec.action.n - 1}:"
                " count them from 0"
            )
    beyond = (data["reward"].double().abs() > reward_limit).nonzero()
    if len(beyond):
        row = int(beyond[0])
        raise InputError(
            f"{path}: row {row} has the reward {float(data['reward'][row]):.4g}, beyond"
            f" --env.reward-limit {reward_limit:g}: it would set the scale of all others; leave"
            " such rows out, or raise the limit"
        )
    if isinstance(spec.action, Box) and spec.action.clip and length:
        farthest = float(data["action"].abs().max())
        if farthest > 1 + 1e-6:
            raise InputError(
                f"{path}: actions reach {farthest:.4g}, expected the policy's [-1, 1]: map the"
                " simulator's bounds to it, and clip what lies beyond"
            )
    return {key: data[key].to(replay.device) for key in shapes}
