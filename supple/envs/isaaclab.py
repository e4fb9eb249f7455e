"""Isaac Lab 3: ``isaaclab/<id>``, on the physics of the task's configuration.

That is Newton for all of its core tasks, Isaac Sim or not; what asks for Isaac Sim where it is not
installed runs on Newton, too, if it has that preset.

Tasks of one's own are ``isaaclab/<module>:<id>``: the module is imported after Isaac Lab's own and
registers its ids as they do, with an ``env_cfg_entry_point``.

It resets within the step and, asked to, computes the observation before (``compute_final_obs``);
the entry then stays in ``extras`` for all later steps and is taken out as it is read. Of
observation terms with a history or a delay that one lacks the newest frame, which is said once:
Isaac Lab computes it without advancing those. It is kept, because it is a step old at worst;
without it PPO would bootstrap all terms from a step before, and FlashSAC from the next episode. A
process holds one simulation; a second environment, for evaluation or a film, lives in a process of
its own (``remote.py``).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import gymnasium
import torch
from gymnasium import wrappers
from torch import Tensor

from supple.ending import leave_last
from supple.envs import installed, managers
from supple.envs.base import Deployment, Env
from supple.envs.config import override
from supple.envs.custom import registered_id
from supple.envs.torch_sim import Groups, Outcome, TorchSim, require_final, unbounded
from supple.errors import InputError, first_line, how_to_install, say_once

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = (
    "Isaac-Cartpole-Direct",
    "Isaac-Open-Drawer-Franka",
    "Isaac-Reorient-Cube-Allegro-Direct",
    "Isaac-Reorient-Cube-Shadow-Direct",
    *(
        f"Isaac-Velocity-{ground}-{robot}"
        for ground in ("Flat", "Rough")
        for robot in ("AnymalD", "G1", "H1")
    ),
    "IsaacContrib-Lift-Cube-Franka",
    "IsaacContrib-Velocity-Flat-AnymalC",
    "IsaacContrib-Velocity-Rough-AnymalC",
)
"""The published benchmark by the names of version 3, where Isaac Lab is not installed."""
TAKES_CONFIG = True
DRAWS = False
FIXED = {
    "scene.num_envs": "--env.num-envs",
    "sim.device": "--device",
    "compute_final_obs": "this adapter, which needs it",
}
KINDS = ("ManagerBasedRLEnv", "DirectRLEnv")
KITLESS = {"NewtonCfg", "OvPhysxCfg"}
"""Physics that run without Isaac Sim."""
NEWTON = "physics=newton_mjwarp"
"""The preset that tasks with physics of Isaac Sim have besides, as far as they run on Newton."""
PD_LAWS = {"ImplicitActuator", "IdealPDActuator"}
"""Actuator models, with all derived from them, whose stiffness and damping are kp and kd."""
NETS = {"ActuatorNetLSTM", "ActuatorNetMLP"}
"""Derived from those, but what moves the joint is learned: their gains act nowhere."""
EFFORT_LIMITS = {
    True: ("joint_effort_limit", "effort_limit_sim", "effort_limit"),
    False: ("actuator_effort_limit", "effort_limit"),
}
"""Where an implicit or an explicit actuator has it, in this version of Isaac Lab or an older."""
TRAINER = "rsl_rl_cfg_entry_point"
"""Under which a task registers its trainer's configuration."""
_alive: weakref.WeakSet[IsaacLab] = weakref.WeakSet()
"""Environments of this process that were not closed: there is room for one."""


def bare(made: Any) -> Any | None:
    """Isaac Lab's environment as it is, or out of what ``gymnasium.make`` put around it; else None.

    Raises:
        InputError: other wrappers surround it, which this adapter would leave out.
    """
    if isinstance(made, gymnasium.Wrapper):
        inner: Any = made
        while isinstance(inner, wrappers.OrderEnforcing | wrappers.PassiveEnvChecker):
            inner = inner.env
        found = bare(made.unwrapped)
        if found is not None and inner is not found:
            raise InputError(
                f"Isaac Lab's environment is wrapped in a {type(inner).__name__}: return it bare,"
                " or in its RslRlVecEnvWrapper"
            )
        return found
    kinds = type(made).__mro__
    named = any(k.__name__ in KINDS and k.__module__.startswith("isaaclab") for k in kinds)
    return made if named else None


