"""A user's own simulator, as ``module:callable``: what it returns is recognised and wrapped."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from supple.envs.base import Env
from supple.envs.config import FLAG, arguments, parameters
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

FIXED = {
    "num_envs": "--env.num-envs",
    "device": "--device",
    "render_mode": "supple, which knows when it draws",
}


def load(name: str, role: str = "task") -> Callable[..., Any]:
    """The callable that ``module:callable`` names.

    Args:
        name: of it.
        role: what it is to messages.

    Raises:
        InputError: there is none.
    """
    module_name, _, attribute = name.partition(":")
    found = _imported(module_name, f"{role} {name}")
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"module {module_name} has no {attribute} ({role} {name})")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{name} is a {type(found).__name__}: expected something callable")
    loaded: Callable[..., Any] = found
    return loaded


def registered_id(name: str, task: str) -> str:
    """The id of ``<id>``, or of ``<module>:<id>``, whose module is imported so as to register it.

    Raises:
        InputError: the module cannot be imported.
    """
    module_name, colon, own = name.rpartition(":")
    if colon:
        _imported(module_name, f"task {task}")
    return own


def _imported(module_name: str, wanted: str) -> Any:
    if not module_name or module_name.startswith("."):
        raise InputError(f"{wanted}: expected a module before the colon, by its full name")
    if os.getcwd() not in sys.path:  # a console script does not look into the current folder
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import {module_name} for {wanted}: {error}; run from its folder or install"
            " its package"
        ) from error


def build(task: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Env:
    """The environments of a user's callable: supple's own kind, or another's, which is wrapped.

    Raises:
        InputError: it returns something else, or not what was asked for.
    """
    from supple.envs import isaaclab
    from supple.envs.remote import RemoteEnv

    if isaaclab.holds(task):
        return RemoteEnv(task, settings, device=device, render=render)
    factory = load(task)
    offered = {"num_envs": settings.num_envs, "device": device}
    if render:
        offered["render_mode"] = "rgb_array"
    given = accepted(factory, offered)
    chosen = arguments(factory, settings.config, task, fixed=FIXED)
    made = _called(factory, task, given | chosen)
    if callable(made) and (isinstance(made, type) or not hasattr(made, "step")):  # a factory again
        factory, given, chosen = made, accepted(made, offered), {}
        made = _called(factory, task, given)
    # What takes any arguments may build as many as it likes: it was not told how many.
    unsaid = settings.num_envs if parameters(factory)[1] else None
    wanted = given.get("num_envs", unsaid)
    if isinstance(made, Env):
        _require_facts(made, task)
        return _as_asked(made, task, wanted, device)
    found = _torch_simulator(made, task, settings.action_bound)
    if found is not None:
        return _as_asked(found, task, wanted, device)
    import gymnasium

    from supple.envs.gym import GymVector, wrap_factory

    if isinstance(made, gymnasium.vector.VectorEnv):
        vector = GymVector(
            made,
            task_id=task,
            device=device,
            patience=settings.patience,
            action_bound=settings.action_bound,
        )
        return _as_asked(vector, task, wanted, device)
    if isinstance(made, gymnasium.Env):
        made.close()
        return wrap_factory(
            lambda **options: factory(**accepted(factory, offered | options), **chosen),
            settings,
            task_id=task,
            device=device,
            render=render,
        )
    raise InputError(
        f"{task} returned a {type(made).__name__}: expected a supple.envs.base.Env, a"
        " gymnasium.Env or VectorEnv, an RSL-RL VecEnv, an Isaac Gym VecTask, a legged_gym task, an"
        " environment of Isaac Lab or mjlab, or a torchrl EnvBase"
    )


def _called(factory: Callable[..., Any], task: str, given: dict[str, Any]) -> Any:
    """What it returns.

    Raises:
        InputError: it wants arguments that nobody gives.
    """
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise InputError(
            f"{task} cannot be called: {error}; give it with {FLAG} NAME=VALUE, or a default"
        ) from error
    return factory(**given)


def _torch_simulator(made: Any, task: str, bound: float) -> Env | None:
    """The adapter of a simulator that speaks torch, recognised by what it offers."""
    from supple.envs import isaac_gym, isaaclab, mjlab, rsl_rl, torchrl_env

    if torchrl_env.recognises(made):
        return torchrl_env.TorchRL(made, task_id=task, action_bound=bound)
    if mjlab.recognises(made):
        return mjlab.Mjlab(made, task_id=task, action_bound=bound)
    robots = isaaclab.bare(made)
    if robots is not None:
        return isaaclab.IsaacLab(robots, task_id=task, action_bound=bound)
    # legged_gym has everything a VecEnv has, and more.
    if isaac_gym.recognises_legged_gym(made):
        return isaac_gym.LeggedGym(made, task_id=task, action_bound=bound)
    if isaac_gym.recognises_vec_task(made):
        return isaac_gym.VecTask(made, task_id=task, action_bound=bound)
    if rsl_rl.recognises(made):
        return rsl_rl.RslRl(made, task_id=task, action_bound=bound)
    return None


def _require_facts(env: Env, task: str) -> None:
    """Refuse facts that only export or a resume would stumble over, after a whole training."""
    from supple.envs.check_rollout import BrokenError, calling, check_spec

    try:
        with calling("reading env.spec"):
            check_spec(getattr(env, "spec", None))
    except BrokenError as problem:
        env.close()
        raise InputError(f"{task}: {problem}") from problem


def _as_asked(env: Env, task: str, wanted: int | None, device: torch.device) -> Env:
    """Refuse an environment of another size or device than wanted; None is any size."""
    got = env.spec.device
    if wanted not in (None, env.spec.num_envs):
        problem = (
            f"built {env.spec.num_envs} environments, asked for num_envs={wanted}: it is told how"
            " many if it names num_envs among its arguments"
        )
    elif got.type != device.type or device.index not in (None, got.index):
        problem = f"built an environment on {got}, this run is on {device}: take device, or set it"
    else:
        return env
    env.close()
    raise InputError(f"{task} {problem}")


def accepted(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments a callable takes, of those on offer.

    What takes any hands them on to where nobody can see, mostly ``gymnasium.make``: of those it
    does not name it gets none but the render mode.
    """
    named, takes_any = parameters(factory)
    names = {*named, "render_mode"} if takes_any else named.keys()
    return {name: value for name, value in offered.items() if name in names}
