"""Any RSL-RL ``VecEnv``: the interface of Isaac Lab's, mjlab's and many robots' training scripts.

It resets within the step and has no word for the observation before a reset. Where the simulator
beneath passes ``extras["final_obs"]`` on, that is taken; elsewhere ``has_final_obs`` is False.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from supple.envs.torch_sim import Groups, Outcome, TorchSim, require_final, unbounded
from supple.errors import InputError


def recognises(made: Any) -> bool:
    """Whether an object is a ``VecEnv``; its base class may be absent, or of another version."""
    needed = ("get_observations", "step", "num_envs", "num_actions", "episode_length_buf")
    return all(hasattr(made, name) for name in needed)


class RslRl(TorchSim):
    """A ``VecEnv`` under the contract of ``envs/base.py``; it is closed together with this one.

    Time-outs are those of ``extras["time_outs"]``, an entry that some environments leave behind
    from earlier steps: it is taken out as it is read. One that never writes it has its time-outs
    told by our own count of steps, unless it says ``cfg.is_finite_horizon``.

    Args:
        env: with ``reset()`` besides what ``VecEnv`` asks for.
        task_id: how it is called in messages and files.
        action_bound: what the policy's 1 means to the simulator.

    Raises:
        InputError: it cannot be reset, or names no group for the policy.
    """

    def __init__(self, env: Any, *, task_id: str, action_bound: float = 1.0) -> None:
        if not callable(getattr(env, "reset", None)):
            raise InputError(
                f"{task_id} cannot be reset: add reset(), which starts every environment and"
                " returns (observations, extras)"
            )
        self._env = env
        inner = getattr(env, "unwrapped", env)
        self._finite = bool(getattr(getattr(env, "cfg", None), "is_finite_horizon", False))
        device = torch.device(env.device)
        super().__init__(
            Groups(env.get_observations(), task_id),
            action=unbounded(env.num_actions, action_bound),
            task_id=task_id,
            num_envs=env.num_envs,
            device=device,
            max_episode_steps=int(torch.as_tensor(env.max_episode_length).max()),
            control_dt=getattr(inner, "step_dt", None),
            has_final_obs=bool(getattr(getattr(inner, "cfg", None), "compute_final_obs", False)),
        )
        self._limit = torch.as_tensor(env.max_episode_length, device=device)
        self._age = torch.zeros(env.num_envs, dtype=torch.int64, device=device)
        self._tells_time_outs = self._finite

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        self._age.zero_()
        # Its own get_observations() may reset everything, or return what another call left.
        made = self._env.reset()
        return dict(made[0] if isinstance(made, tuple) else made)

    def _advance(self, action: Tensor) -> Outcome:
        observation, reward, done, extras = self._env.step(action)
        ended = done.bool()
        self._age += 1
        # Taken out: what is not written again must not be read again.
        time_outs = extras.pop("time_outs", None)
        if time_outs is not None:
            self._tells_time_outs = True
        elif not self._tells_time_outs:
            time_outs = self._age >= self._limit
        truncated = ended & time_outs.bool() if time_outs is not None else torch.zeros_like(ended)
        self._age.masked_fill_(ended, 0)
        final = extras.pop("final_obs", None)
        if self.spec.has_final_obs:
            require_final(final, ended, self.spec.task_id)
        else:
            final = None
        return Outcome(
            dict(observation), reward, ended & ~truncated, truncated, final=final, extras=extras
        )

    def spread_ends(self, seed: int) -> None:
        """Begin at random counts of steps."""
        self._age.copy_(self._spread(self._limit, seed))