def holds(task_id: str) -> bool:
    """Whether this process holds the simulation of a task, and so cannot hold another."""
    return any(env.spec.task_id == task_id for env in _alive)


class IsaacLab(TorchSim):
    """A direct or manager-based environment under the contract of ``envs/base.py``.

    Args:
        env: the unwrapped environment; it is closed together with this one.
        task_id: how it is called in messages and files.
        action_bound: what the policy's 1 means to the simulator.
    """

    def __init__(self, env: Any, *, task_id: str, action_bound: float = 1.0) -> None:
        self._env = env
        sample, _ = env.reset()
        groups = Groups(sample, task_id, _trainer_groups(env))
        term = managers.joint_action(env)
        joints = tuple(term._asset.joint_names) if term is not None else ()
        described = managers.channels(env, groups.source, joints, action_bound=action_bound)
        self._finite = bool(getattr(env.cfg, "is_finite_horizon", False))
        super().__init__(
            groups,
            action=unbounded(env.single_action_space.shape[-1], action_bound),
            task_id=task_id,
            num_envs=env.num_envs,
            device=torch.device(env.device),
            max_episode_steps=int(env.max_episode_length),
            control_dt=float(env.step_dt),
            has_final_obs=bool(getattr(env.cfg, "compute_final_obs", False)),
            deployment=_deployment(env, term, groups.source["policy"], action_bound),
            channels=tuple(described) if described else None,
        )
        _compute_twice_as_once(env)
        self._kept_final = _keep_final(env)
        read = chain.from_iterable(groups.source.values())
        stale = managers.remembered(env, read) if self.spec.has_final_obs else []
        if stale:
            say_once(
                f"{task_id}: observations before a reset lack the newest frame of"
                f" {', '.join(stale)}, as Isaac Lab computes them: where time runs out, values"
                " bootstrap from what these were a step before"
            )
        _alive.add(self)

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        observation, _ = self._env.reset(seed=None if seed is None else seed % 2**31)
        return dict(observation)

    def _advance(self, action: Tensor) -> Outcome:
        observation, reward, terminated, truncated, extras = self._env.step(action)
        final = extras.pop("final_obs", None)
        final = self._kept_final.pop() if self._kept_final else final
        if self._finite:  # its time limit is part of the task
            terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
        if self.spec.has_final_obs:
            require_final(final, terminated | truncated, self.spec.task_id)
        return Outcome(observation, reward, terminated, truncated, final=final, extras=extras)

    def spread_ends(self, seed: int) -> None:
        """Begin at random counts of steps."""
        self._spread(self.spec.max_episode_steps or 1, seed)

    def close(self) -> None:
        """Close the environment; what was launched for it stays until the process ends."""
        env, self._env = self._env, None
        if env is None:
            return
        _alive.discard(self)
        env.close()


def _trainer_groups(env: Any) -> Mapping[str, Sequence[str]]:
    """The observation groups that the task's own trainer reads, rsl_rl's ``obs_groups``.

    A task may split what its policy sees into several groups, which only the trainer joins.
    """
    spec = getattr(env, "spec", None)
    if spec is None or TRAINER not in spec.kwargs:
        return {}
    try:
        from isaaclab_tasks.utils.hydra import resolve_task_config

        _, trainer = resolve_task_config(spec.id, TRAINER, overrides=())
    except Exception as error:  # of a trainer that is not used otherwise
        say_once(
            f"{spec.id}: which observation groups its trainer reads is not known"
            f" ({first_line(error)}); they are taken by name"
        )
        return {}
    found = getattr(trainer, "obs_groups", None)
    return found if isinstance(found, Mapping) else {}


