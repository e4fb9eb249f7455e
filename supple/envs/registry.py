"""From a task string to an environment: ``<simulator>/<task>`` or ``module:callable``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from supple.envs.base import Env
from supple.errors import InputError


@dataclass(kw_only=True, slots=True)
class EnvSettings:
    """How the training environments are made."""

    num_envs: int = 1
    """Parallel environments, >= 1."""
    vectorization: Literal["sync", "async"] = "sync"
    """One process for all of them, or one for each (worth it only where a step is slow)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot run."""
        if self.num_envs < 1:
            raise InputError(f"--env.num-envs must be >= 1, got {self.num_envs}")
        if self.vectorization not in ("sync", "async"):
            raise InputError(f"--env.vectorization must be sync or async, got {self.vectorization}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulator:
    """What ``supple list`` says of a simulator."""

    name: str
    status: str
    tasks: tuple[str, ...]
    """Task names, without the simulator's prefix."""


def make(
    task: str,
    settings: EnvSettings,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    render: bool = False,
) -> Env:
    """Build the environments of a task.

    Args:
        task: ``<simulator>/<task>`` or ``module:callable``.
        settings: how many, and how they run.
        device: where their tensors live.
        seed: of the reset it comes with.
        render: whether ``render()`` will be called.

    Raises:
        InputError: unknown task (with the nearest names), or one that cannot be built here.
    """
    env = _build(task, settings, torch.device(device), render)
    try:
        env.reset(seed)
    except BaseException:
        env.close()
        raise
    return env


def _build(task: str, settings: EnvSettings, device: torch.device, render: bool) -> Env:
    simulator, name = _split(task)
    if simulator == "":
        return _custom(task, settings, device=device, render=render)
    check_task(task)
    if simulator == "toy":
        from supple.envs.toy import make_toy

        return make_toy(name, settings.num_envs, device)
    from supple.envs.gym import make_gym

    return make_gym(
        name,
        num_envs=settings.num_envs,
        vectorization=settings.vectorization,
        device=device,
        render=render,
    )


def check_task(task: str) -> None:
    """Whether a task exists, without building it.

    Raises:
        InputError: it does not; names the nearest that do.
    """
    simulator, name = _split(task)
    if simulator == "":
        _load(task)
        return
    known = known_tasks()
    if simulator not in known:
        near = _nearest(simulator, tuple(known))
        raise InputError(
            f"unknown simulator {simulator} in task {task}{near}; simulators: {', '.join(known)},"
            " or your own as module:callable"
        )
    if simulator == "gym" and ":" in name:  # Gymnasium's own <module to import>:<id>
        return
    if name not in known[simulator].tasks:
        near = _nearest(name, known[simulator].tasks, prefix=f"{simulator}/")
        raise InputError(f"unknown task {task}{near}; all of them: supple list {simulator}")


def known_tasks() -> dict[str, Simulator]:
    """Every simulator with an adapter, installed or not."""
    return {
        "toy": Simulator(name="toy", status="built in", tasks=_toy_tasks()),
        "gym": Simulator(name="gym", status=_gym_status(), tasks=_gym_tasks()),
    }


def _split(task: str) -> tuple[str, str]:
    """Simulator and name; an empty simulator for ``module:callable``."""
    simulator, slash, name = task.partition("/")
    if slash and ":" not in simulator:
        return simulator, name
    if ":" in task:
        return "", task
    raise InputError(
        f"task must be <simulator>/<task> or module:callable, got {task}; for example"
        " gym/HalfCheetah-v5; see supple list"
    )


def _toy_tasks() -> tuple[str, ...]:
    from supple.envs.toy import TOY_TASKS

    return tuple(TOY_TASKS)


def _gym_tasks() -> tuple[str, ...]:
    import gymnasium

    # Entry points that are functions of Gymnasium's own only say that the version has moved away.
    return tuple(
        sorted(
            name
            for name, spec in gymnasium.registry.items()
            if not getattr(spec.entry_point, "__module__", "").startswith("gymnasium.envs")
        )
    )


def _gym_status() -> str:
    if importlib.util.find_spec("mujoco") is None:
        return 'installed without MuJoCo: pip install "supple[mujoco]"'
    return "installed, with MuJoCo"


def _nearest(name: str, choices: Sequence[str], prefix: str = "") -> str:
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.5)
    if not found:
        return ""
    return "; did you mean " + " or ".join(prefix + lower[each] for each in found) + "?"


def _load(task: str) -> Callable[..., Any]:
    module_name, _, attribute = task.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not look into the current folder
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import {module_name} for task {task}: {error}; run from its folder or install"
            " its package"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"module {module_name} has no {attribute} (task {task})")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{task} is a {type(found).__name__}: expected something callable")
    loaded: Callable[..., Any] = found
    return loaded


def _custom(task: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Env:
    """A user's callable: of a supple environment, or of a Gymnasium one, which is wrapped."""
    factory = _load(task)
    offered = {"num_envs": settings.num_envs, "device": device}
    if render:
        offered["render_mode"] = "rgb_array"
    accepted = _accepted(factory, offered)
    made = factory(**accepted)
    if callable(made) and (isinstance(made, type) or not hasattr(made, "step")):  # a factory again
        factory = made
        made = factory(**_accepted(factory, offered))
    if isinstance(made, Env):
        return _as_asked(made, task, accepted, device)
    import gymnasium

    from supple.envs.gym import GymVector, wrap_factory

    if isinstance(made, gymnasium.vector.VectorEnv):
        return _as_asked(GymVector(made, task_id=task, device=device), task, accepted, device)
    if isinstance(made, gymnasium.Env):
        made.close()
        return wrap_factory(
            lambda **options: factory(**_accepted(factory, options)),
            task_id=task,
            num_envs=settings.num_envs,
            vectorization=settings.vectorization,
            device=device,
            render=render,
        )
    raise InputError(
        f"{task} returned a {type(made).__name__}: expected a supple.envs.base.Env, a"
        " gymnasium.Env or a gymnasium.vector.VectorEnv"
    )


def _as_asked(env: Env, task: str, accepted: dict[str, Any], device: torch.device) -> Env:
    """Refuse an environment of another size or device than its callable was given."""
    asked = accepted.get("num_envs", env.spec.num_envs)
    got = env.spec.device
    if env.spec.num_envs != asked:
        problem = f"built {env.spec.num_envs} environments, asked for num_envs={asked}"
    elif got.type != device.type or device.index not in (None, got.index):
        problem = f"built an environment on {got}, this run is on {device}: take device, or set it"
    else:
        return env
    env.close()
    raise InputError(f"{task} {problem}")


def _accepted(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments a callable takes, of those on offer."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return offered
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in offered.items() if name in names}
