"""Gymnasium: ``gym/<id>``, and any ``gymnasium.vector.VectorEnv`` a user brings.

Our own vector environments reset within the step. Of others, all three autoreset modes are turned
into that: where an environment resets on the *next* step, that step becomes a bridge row with
``valid = False``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from tensordict import TensorDict
from torch import Tensor

from supple.envs import gym_facts
from supple.envs.base import Env, EnvSpec, reset_result, step_result
from supple.envs.config import FLAG, arguments
from supple.envs.gym_packages import (
    draw_without_display,
    drawing,
    floor_beneath,
    follow_robot,
    importing_packages,
    quiet_mujoco,
)
from supple.envs.gym_spaces import ActionMap, Flattener
from supple.envs.gym_state import SUCCESS_KEYS, ManagedEnv, restores_exactly
from supple.errors import InputError, SimulatorError, first_line, how_to_install
from supple.rng import derive_seed

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TAKES_CONFIG = TAKES_ASYNC = True
FIXED = {"render_mode": "supple, which knows when it draws"}
_WORKER_GONE = (EOFError, BrokenPipeError, ConnectionResetError)
SEED_BITS = 2**31 - 1
"""Some simulators hold their seed in 32 bits, with a sign."""
START_METHOD = multiprocessing.get_all_start_methods()[0]
"""Of worker processes: the platform's. Importing torchrl, as PPO's first update does, makes it
``spawn`` for the whole process, and every later worker would import torch, for seconds."""


class GymVector(Env):
    """A Gymnasium vector environment under the contract of ``envs/base.py``.

    Args:
        env: the vector environment, in any autoreset mode. It is closed together with this one.
        task_id: how it is called in messages and files.
        device: where its tensors go.
        facts: further fields of the spec (``control_dt``, ``deployment`` …).
        patience: how long worker processes may take for a step [s]; 0 waits for ever.
        action_bound: what the policy's 1 means where actions have no bounds.

    Raises:
        InputError: images, spaces without a flat form, or no known autoreset mode.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        task_id: str,
        device: torch.device,
        facts: Mapping[str, Any] | None = None,
        patience: float = 0.0,
        action_bound: float = 1.0,
    ) -> None:
        self._env: Any = env  # gymnasium's base class declares neither seed lists nor call()
        self._base: Any = env.unwrapped  # the one whose workers they are
        if patience and isinstance(self._base, AsyncVectorEnv):
            for name in ("reset_wait", "step_wait"):
                _limit(self._base, name, patience)
        self._mode = _autoreset_mode(env, task_id)
        self._flat = Flattener(env.single_observation_space, task_id)
        self._physical = ActionMap(
            env.single_action_space, env.num_envs, task_id, bound=action_bound
        )
        if facts is None:
            facts = {"max_episode_steps": env.spec.max_episode_steps if env.spec else None}
        self.spec = EnvSpec(
            task_id=task_id,
            num_envs=env.num_envs,
            observation=self._flat.widths,
            action=self._physical.spec,
            device=device,
            **facts,
        )
        # Rows whose next step is only a reset (NEXT_STEP mode).
        self._bridge = np.zeros(env.num_envs, dtype=bool)
        # Whether a success flag was ever seen: from then on every step carries one.
        self._tells_success = False
        self._on_cpu = device.type == "cpu"
        self._patience = patience
        self._closed = False

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start every environment afresh; with ``seed``, each with a seed of its own.

        Raises:
            SimulatorError: a worker process died or hangs, or an observation has another shape than
                its space.
        """
        with self._workers("a reset"):
            obs, _ = self._env.reset(seed=None if seed is None else self._seeds(seed))
        self._bridge = np.zeros(self.spec.num_envs, dtype=bool)
        return reset_result(self._tensors(self._flat(obs)), self.spec.num_envs)

    def step(self, action: Tensor) -> TensorDict:
        """Step every environment; see the contract.

        Where no environment ended, ``final_observation`` is the observation itself, not a copy.

        Raises:
            InputError: ``action`` has another shape.
            SimulatorError: a worker process died or hangs, an observation or a reward has another
                shape than it should, or no final observation came.
        """
        with self._workers("a step"):
            obs, reward, terminated, truncated, info = self._env.step(self._physical(action))
        now = final = self._flat(obs)
        reward = np.array(reward, dtype=np.float32)
        terminated, truncated = np.array(terminated, dtype=bool), np.array(truncated, dtype=bool)
        valid = ~self._bridge
        if self._mode is AutoresetMode.NEXT_STEP:
            reward[self._bridge] = 0
            terminated &= valid
            truncated &= valid
            self._bridge = terminated | truncated
        done = terminated | truncated
        success = self._success(info, done, valid)
        if done.any():
            if self._mode is AutoresetMode.SAME_STEP:
                final = self._patched(now, info, done)
            elif self._mode is AutoresetMode.DISABLED:
                with self._workers("a reset"):
                    now = self._flat(self._env.reset(options={"reset_mask": done})[0])
        observation = self._tensors(now)
        return step_result(
            observation=observation,
            reward=self._tensor(reward),
            terminated=self._tensor(terminated),
            truncated=self._tensor(truncated),
            final_observation=observation if final is now else self._tensors(final),
            valid=self._tensor(valid),
            success=success,
        )

    @contextlib.contextmanager
    def _workers(self, during: str) -> Iterator[None]:
        """A block that asks environments something.

        Raises:
            SimulatorError: a worker process has died, or took longer than the patience; or what
                they returned does not fit together.
        """
        try:
            yield
        except multiprocessing.TimeoutError as error:
            late = [row for row, pipe in enumerate(self._base.parent_pipes) if not pipe.poll()]
            self._abandon()
            raise SimulatorError(
                f"{self.spec.task_id}: no answer within --env.patience {self._patience:g} s from"
                f" the worker of environment {', '.join(map(str, late))}: it hangs, or needs longer"
            ) from error
        except ValueError as error:
            if unfit := self._unfit():
                raise SimulatorError(f"{self.spec.task_id}: {unfit}") from error
            raise
        except _WORKER_GONE as error:
            if not isinstance(self._base, AsyncVectorEnv):  # the environment's own connection
                told = f"{type(error).__name__} during {during}: {error}"
                raise SimulatorError(f"{self.spec.task_id}: {told}") from error
            self._abandon()
            raise SimulatorError(
                f"{self.spec.task_id}: a worker process died during {during}; it may have run out"
                " of memory: lower --env.num-envs, or look for its error above"
            ) from error

    def _unfit(self) -> str:
        """What one environment returns that fits into no array of all; empty where it is not known.

        Gymnasium's own words name neither the field nor what was expected.
        """
        if not isinstance(self._env, SyncVectorEnv):
            return ""
        env: Any = self._env.envs[0]
        obs: Any
        try:
            obs, _ = env.reset()
            after, reward, *_ = env.step(env.action_space.sample())
        except Exception:  # of the environment's own
            return ""
        for each in (obs, after):
            expected = env.observation_space.shape
            if expected is not None and np.shape(each) != expected:
                return f"an observation has the shape {np.shape(each)}, its space says {expected}"
        if np.ndim(reward):
            return f"a reward has the shape {np.shape(reward)}, expected one number: float(reward)"
        return ""

    def render(self) -> np.ndarray:
        """A picture of environment 0, (H, W, 3) uint8.

        Raises:
            InputError: a package or a display for drawing is missing.
            NotImplementedError: the environment was not made to draw, or cannot.
        """
        if self._env.render_mode != "rgb_array":
            raise NotImplementedError(
                f"{self.spec.task_id} has no rgb_array render mode, its callable takes no"
                " render_mode, or it was made without render=True"
            )
        with drawing(self.spec.task_id):
            # In this process only the first is drawn; other vector environments draw all.
            if isinstance(self._env, SyncVectorEnv):
                first = self._env.envs[0]
                with floor_beneath(first.unwrapped):
                    pictures = [first.render()]
            else:
                pictures = self._env.render()
        if pictures is None or len(pictures) == 0 or pictures[0] is None:
            raise NotImplementedError(f"{self.spec.task_id} returned no picture")
        return np.ascontiguousarray(pictures[0])

    def state_dict(self) -> dict[str, Any]:
        """Every environment's complete state."""
        if not self.spec.exact_resume:
            return super().state_dict()
        with self._workers("saving"):
            envs = list(self._env.call("get_state"))
        return {"envs": envs, "tells_success": self._tells_success}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value.

        Raises:
            InputError: it holds another number of environments.
            NotImplementedError: ``spec.exact_resume`` is False.
        """
        if not self.spec.exact_resume:
            super().load_state_dict(state)
        saved = len(state["envs"])
        if saved != self.spec.num_envs:
            raise InputError(
                f"{self.spec.task_id}: the saved state holds {saved} environments, expected"
                f" {self.spec.num_envs}: build it with num_envs={saved}"
            )
        with self._workers("a reset"):
            self._env.reset()  # allocates what stepping needs; its content is replaced next
            self._env.set_attr("restored_state", list(state["envs"]))
        self._tells_success = state["tells_success"]

    def close(self) -> None:
        """End the environments and their processes."""
        if self._closed:
            return
        self._closed = True
        if getattr(self._base, "_state", AsyncState.DEFAULT) is not AsyncState.DEFAULT:
            self._abandon()  # interrupted while it waited for a worker, perhaps one that hangs
            return
        try:
            self._env.close()
        except _WORKER_GONE:  # a worker died earlier; the others still have to go
            self._abandon()

    def _abandon(self) -> None:
        """End worker processes that can no longer be asked to."""
        self._closed = self._base.closed = True
        _end(getattr(self._base, "processes", ()))

    def _seeds(self, seed: int) -> Any:
        """A seed for each environment, or one for all where a list is not taken."""
        if not isinstance(self._base, SyncVectorEnv | AsyncVectorEnv):
            return derive_seed(seed, "vector") & SEED_BITS
        return [derive_seed(seed, index) & SEED_BITS for index in range(self.spec.num_envs)]

    def _patched(
        self, now: dict[str, np.ndarray], info: Mapping[str, Any], done: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The observations before the reset in rows that ended, the current ones elsewhere."""
        given = info.get("final_obs")
        if given is None:
            raise SimulatorError(
                f"{self.spec.task_id} resets within the step but gave no info['final_obs'] for the"
                " environments that ended: add it, or use another autoreset mode"
            )
        final = {group: rows.copy() for group, rows in now.items()}
        for row in np.nonzero(done)[0]:
            for group, values in self._flat(_batch_of_one(given[row])).items():
                final[group][row] = values[0]
        return final

    def _success(
        self, info: Mapping[str, Any], done: np.ndarray, valid: np.ndarray
    ) -> Tensor | None:
        """The task's success flag of this step; None as long as none was ever seen."""
        ended = info.get("final_info")
        ended = ended if isinstance(ended, Mapping) else {}
        flags = np.zeros(self.spec.num_envs, dtype=bool)
        for key in SUCCESS_KEYS:
            if key not in info and key not in ended:
                continue
            self._tells_success = True
            if key in info:
                flags |= np.asarray(info[key]).astype(bool)
            if self._mode is AutoresetMode.SAME_STEP:
                # In rows that ended `info` belongs to the reset, `final_info` to the step.
                flags[done] = np.asarray(ended[key]).astype(bool)[done] if key in ended else False
            break
        return self._tensor(flags & valid) if self._tells_success else None

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._on_cpu else tensor.to(self.spec.device)

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {group: self._tensor(array) for group, array in arrays.items()}