def _compute_twice_as_once(env: Any) -> None:
    """Let a second look at the observation leave filters and integrators as they were.

    Before a reset Isaac Lab computes it once more, for all environments, and such modifiers would
    take that for another step (isaaclab 3.0.0, managers/observation_manager.py, compute_group).
    """
    manager = getattr(env, "observation_manager", None)
    memories = [
        each
        for each in getattr(manager, "_group_obs_class_instances", ())
        if any(kind.__name__ == "ModifierBase" for kind in type(each).__mro__)
    ]
    if manager is None or not memories:
        return
    compute = manager.compute

    def look(update_history: bool = False) -> Any:
        if update_history:
            return compute(update_history=True)
        before = [
            {name: value.clone() for name, value in vars(each).items() if torch.is_tensor(value)}
            for each in memories
        ]
        seen = compute()
        for each, tensors in zip(memories, before, strict=True):
            vars(each).update(tensors)
        return seen

    manager.compute = look


def _keep_final(env: Any) -> list[Any]:
    """Where a direct environment's last observation is kept from now on, as soon as it is made.

    Its code may begin a new ``extras`` for the observation after the reset, as Isaac Lab's
    HumanoidAmpEnv does, and lose it with the old one.
    """
    kept: list[Any] = []
    reset = getattr(env, "_reset_envs_from_buffer", None)
    if reset is not None:

        def reset_and_keep() -> Any:
            rows = reset()
            if "final_obs" in env.extras:
                kept[:] = [env.extras.pop("final_obs")]
            return rows

        env._reset_envs_from_buffer = reset_and_keep
    return kept


def _deployment(env: Any, term: Any, policy: Sequence[str], bound: float) -> Deployment:
    """What the managers and the articulation know; a direct workflow's code tells only timing."""
    if term is None:
        return Deployment(sim_dt=float(env.physics_dt), decimation=int(env.cfg.decimation))
    robot, joints, names = term._asset, term._joint_ids, managers.joint_names(term) or ()
    rest = _numbers(robot, "default_joint_pos", joints)
    # What the configuration does not name rests at 0.
    rest = rest or managers.configured(robot.cfg.init_state.joint_pos, names, 0.0)
    history = managers.history_length(env, policy)
    return Deployment(
        **managers.action_facts(term, bound, rest),
        **_drives(robot, names),
        robot_joint_names=managers.sdk_joint_names(robot),
        default_position=rest,
        position_limit_low=_numbers(robot, "joint_pos_limits", joints, 0),
        position_limit_high=_numbers(robot, "joint_pos_limits", joints, 1),
        velocity_limit=_numbers(robot, "joint_vel_limits", joints),
        sim_dt=float(env.physics_dt),
        decimation=int(env.cfg.decimation),
        history_length=history,
        history_order="oldest_first" if history and history > 1 else None,
        commands=managers.commands(env),
    )


def _drives(robot: Any, joints: Sequence[str]) -> dict[str, Any]:
    """Gains and effort limit of each joint, by its actuator group.

    The articulation's data are the solver's own drives: of explicit actuators, which compute their
    efforts outside it, these have no gains and, in older versions, no limit.
    """
    found: dict[str, dict[str, float]] = {"stiffness": {}, "damping": {}, "effort_limit": {}}
    for name, group in getattr(robot, "actuators", {}).items():
        config = robot.cfg.actuators[name]
        # Groups that Newton executes are its own objects, without names and gains.
        names = getattr(robot.actuators, "_group_joint_names", {}).get(name) or group.joint_names
        kinds = {kind.__name__.removesuffix("Cfg") for kind in type(config).__mro__}
        fields = {"effort_limit": EFFORT_LIMITS["ImplicitActuator" in kinds]}
        if kinds & PD_LAWS and not kinds & NETS:
            fields |= {"stiffness": ("stiffness",), "damping": ("damping",)}
        for fact, spellings in fields.items():
            held, told = ([getattr(on, each, None) for each in spellings] for on in (group, config))
            row = managers.per_joint(_first(held), len(names))
            row = row or managers.configured(_first(told), names)
            if row is not None:
                found[fact] |= zip(names, row, strict=True)
    return {
        fact: tuple(known[joint] for joint in joints) if set(joints) <= known.keys() else None
        for fact, known in found.items()
    }


def _first(values: list[Any]) -> Any | None:
    return next((value for value in values if value is not None), None)


