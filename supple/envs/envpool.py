"""``envpool/<id>``: envpool's compiled simulators, stepped in its own threads.

Gym, dm_control, MetaWorld, MyoSuite and ports of MuJoCo Playground, whose ``privileged_state`` is
the ``critic`` group here. They run in torch's number of threads, ``--threads``. envpool resets on
the next step; where an episode ends, only those environments are reset, at once, so that every row
is a step. What envpool returns is never written again, and is copied once, to float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from supple.envs import envpool_facts
from supple.envs.config import FLAG, override
from supple.envs.gym import SEED_BITS, GymVector
from supple.envs.gym_packages import importing_packages
from supple.envs.gym_state import SUCCESS_KEYS
from supple.errors import InputError, how_to_install
from supple.rng import derive_seed

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

_GROUPS = {"state": "policy", "privileged_state": "critic"}
"""MuJoCo Playground's names."""
TAKES_CONFIG = True
DRAWS = False
FIXED = {
    "num_envs": "--env.num-envs",
    "batch_size": "--env.num-envs",
    "num_threads": "--threads",
    "seed": "--seed",
    "env_seed": "--seed",
}


class PoolVector(VectorEnv[Any, Any, Any]):
    """A pool as a Gymnasium vector environment that its caller resets, some rows at a time.

    envpool takes seeds only when a pool is made: a reset with one makes another pool.

    Args:
        name: envpool's id.
        options: of ``envpool.make_gymnasium``.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
    render_mode = None
    """It draws nothing: where envpool finds no OpenGL it ends the process."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        import envpool

        self._name, self._options = name, dict(options)
        self.num_envs = self._options["num_envs"]
        described: Any = envpool.make_spec(name, **self._options)
        self.config: Any = described.config
        self.single_observation_space = _grouped_space(described.observation_space)
        self.single_action_space = described.action_space
        self._pool: Any = None
        self._obs: Any = None

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset every environment, or those of ``options["reset_mask"]``, (N,) bool."""
        if seed is not None or self._pool is None:
            self._remake(seed or 0)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            obs, _ = self._pool.reset()
            return _grouped(obs), {}
        rows = np.nonzero(mask)[0].astype(np.int32)
        fresh, _ = self._pool.reset(rows)  # rows in the order asked for
        return _with_rows(self._obs, rows, _grouped(fresh)), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every environment."""
        obs, reward, terminated, truncated, info = self._pool.step(actions)
        self._obs = _grouped(obs)
        told = [np.asarray(info[key]).astype(bool) for key in SUCCESS_KEYS if key in info]
        return self._obs, reward, terminated, truncated, {"success": told[0]} if told else {}

    def close_extras(self, **options: Any) -> None:
        """End the pool's threads."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _remake(self, seed: int) -> None:
        import envpool

        self.close_extras()
        seeds = [derive_seed(seed, row) & SEED_BITS for row in range(self.num_envs)]
        self._pool = envpool.make_gymnasium(self._name, seed=seeds, **self._options)


def _grouped_space(space: Any) -> Any:
    if isinstance(space, spaces.Dict) and set(space.spaces) == set(_GROUPS):
        return spaces.Dict({group: space[name] for name, group in _GROUPS.items()})
    return space


def _grouped(obs: Any) -> Any:
    if isinstance(obs, Mapping) and set(obs) == set(_GROUPS):
        return {group: obs[name] for name, group in _GROUPS.items()}
    return obs


def _with_rows(old: Any, rows: np.ndarray, new: Any) -> Any:
    """A copy of ``old`` with some rows replaced."""
    if isinstance(old, Mapping):
        return {key: _with_rows(old[key], rows, new[key]) for key in old}
    if isinstance(old, tuple):
        return tuple(_with_rows(mine, rows, theirs) for mine, theirs in zip(old, new, strict=True))
    replaced = np.array(old)
    replaced[rows] = new
    return replaced


def status() -> str:
    """Whether envpool is installed."""
    if importlib.util.find_spec("envpool") is None:
        return f"not installed: {how_to_install('envpool')}"
    return "installed"


def tasks() -> tuple[str, ...]:
    """Envpool's ids; none without it."""
    if importlib.util.find_spec("envpool") is None:
        return ()
    import envpool

    return tuple(sorted(envpool.list_all_envs()))


def exists(name: str) -> bool:
    """Whether it is one of them; unknown, and so true, without envpool."""
    known = tasks()
    return not known or name in known


def _arguments(name: str, config: Sequence[str], task_id: str) -> dict[str, Any]:
    """What ``--env.config`` changes of a pool's configuration.

    Raises:
        InputError: an entry is unknown, or of another kind.
    """
    if not config:
        return {}
    import envpool

    known = envpool.make_spec(name).config._asdict()
    chosen = {key: known[key] for key in override(known, config, task_id, fixed=FIXED)}
    limit = chosen.get("max_episode_steps")
    if limit is not None and limit < 1:
        raise InputError(f"{FLAG} max_episode_steps={limit}: {task_id} takes 1 step or more")
    try:
        envpool.make_spec(name, **chosen)
    except TypeError as error:
        asked = " ".join(config)
        raise InputError(
            f"{FLAG} {asked}: {task_id} refuses it; expected a whole number wherever it has one"
        ) from error
    return chosen


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> GymVector:
    """Environments of an envpool id.

    Raises:
        InputError: envpool is missing, or the id's spaces are not supported.
    """
    task_id = f"envpool/{name}"
    if importlib.util.find_spec("envpool") is None:
        raise InputError(f"{task_id} needs envpool: {how_to_install('envpool')}")
    options = {"num_envs": settings.num_envs, "num_threads": torch.get_num_threads()}
    with importing_packages(task_id):
        options |= _arguments(name, settings.config, task_id)
        vector = PoolVector(name, options)
    facts = envpool_facts.facts(vector.config, vector.single_observation_space)
    return GymVector(
        vector, task_id=task_id, device=device, facts=facts, action_bound=settings.action_bound
    )