def _autoreset_mode(env: VectorEnv[Any, Any, Any], task_id: str) -> AutoresetMode:
    declared = env.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(declared)
    except ValueError:
        known = ", ".join(str(mode) for mode in AutoresetMode)
        raise InputError(
            f"{task_id} declares metadata['autoreset_mode'] = {declared}: expected one of {known};"
            " without it nobody can tell which observation ends an episode"
        ) from None


def _batch_of_one(obs: Any) -> Any:
    if isinstance(obs, Mapping):
        return {key: _batch_of_one(value) for key, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_batch_of_one(value) for value in obs)
    return np.asarray(obs)[None]


def status() -> str:
    """Gymnasium is always installed; most of its robots need MuJoCo."""
    if importlib.util.find_spec("mujoco") is None:
        return f"installed without MuJoCo: {how_to_install('mujoco')}"
    return "installed, with MuJoCo"


def tasks() -> tuple[str, ...]:
    """Every registered id that can be made."""
    # Entry points that are functions of Gymnasium's own only say that the version has moved away.
    return tuple(
        sorted(
            name
            for name, spec in gymnasium.registry.items()
            if not getattr(spec.entry_point, "__module__", "").startswith("gymnasium.envs")
        )
    )


def exists(name: str) -> bool:
    """Whether it is registered, or Gymnasium's own ``<module to import>:<id>``."""
    return ":" in name or name in tasks()


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> GymVector:
    """Environments of a registered Gymnasium id.

    Raises:
        InputError: the id's packages are missing, or its spaces are not supported.
    """
    return registered(name, settings, task_id=f"gym/{name}", device=device, render=render)