def _numbers(robot: Any, name: str, joints: Any, *entry: int) -> tuple[float, ...] | None:
    found: Any = managers.rows(robot, name, joints)
    return None if found is None else managers.per_joint(found[..., *entry], found.shape[1])


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    if not installed.is_installed("isaaclab_tasks"):
        how = how_to_install("isaaclab")
        return f"not installed: Python 3.12 and {how}, or make sim-isaaclab"
    if installed.is_installed("isaacsim"):
        return "installed, with Isaac Sim for the tasks that ask for it"
    return "installed without Isaac Sim: on Newton"


def tasks() -> tuple[str, ...]:
    """Every registered id where it is installed."""
    if not installed.is_installed("isaaclab_tasks"):
        return TASKS
    import isaaclab_tasks  # noqa: F401 - registers its ids

    known = gymnasium.registry.items()
    return tuple(sorted(name for name, spec in known if "env_cfg_entry_point" in spec.kwargs))


def exists(name: str) -> bool:
    """Whether it is registered, if need be by its module; any module's, without Isaac Lab."""
    if not installed.is_installed("isaaclab_tasks"):
        return ":" in name or name in TASKS
    tasks()  # its own come first: a module may build on them
    return registered_id(name, f"isaaclab/{name}") in tasks()


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Env:
    """Environments of a registered id; where this process holds a simulation, in another one.

    Raises:
        InputError: Isaac Lab is not installed, or the task asks for Isaac Sim and it is not.
    """
    task_id = f"isaaclab/{name}"
    installed.require("isaaclab_tasks", "isaaclab", task_id)
    if len(_alive):
        from supple.envs.remote import RemoteEnv

        return RemoteEnv(task_id, settings, device=device, render=render)
    import isaaclab_tasks  # noqa: F401 - registers its ids
    from isaaclab.app import launch_simulation

    own = registered_id(name, task_id)
    # What is launched follows from the configuration: the module comes before, like Isaac Lab's.
    config = _config(own, settings, device)
    # Isaac Sim's launcher puts the simulation on cuda:0 where it is not told.
    options = {"headless": True, "visualizer": ["none"], "device": str(device)}
    launched = launch_simulation(config, options)
    launched.__enter__()
    leave_last(launched)
    env: Any = gymnasium.make(own, cfg=config).unwrapped
    if bare(env) is None:
        env.close()
        raise InputError(
            f"{task_id} is a {type(env).__name__}: expected one robot's environment, which is a"
            f" {' or a '.join(KINDS)}; of several agents supple learns none"
        )
    return IsaacLab(env, task_id=task_id, action_bound=settings.action_bound)


def _config(name: str, settings: EnvSettings, device: torch.device) -> Any:
    """The task's own configuration; without Isaac Sim, if it asks for that, on Newton.

    Raises:
        InputError: it cannot be read, or has no Newton where Isaac Sim is not installed.
    """
    config = _parsed(name, settings, device)
    physics = {kind.__name__ for kind in type(config.sim.physics).__mro__}
    if not physics & KITLESS and not installed.is_installed("isaacsim"):
        config = _parsed(name, settings, device, NEWTON)
    config.compute_final_obs = True
    # Isaac Lab seeds itself with it before it builds; it follows from the seed of ``make``.
    config.seed = int(torch.randint(2**31, ()))
    override(config, settings.config, f"isaaclab/{name}", fixed=FIXED)
    return config


def _parsed(name: str, settings: EnvSettings, device: torch.device, *overrides: str) -> Any:
    """What is registered for a task, with Isaac Lab's own choices among its presets."""
    from isaaclab_tasks.utils import parse_env_cfg

    made = {"device": str(device), "num_envs": settings.num_envs, "overrides": overrides}
    try:
        return parse_env_cfg(name, **made)
    except ValueError as error:
        where, remedy = "", ""
        if NEWTON in overrides:
            where, remedy = " on Newton", "; tasks without Newton need Isaac Sim"
        text = f"{' '.join(str(error).split())}{remedy}"
        raise InputError(f"isaaclab/{name} cannot be configured{where}: {text}") from error
