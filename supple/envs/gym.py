"""Gymnasium: ``gym/<id>``, and any ``gymnasium.vector.VectorEnv`` a user brings.

Our own vector environments reset within the step. Of others, all three autoreset modes are turned
into that: where an environment resets on the *next* step, that step becomes a bridge row with
``valid = False``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from tensordict import TensorDict
from torch import Tensor

from supple.envs import gym_facts
from supple.envs.base import Box, Discrete, Env, EnvSpec, reset_result, step_result
from supple.envs.gym_spaces import action_spec, flatten_batch, observation_widths
from supple.envs.gym_state import ResumableEnv, restores_exactly
from supple.errors import InputError
from supple.rng import derive_seed

SUCCESS_KEYS = ("success", "is_success")


class GymVector(Env):
    """A Gymnasium vector environment under the contract of ``envs/base.py``.

    Args:
        env: the vector environment, in any autoreset mode.
        task_id: how it is called in messages and files.
        device: where its tensors go.
        facts: further fields of the spec (``control_dt``, ``deployment`` …).

    Raises:
        InputError: images, or spaces without a flat form.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        task_id: str,
        device: torch.device,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._env: Any = env  # gymnasium's base class declares neither seed lists nor call()
        self._space = env.single_observation_space
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.spec = EnvSpec(
            task_id=task_id,
            num_envs=env.num_envs,
            observation=observation_widths(self._space, task_id),
            action=action_spec(env.single_action_space, task_id),
            device=device,
            **(facts or {}),
        )
        if isinstance(self.spec.action, Box):
            low, high = np.array(self.spec.action.low), np.array(self.spec.action.high)
            self._center, self._half = (high + low) / 2, (high - low) / 2
            self._action_dtype = env.single_action_space.dtype
        # Rows whose next step is only a reset (NEXT_STEP mode).
        self._bridge = np.zeros(env.num_envs, dtype=bool)
        self._closed = False

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start every environment afresh, each with a seed of its own."""
        seeds = None
        if seed is not None:
            seeds = [derive_seed(seed, index) for index in range(self.spec.num_envs)]
        obs, _ = self._env.reset(seed=seeds)
        self._bridge[:] = False
        return reset_result(self._tensors(self._flat(obs)), self.spec.num_envs)

    def step(self, action: Tensor) -> TensorDict:
        """Step every environment; see the contract."""
        obs, reward, terminated, truncated, info = self._env.step(self._physical(action))
        now = self._flat(obs)
        reward = np.array(reward, dtype=np.float32)
        terminated, truncated = np.array(terminated, dtype=bool), np.array(truncated, dtype=bool)
        done = terminated | truncated
        valid = ~self._bridge
        final = now
        if self._mode is AutoresetMode.NEXT_STEP:
            reward[self._bridge] = 0
            self._bridge = done
        elif done.any():
            if self._mode is AutoresetMode.SAME_STEP:
                final = self._patched(now, info, done)
            else:
                obs, _ = self._env.reset(options={"reset_mask": done})
                now = self._flat(obs)
        return step_result(
            observation=self._tensors(now),
            reward=self._tensor(reward),
            terminated=self._tensor(terminated),
            truncated=self._tensor(truncated),
            final_observation=self._tensors(final),
            valid=self._tensor(valid),
            success=self._success(info, done),
        )

    def render(self) -> np.ndarray:
        """A picture of environment 0."""
        if self._env.render_mode != "rgb_array":
            raise NotImplementedError("it has no rgb_array render mode")
        with _missing_packages(self.spec.task_id):
            pictures = self._env.render()
        if not pictures or pictures[0] is None:
            raise NotImplementedError("it returned no picture")
        return np.asarray(pictures[0])

    def state_dict(self) -> dict[str, Any]:
        """Every environment's complete state."""
        if not self.spec.exact_resume:
            return super().state_dict()
        return {"envs": list(self._env.call("get_state"))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value."""
        if not self.spec.exact_resume:
            super().load_state_dict(state)
        self._env.reset()  # allocates what stepping needs; its content is replaced next
        self._env.call("set_states", state["envs"])

    def close(self) -> None:
        """End the environments and their processes."""
        if not self._closed:
            self._closed = True
            self._env.close()

    def _physical(self, action: Tensor) -> np.ndarray:
        spec = self.spec.action
        if isinstance(spec, Discrete):
            return action.detach().cpu().numpy()
        policy = action.detach().cpu().numpy()
        if spec.clip:
            policy = policy.clip(-1, 1)
        physical: np.ndarray = (self._center + policy * self._half).astype(self._action_dtype)
        return physical

    def _flat(self, obs: Any) -> dict[str, np.ndarray]:
        return flatten_batch(self._space, obs)

    def _patched(
        self, now: dict[str, np.ndarray], info: Mapping[str, Any], done: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The observations before the reset in rows that ended, the current ones elsewhere."""
        if "final_obs" not in info:
            raise InputError(
                f"{self.spec.task_id} resets within the step but gives no info['final_obs']: use"
                " another autoreset mode, or add it to the environment"
            )
        final = {group: rows.copy() for group, rows in now.items()}
        for row in np.nonzero(done)[0]:
            one = _batch_of_one(info["final_obs"][row])
            for group, values in self._flat(one).items():
                final[group][row] = values[0]
        return final

    def _success(self, info: Mapping[str, Any], done: np.ndarray) -> Tensor | None:
        for key in SUCCESS_KEYS:
            ended = info.get("final_info")
            ended = ended if isinstance(ended, Mapping) else {}
            if key not in info and key not in ended:
                continue
            flags = np.zeros(self.spec.num_envs, dtype=bool)
            if key in info:
                flags |= np.asarray(info[key]).astype(bool)
            if key in ended:
                flags[done] = np.asarray(ended[key]).astype(bool)[done]
            return self._tensor(flags)
        return None

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.spec.device)

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {group: self._tensor(array) for group, array in arrays.items()}