def registered(
    name: str, settings: EnvSettings, *, task_id: str, device: torch.device, render: bool
) -> GymVector:
    """As ``build``, called otherwise: for simulators that register ids of their own."""
    chosen = _arguments(name, settings.config, task_id)

    def one(**options: Any) -> gymnasium.Env[Any, Any]:
        # Gymnasium's checks of the first steps are `supple doctor --env`'s here.
        try:
            return gymnasium.make(name, disable_env_checker=True, **chosen, **options)
        except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
            if options and "unexpected keyword argument 'render_mode'" in str(error):
                return one()  # render() says so
            if not chosen:
                raise
            asked, kind = " ".join(settings.config), type(error).__name__
            raise InputError(
                f"{FLAG} {asked}: {task_id} cannot be made so: {kind}: {first_line(error)}; give"
                " another value, or drop the flag"
            ) from error

    return wrap_factory(one, settings, task_id=task_id, device=device, render=render)


def _arguments(name: str, config: Sequence[str], task_id: str) -> dict[str, Any]:
    """What ``--env.config`` changes of an id's keyword arguments.

    Raises:
        InputError: it takes no such argument, or its packages are missing.
    """
    if not config:
        return {}
    module, _, registered_as = name.rpartition(":")
    with importing_packages(task_id):
        if module:
            importlib.import_module(module)
        spec = gymnasium.spec(registered_as)
        creator: Any = spec.entry_point
        creator = load_env_creator(creator) if isinstance(creator, str) else creator
    defaults = {**spec.kwargs, "max_episode_steps": spec.max_episode_steps}
    return arguments(creator, config, task_id, fixed=FIXED, defaults=defaults)


