"""The other direction: an environment of the contract inside others' loops.

Policy actions in [-1, 1] go in, as everywhere here; observations are groups where there is more
than ``policy``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from supple.envs.base import Box, Env
from supple.errors import InputError


def as_gymnasium(env: Env) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """``env`` as a Gymnasium vector environment that resets within the step.

    ``info["final_obs"]`` holds the observations before the reset, as Gymnasium's own do, and
    ``info["valid"]``, (N,) bool, is False in rows that are no environment step.
    """
    return _GymnasiumVector(env)


def as_torchrl(env: Env) -> EnvBase:
    """``env`` as a torchrl environment of batch size ``[N]``, in the spelling of ``Replay.sample``.

    Its ``next`` observation is the true one, before a reset; ``reset`` with ``_reset`` then gives
    the new episodes', which began within the step. ``valid``, (N, 1) bool, is False in rows that
    are no environment step.

    Raises:
        InputError: it does not report the observation before a reset.
    """
    if not env.spec.has_final_obs:
        raise InputError(
            f"{env.spec.task_id} does not report the observation before a reset, which torchrl"
            " takes for the next one: make the simulator keep it"
        )
    return _TorchrlEnv(env)


class _GymnasiumVector(gymnasium.vector.VectorEnv[Any, Any, Any]):
    def __init__(self, env: Env) -> None:
        self.env, self.num_envs = env, env.spec.num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        widths = env.spec.observation
        boxes: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(-np.inf, np.inf, (width,)) for name, width in widths.items()
        }
        self._plain = set(widths) == {"policy"}
        self.single_observation_space = boxes["policy"] if self._plain else spaces.Dict(boxes)
        action = env.spec.action
        self.single_action_space = (
            spaces.Box(-1.0, 1.0, (action.size,))
            if isinstance(action, Box)
            else spaces.Discrete(action.n)
        )
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, self.num_envs)
        self.action_space = batch(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start every environment afresh.

        Raises:
            InputError: only some environments were asked for.
        """
        if options and "reset_mask" in options:
            raise InputError("it resets within the step: drop reset_mask")
        return self._shown(self.env.reset(seed)["observation"]), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every environment."""
        kind = torch.float32 if isinstance(self.env.spec.action, Box) else torch.int64
        given = torch.as_tensor(np.asarray(actions), dtype=kind, device=self.env.spec.device)
        step = self.env.step(given)
        reward, terminated, truncated, valid = (
            step[name].cpu().numpy() for name in ("reward", "terminated", "truncated", "valid")
        )
        info: dict[str, Any] = {"valid": valid}
        ended = terminated | truncated
        if ended.any() and self.env.spec.has_final_obs:
            info |= {
                "final_obs": self._final(step["final_observation"], ended),
                "_final_obs": ended,
            }
        return self._shown(step["observation"]), reward, terminated, truncated, info

    def render(self) -> Any:
        """A picture of the first environment, in a batch of one."""
        return (self.env.render(),)

    def close_extras(self, **options: Any) -> None:
        """Close the environment."""
        self.env.close()

    def _shown(self, groups: TensorDictBase) -> Any:
        arrays = {name: groups[name].cpu().numpy() for name in self.env.spec.observation}
        return arrays["policy"] if self._plain else arrays

    def _final(self, groups: TensorDictBase, ended: np.ndarray) -> np.ndarray:
        rows = self._shown(groups)
        found = np.empty(self.num_envs, dtype=object)
        for row in np.nonzero(ended)[0]:
            found[row] = rows[row] if self._plain else {name: rows[name][row] for name in rows}
        return found


class _TorchrlEnv(EnvBase):
    def __init__(self, env: Env) -> None:
        spec = env.spec
        super().__init__(device=spec.device, batch_size=[spec.num_envs])
        self.env = env
        self._seed: int | None = None
        self._after: TensorDict | None = None
        self._ended = torch.zeros(spec.num_envs, dtype=torch.bool, device=spec.device)
        rows, where = (spec.num_envs,), {"device": spec.device}
        groups = {
            name: Unbounded((*rows, width), **where) for name, width in spec.observation.items()
        }
        flag = Categorical(2, (*rows, 1), dtype=torch.bool, **where)
        self.observation_spec = Composite(
            observation=Composite(groups, shape=rows, **where), valid=flag, shape=rows, **where
        )
        action = spec.action
        self.action_spec = (
            Bounded(-1.0, 1.0, (*rows, action.size), dtype=torch.float32, **where)
            if isinstance(action, Box)
            else Categorical(action.n, rows, dtype=torch.int64, **where)
        )
        self.reward_spec = Unbounded((*rows, 1), **where)
        self.done_spec = Composite(
            {name: flag.clone() for name in ("done", "terminated", "truncated")},
            shape=rows,
            **where,
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDict:
        asked = None if tensordict is None else tensordict.get("_reset", None)
        rows = None if asked is None else asked.reshape(-1)
        if self._after is None or rows is None or not torch.equal(rows & self._ended, rows):
            if rows is not None and not bool(rows.all()):
                raise InputError(
                    f"{self.env.spec.task_id} resets environments as they end: reset those, or all"
                )
            first = self.env.reset(self._seed)
            self._seed = None
            self._after = first["observation"]
        self._ended = torch.zeros_like(self._ended)
        return self._result({"observation": self._after.clone()})

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        step = self.env.step(tensordict["action"])
        self._after, self._ended = step["observation"], step["terminated"] | step["truncated"]
        final = step["final_observation"]
        nexts = {
            name: final[name].where(self._ended[:, None], self._after[name])
            for name in self.env.spec.observation
        }
        return self._result(
            {"observation": nexts, "reward": step["reward"][:, None]},
            terminated=step["terminated"],
            truncated=step["truncated"],
            valid=step["valid"],
        )

    def _result(self, content: dict[str, Any], **flags: Tensor) -> TensorDict:
        never = torch.zeros_like(self._ended)
        terminated, truncated = flags.get("terminated", never), flags.get("truncated", never)
        told = {
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated | truncated,
            "valid": flags.get("valid", ~never),
        }
        columns = {name: value[:, None] for name, value in told.items()}
        return TensorDict({**content, **columns}, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self._seed = seed

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment."""
        self.env.close()
        super().close(raise_if_closed=raise_if_closed)
