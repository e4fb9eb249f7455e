"""The base of adapters to simulators in JAX: pure functions of a state, tensors through dlpack.

An ended environment goes back to the state its slot began with, as in MuJoCo Playground and Brax
themselves, so that nothing is simulated twice; the observation before is kept. The time limit is
counted here. The step is compiled once per number of environments.
"""

from __future__ import annotations

import contextlib
import functools
import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from supple.envs.base import Box, Deployment
from supple.envs.torch_sim import Groups, Outcome, TorchSim
from supple.errors import InputError
from supple.files import cache_folder
from supple.rng import derive_seed

# JAX would take three quarters of a GPU at its first use, and leave torch the rest.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

HEIGHT, WIDTH = 480, 640
"""Of pictures [pixels]."""
_FOLLOWS = 2
"""``mjCAMLIGHT_TRACKCOM``."""


class JaxSim(TorchSim):
    """A vectorised functional environment: ``reset(key) -> state``, ``step(state, action)``.

    A state has ``obs`` (an array, or a dict of groups), ``reward``, ``done``, ``info``, and its
    physics under ``physics_field``.

    Args:
        env: a single environment.
        physics_field: ``data`` (Playground) or ``pipeline_state`` (Brax).
        task_id: how it is called in messages and files.
        num_envs: how many.
        limit: steps after which an episode is truncated.
        action_repeat: simulator steps per step.
        device: where the tensors live, and where JAX computes.

    Raises:
        InputError: JAX has no such device.
    """

    def __init__(
        self,
        env: Any,
        physics_field: str,
        *,
        task_id: str,
        num_envs: int,
        limit: int,
        action_repeat: int,
        device: torch.device,
        deployment: Deployment | None = None,
    ) -> None:
        import jax

        self._env = env
        self._device, self._place = device, place_of(device, task_id)
        self._carry: Any = None
        self._reset_fn = jax.jit(lambda keys: settled(jax.vmap(env.reset)(keys)))
        self._step_fn = jax.jit(stepping(env, physics_field, limit, action_repeat))
        size = int(env.action_size)
        sample = self._groups_of(self._begin(0, num_envs))
        groups = Groups(sample, task_id)
        super().__init__(
            groups,
            action=Box(low=(-1.0,) * size, high=(1.0,) * size, clip=True),
            task_id=task_id,
            num_envs=num_envs,
            device=device,
            max_episode_steps=limit,
            control_dt=float(env.dt) * action_repeat,
            critic_contains_policy=begins_with_policy(groups(sample)),
            deployment=deployment,
        )
        self._seeds = 0

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        # Without a seed, the next of a sequence that the last seed began.
        self._seeds = seed if seed is not None else derive_seed(self._seeds, "next")
        return self._groups_of(self._begin(self._seeds, self.spec.num_envs))

    def _begin(self, seed: int, num_envs: int) -> Any:
        import jax

        keys = jax.random.split(jax.random.PRNGKey(seed % 2**31), num_envs)
        keys = jax.device_put(keys, self._place)
        state = self._reset_fn(keys)
        carry = (state, state, jax.numpy.zeros(num_envs, dtype=jax.numpy.int32))
        # Bound to the device, as actions from torch will bind it: another step for JAX to compile.
        self._carry = jax.device_put(carry, self._place)
        return state.obs

    def _advance(self, action: Tensor) -> Outcome:
        import jax

        self._carry, seen = self._step_fn(self._carry, jax.dlpack.from_dlpack(action.contiguous()))
        return Outcome(
            self._groups_of(self._carry[0].obs),
            self._tensor(seen["reward"]),
            self._tensor(seen["terminated"]),
            self._tensor(seen["truncated"]),
            final=self._groups_of(seen["obs"]),
        )

    def spread_ends(self, seed: int) -> None:
        """Begin at random counts of steps."""
        import jax

        counts = self._random_counts(self.spec.max_episode_steps or 1, seed).int().cpu().numpy()
        state, first, _ = self._carry
        self._carry = (state, first, jax.device_put(counts, self._place))

    def _groups_of(self, obs: Any) -> dict[str, Tensor]:
        if isinstance(obs, Mapping):
            return {name: self._tensor(rows) for name, rows in obs.items()}
        return {"state": self._tensor(obs)}

    def _tensor(self, array: Any) -> Tensor:
        return torch.utils.dlpack.from_dlpack(array).to(self._device)

    @abstractmethod
    def render(self) -> Any:
        """A picture of environment 0, (480, 640, 3) uint8."""

    def _first_state(self) -> Any:
        """Environment 0's state, for drawing."""
        import jax

        return jax.tree_util.tree_map(lambda leaf: leaf[0], self._carry[0])