def wrap_factory(
    factory: Callable[..., gymnasium.Env[Any, Any]],
    settings: EnvSettings,
    *,
    task_id: str,
    device: torch.device,
    render: bool,
) -> GymVector:
    """A vector environment of our own, resetting within the step, from a single-env factory.

    Args:
        factory: builds one environment; given ``render_mode="rgb_array"`` where ``render``.
        settings: how many, in which processes, how long a step of those may take, and the bound
            of actions without one.
        task_id: how it is called in messages and files.
        device: where tensors go.
        render: whether ``render()`` will be called.

    Raises:
        InputError: packages are missing, or its spaces are not supported.
    """
    options = {"render_mode": headless()} if render else {}
    with importing_packages(task_id), quiet_mujoco():
        probe = factory(**options)
    try:
        for name in ("observation_space", "action_space"):
            if getattr(probe, name, None) is None:
                raise InputError(
                    f"{task_id}: {type(probe).__name__} has no {name}, expected a gymnasium space:"
                    " set it in the class or in __init__"
                )
        facts = facts_of(probe, task_id, settings.num_envs, action_bound=settings.action_bound)
    finally:
        probe.close()

    owner = os.getpid()

    def build() -> gymnasium.Env[Any, Any]:
        if os.getpid() != owner:
            # Ctrl-C and other requests to stop reach the whole process group; the run itself saves,
            # then ends its workers.
            for request in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(request, signal.SIG_IGN)
        with quiet_mujoco():
            env = factory(**options)
        if render:
            follow_robot(env)
        return ManagedEnv(env)

    # Nothing is copied twice: the Flattener's arrays never share the vector environment's memory.
    kind: Any = SyncVectorEnv
    if settings.vectorization == "async":
        kind = partial(AsyncVectorEnv, context=START_METHOD)
    try:
        vector = kind(
            [build] * settings.num_envs, copy=False, autoreset_mode=AutoresetMode.SAME_STEP
        )
    except _WORKER_GONE as error:
        raise SimulatorError(
            f"{task_id}: a worker process ended while it was built; look for its error above"
        ) from error
    # At exit Python waits for workers that nobody closed, and they listen to no request to end.
    Finalize(vector, _end, args=(getattr(vector, "processes", ()),), exitpriority=10)
    return GymVector(
        vector,
        task_id=task_id,
        device=device,
        facts=facts,
        patience=settings.patience,
        action_bound=settings.action_bound,
    )


def _limit(env: AsyncVectorEnv, name: str, patience: float) -> None:
    """Let a method wait no longer than that [s] where it is not told how long."""
    function, own = getattr(type(env), name), weakref.ref(env)  # a cycle would keep its workers
    if "timeout" not in inspect.signature(function).parameters:
        return  # of a class of one's own

    def wait(timeout: float | None = None) -> Any:
        return function(own(), timeout=patience if timeout is None else timeout)

    setattr(env, name, wait)


def _end(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()
        process.join()


def headless() -> str:
    """The render mode of pictures; lets MuJoCo draw them without a display."""
    draw_without_display()
    return "rgb_array"


def facts_of(
    probe: gymnasium.Env[Any, Any], task_id: str, num_envs: int, *, action_bound: float = 1.0
) -> dict[str, Any]:
    """Fields of the spec that a single environment tells; it is reset and stepped for that."""
    Flattener(probe.observation_space, task_id)  # refuses before anything is stepped
    action = ActionMap(probe.action_space, num_envs, task_id, bound=action_bound).spec
    return {
        "max_episode_steps": probe.spec.max_episode_steps if probe.spec else None,
        "control_dt": gym_facts.control_dt(probe),
        "exact_resume": restores_exactly(probe),
        "deployment": gym_facts.deployment(probe, action),
        "channels": gym_facts.channels(probe),
    }
