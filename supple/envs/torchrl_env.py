"""Any torchrl ``EnvBase``: its tensors are taken as they are, its resets happen within our step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import ActionSpec, Box, Discrete
from supple.envs.torch_sim import Groups, Outcome, TorchSim, unbounded
from supple.errors import InputError


def recognises(made: Any) -> bool:
    """Whether an object is an ``EnvBase``, without importing torchrl to find out."""
    return any(
        kind.__name__ == "EnvBase" and kind.__module__.startswith("torchrl.")
        for kind in type(made).__mro__
    )


class TorchRL(TorchSim):
    """An ``EnvBase`` under the contract of ``envs/base.py``; it is closed together with this one.

    Args:
        env: batched as ``[N]``, or not batched, which is taken for one environment.
        task_id: how it is called in messages and files.
        action_bound: what the policy's 1 means where the action spec has no bounds.

    Raises:
        InputError: other batches, several agents, or spaces without a flat form.
    """

    def __init__(self, env: Any, *, task_id: str, action_bound: float = 1.0) -> None:
        self._env = env
        batch = tuple(env.batch_size)
        if len(batch) > 1:
            raise InputError(
                f"{task_id} has batch_size {batch}: expected [N] or []; flatten it to one axis"
            )
        self._batched = len(batch) == 1
        self._keys = [key for key in env.observation_keys if key not in env.state_keys]
        size = batch[0] if self._batched else 1
        self._now: Any = env.reset()
        kind = self._action_kind(task_id, action_bound)
        super().__init__(
            Groups(self._observation(self._now), task_id),
            action=kind,
            task_id=task_id,
            num_envs=size,
            device=torch.device(env.device or "cpu"),
        )

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        if seed is not None:
            self._env.set_seed(seed % 2**31)
        self._now = self._env.reset()
        return self._observation(self._now)

    def _advance(self, action: Tensor) -> Outcome:
        if isinstance(self.spec.action, Discrete) and self._one_hot:
            action = torch.nn.functional.one_hot(action, self.spec.action.n)
        action = action.reshape(self._env.action_spec.shape).to(self._env.action_spec.dtype)
        given = self._now.set(self._env.action_key, action)
        taken, self._now = self._env.step_and_maybe_reset(given)
        reached = taken["next"]
        done, truncated = reached["done"], reached.get("truncated", None)
        truncated = torch.zeros_like(done) if truncated is None else truncated
        # An environment that only says "done" means an end of the task.
        terminated = reached.get("terminated", None)
        terminated = done & ~truncated if terminated is None else terminated
        return Outcome(
            self._observation(self._now),
            reached[self._env.reward_key],
            terminated,
            truncated,
            final=self._observation(reached),
            success=reached.get("success", None),
        )

    def _observation(self, step: TensorDict) -> dict[str, Any]:
        """Groups where it names a policy's, else all its entries joined in its own order."""
        if "policy" in self._keys:
            return {key: self._rows(step[key]) for key in self._keys if isinstance(key, str)}
        return {"policy": {str(key): self._rows(step[key]) for key in self._keys}}

    def _rows(self, value: Tensor) -> Tensor:
        return value if self._batched else value.unsqueeze(0)

    def _action_kind(self, task_id: str, bound: float) -> ActionSpec:
        spec = self._env.action_spec
        name = type(spec).__name__
        self._one_hot = name == "OneHot"
        if name in ("OneHot", "Categorical"):
            return Discrete(n=int(spec.space.n))
        size = int(spec.shape[-1])
        if name.startswith("Bounded"):
            low, high = (
                side.reshape(-1, size)[0].tolist() for side in (spec.space.low, spec.space.high)
            )
            finite = [math.isfinite(each) for each in (*low, *high)]
            if all(finite) and spec.dtype.is_floating_point:
                return Box(low=tuple(low), high=tuple(high), clip=True)
            if not any(finite):
                return unbounded(size, bound)
            raise InputError(
                f"{task_id} has the action spec {spec.dtype} from {low} to {high}: expected"
                " floating-point numbers that are bounded all or none"
            )
        if name.startswith("Unbounded"):
            return unbounded(size, bound)
        raise InputError(
            f"{task_id} has action spec {name}: expected Bounded, Unbounded, OneHot or Categorical"
        )