def place_of(device: torch.device, task_id: str) -> Any:
    """JAX's device for a device of torch; both share its memory.

    What JAX compiles for a GPU is kept for the environments of evaluations and films, and for later
    runs, in a folder of supple's where none is set. On CPUs it may refuse what it kept itself
    (jax-ml/jax#38445).

    Raises:
        InputError: JAX has none, as it is installed.
    """
    import jax

    if device.type == "cuda" and not jax.config.jax_compilation_cache_dir:
        # Heeded from the first compilation on: this comes before any model is made.
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
    try:
        return jax.devices("gpu" if device.type == "cuda" else "cpu")[device.index or 0]
    except (RuntimeError, IndexError) as error:
        raise InputError(
            f"{task_id} on {device}: JAX has no such device here; pip install 'jax[cuda13]', or"
            " take --device cpu"
        ) from error


def computing_on(device: torch.device, task_id: str) -> contextlib.AbstractContextManager[Any]:
    """A block in which JAX makes its arrays there, as models of environments are.

    Raises:
        InputError: JAX has no such device.
    """
    place = place_of(device, task_id)
    import jax

    context: contextlib.AbstractContextManager[Any] = jax.default_device(place)
    return context


def camera_of(model: Any) -> str | None:
    """The first of a MuJoCo model's cameras that follows the robot, else the first it has."""
    following = [index for index in range(model.ncam) if model.cam_mode[index] == _FOLLOWS]
    chosen = (following or list(range(model.ncam)))[:1]
    return next((model.camera(index).name or None for index in chosen), None)


def begins_with_policy(groups: Mapping[str, Tensor]) -> bool:
    """Whether the critic's numbers, (N, D), begin with the very ones of the policy."""
    policy, critic = groups["policy"], groups.get("critic")
    return critic is not None and torch.equal(critic[:, : policy.shape[1]], policy)


def stepping(env: Any, physics_field: str, limit: int, action_repeat: int) -> Any:
    """One vector step as a pure function of (state, state at the start, steps so far)."""
    import jax
    import jax.numpy as jnp

    advance = jax.vmap(env.step)

    def step(carry: Any, action: Any) -> tuple[Any, dict[str, Any]]:
        state, first, count = carry
        reward = jnp.zeros_like(state.reward)
        for _ in range(action_repeat):
            state = advance(state, action)
            reward = reward + state.reward
        count = count + 1
        terminated = state.done > 0
        truncated = count >= limit
        ended = terminated | truncated

        seen = {
            "obs": state.obs,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
        }
        back = functools.partial(where_ended, ended)
        physics = jax.tree_util.tree_map(
            back, getattr(first, physics_field), getattr(state, physics_field)
        )
        obs = jax.tree_util.tree_map(back, first.obs, state.obs)
        done = jnp.zeros_like(state.done)
        restarted = state.replace(**{physics_field: physics}, obs=obs, done=done)
        return (settled(restarted), first, jnp.where(ended, 0, count)), seen

    return step


def settled(tree: Any) -> Any:
    """The same without JAX's weak types, for which it would compile the second step again."""
    import jax

    return jax.tree_util.tree_map(
        lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype) if leaf.weak_type else leaf,
        tree,
    )


def where_ended(ended: Any, fresh: Any, now: Any) -> Any:
    """Rows of ``fresh`` where ended, else of ``now``; what has no row per environment stays."""
    import jax.numpy as jnp

    # On Warp the contacts of all environments share one list, which each step makes anew.
    if now.shape[:1] != ended.shape:
        return now
    return jnp.where(ended.reshape(-1, *[1] * (now.ndim - 1)), fresh, now)