def _batch_of_one(obs: Any) -> Any:
    if isinstance(obs, Mapping):
        return {key: _batch_of_one(value) for key, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_batch_of_one(value) for value in obs)
    return np.asarray(obs)[None]


def make_gym(
    task: str,
    *,
    num_envs: int,
    vectorization: Literal["sync", "async"],
    device: torch.device,
    seed: int,
    render: bool,
) -> GymVector:
    """``num_envs`` environments of a registered Gymnasium id.

    Raises:
        InputError: the id's packages are missing, or its spaces are not supported.
    """
    return wrap_factory(
        lambda **options: gymnasium.make(task, **options),
        task_id=f"gym/{task}",
        num_envs=num_envs,
        vectorization=vectorization,
        device=device,
        seed=seed,
        render=render,
    )


def wrap_factory(
    factory: Callable[..., gymnasium.Env[Any, Any]],
    *,
    task_id: str,
    num_envs: int,
    vectorization: Literal["sync", "async"],
    device: torch.device,
    seed: int,
    render: bool,
) -> GymVector:
    """A vector environment of our own, resetting within the step, from a single-env factory."""
    if render and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    options = {"render_mode": "rgb_array"} if render else {}
    with _missing_packages(task_id), quiet_mujoco():
        probe = factory(**options)
    facts = _facts(probe, task_id)

    def build(index: int) -> Callable[[], gymnasium.Env[Any, Any]]:
        def one() -> gymnasium.Env[Any, Any]:
            if multiprocessing.parent_process() is not None:
                # Ctrl-C reaches the whole process group; the run itself ends its workers.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            with quiet_mujoco():
                return ResumableEnv(factory(**options), index)

        return one

    builders = [build(index) for index in range(num_envs)]
    vector: VectorEnv[Any, Any, Any]
    if vectorization == "async":
        vector = AsyncVectorEnv(builders, autoreset_mode=AutoresetMode.SAME_STEP)
    else:
        vector = SyncVectorEnv(builders, autoreset_mode=AutoresetMode.SAME_STEP)
    probe.close()
    env = GymVector(vector, task_id=task_id, device=device, facts=facts)
    env.reset(seed)
    return env


def _facts(probe: gymnasium.Env[Any, Any], task_id: str) -> dict[str, Any]:
    widths = observation_widths(probe.observation_space, task_id)
    action = action_spec(probe.action_space, task_id)
    limit = probe.spec.max_episode_steps if probe.spec else None
    return {
        "max_episode_steps": limit,
        "control_dt": gym_facts.control_dt(probe),
        "exact_resume": restores_exactly(probe),
        "deployment": gym_facts.deployment(probe, action) if isinstance(action, Box) else None,
        "channels": gym_facts.channels(probe, widths["policy"]) if len(widths) == 1 else None,
    }


@contextmanager
def _missing_packages(task_id: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise InputError(
            f"{task_id} needs packages that are not installed: {error}; try pip install"
            ' "supple[mujoco]"'
        ) from error
    except gymnasium.error.Error as error:
        raise InputError(f"{task_id} cannot be made: {error}") from error


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Drop MuJoCo's deprecation notes about Gymnasium's own models; other warnings stay."""
    try:
        import mujoco
    except ImportError:
        yield
        return
    before = mujoco.get_mju_user_warning()

    def report(text: str | bytes) -> None:
        message = text.decode() if isinstance(text, bytes) else text
        if "deprecated" not in message:
            warnings.warn(message, stacklevel=2)

    mujoco.set_mju_user_warning(report)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
