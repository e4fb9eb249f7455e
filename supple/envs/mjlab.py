"""mjlab: ``mjlab/<id>``, MuJoCo on Warp with managers like Isaac Lab's.

Tasks of one's own are ``mjlab/<module>:<id>``, whose module is imported and registers them; those
of packages with an entry point ``mjlab.tasks`` mjlab finds itself.

mjlab resets ended environments itself, and then their last observation is lost; asked not to
(``auto_reset``), it returns it, and this adapter resets them: the same order of events, exact final
observations. Draws of its start-up randomisation come from the seed ``supple.envs.make`` is given.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from supple.envs import installed, managers
from supple.envs.base import Deployment
from supple.envs.config import override
from supple.envs.custom import registered_id
from supple.envs.gym_packages import draw_without_display
from supple.envs.torch_sim import Groups, Outcome, TorchSim, mixed, unbounded
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = (
    "Mjlab-Cartpole-Balance",
    "Mjlab-Cartpole-Swingup",
    "Mjlab-Velocity-Flat-Unitree-G1",
    "Mjlab-Velocity-Flat-Unitree-Go1",
    "Mjlab-Velocity-Rough-Unitree-G1",
    "Mjlab-Velocity-Rough-Unitree-Go1",
)
"""Where mjlab is not installed; its own registry knows more."""


TAKES_CONFIG = True
FIXED = {
    "scene.num_envs": "--env.num-envs",
    "auto_reset": "this adapter, which makes the resets",
}
LEAST = (1, 6)
"""Version of mjlab."""


def recognises(made: Any) -> bool:
    """Whether an object is mjlab's environment, without importing mjlab to find out."""
    return any(
        kind.__name__ == "ManagerBasedRlEnv" and kind.__module__.startswith("mjlab.")
        for kind in type(made).__mro__
    )


class Mjlab(TorchSim):
    """A ``ManagerBasedRlEnv`` under the contract of ``envs/base.py``; it is closed with this one.

    Args:
        env: its ``cfg.auto_reset`` is turned off.
        task_id: how it is called in messages and files.
        action_bound: what the policy's 1 means to the simulator.
        trainer: as ``Groups`` takes it.
    """

    def __init__(
        self,
        env: Any,
        *,
        task_id: str,
        action_bound: float = 1.0,
        trainer: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        _require_version(task_id)
        self._env = env
        env.cfg.auto_reset = False
        sample, _ = env.reset()
        groups = Groups(sample, task_id, trainer)
        described = managers.channels(
            env,
            groups.source,
            _joints(env),
            sliding=_sliding(env),
            action_bound=action_bound,
        )
        super().__init__(
            groups,
            action=unbounded(env.action_manager.total_action_dim, action_bound),
            task_id=task_id,
            num_envs=env.num_envs,
            device=torch.device(env.device),
            max_episode_steps=env.max_episode_length or None,
            control_dt=env.step_dt,
            deployment=_deployment(env, groups.source["policy"], action_bound),
            channels=tuple(described) if described else None,
        )

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        observation, _ = self._env.reset()
        return dict(observation)

    def _advance(self, action: Tensor) -> Outcome:
        reached, reward, terminated, truncated, extras = self._env.step(action)
        # Overwritten by the reset that follows.
        terminated, truncated = terminated.clone(), truncated.clone()
        if self._env.cfg.is_finite_horizon:  # its time limit is part of the task
            terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
        ended = terminated | truncated
        rows = ended.nonzero().squeeze(-1)
        if len(rows) == 0:
            return Outcome(reached, reward, terminated, truncated, extras=extras)
        reward, logged = reward.clone(), extras.get("log", {})
        before = {key: value.clone() for key, value in _command_metrics(self._env).items()}
        fresh, extras = self._env.reset(env_ids=rows)
        # It adds to the commands' metrics of all rows, and its log takes the place of the step's.
        for key, value in _command_metrics(self._env).items():
            value.copy_(mixed(ended, value, before.get(key, value)))
        extras["log"] = {**logged, **extras.get("log", {})}
        # The others' noise was drawn anew with it: only the rows that were reset are taken.
        shown = mixed(ended, fresh, reached)
        return Outcome(shown, reward, terminated, truncated, final=reached, extras=extras)

    def spread_ends(self, seed: int) -> None:
        """Begin at random counts of steps."""
        self._spread(self.spec.max_episode_steps or 1, seed)

    def render(self) -> np.ndarray:
        """A picture of environment 0, (H, W, 3) uint8.

        Raises:
            NotImplementedError: it was not made to draw.
        """
        picture = self._env.render()
        if picture is None:
            raise NotImplementedError(f"{self.spec.task_id} was made without render=True")
        return np.ascontiguousarray(picture)


def _require_version(task_id: str) -> None:
    """Refuse mjlab before 1.6: it resets by itself, or lets a reset move other environments on."""
    try:
        found = importlib.metadata.version("mjlab")
    except importlib.metadata.PackageNotFoundError:
        return  # from a checkout
    if tuple(map(int, found.split(".")[:2])) < LEAST:
        raise InputError(f"{task_id} needs mjlab 1.6 or newer, got {found}: upgrade mjlab")


def _command_metrics(env: Any) -> dict[tuple[str, str], Tensor]:
    """Each command's, (N,), by both names."""
    manager = getattr(env, "command_manager", None)
    if manager is None:
        return {}
    return {
        (term, name): value
        for term in manager.active_terms
        for name, value in manager.get_term(term).metrics.items()
    }


def _joints(env: Any) -> tuple[str, ...]:
    """Joint names of the driven robot, in its own order."""
    term = managers.joint_action(env)
    return tuple(term._entity.joint_names) if term is not None else ()


def _sliding(env: Any) -> set[str]:
    """Those of the driven robot's joints that do not turn."""
    import mujoco

    joints = _joints(env)
    slide = mujoco.mjtJoint.mjJNT_SLIDE
    inside = zip(joints, _in_scene(managers.joint_action(env), joints), strict=True)
    return {name for name, whole in inside if env.sim.mj_model.joint(whole).type[0] == slide}


def _in_scene(term: Any, joints: Sequence[str]) -> list[str]:
    """What the whole model calls joints of the robot that an action term drives."""
    return [f"{managers.asset_name(term)}/{name}" for name in joints]


def _deployment(env: Any, policy: Sequence[str], bound: float) -> Deployment | None:
    """What the action term, the robot and the MuJoCo model know; None without a joint action."""
    term = managers.joint_action(env)
    if term is None:
        return None
    robot, joints, names = term._entity, term.target_ids, managers.joint_names(term) or ()
    rest = managers.per_joint(robot.data.default_joint_pos[:, joints], len(names))
    rest = rest or managers.configured(robot.cfg.init_state.joint_pos, names)
    history = managers.history_length(env, policy)
    limits = [
        managers.per_joint(robot.data.joint_pos_limits[:, joints, side], len(names))
        or managers.per_joint(robot.data.default_joint_pos_limits[:, joints, side], len(names))
        for side in (0, 1)
    ]
    return Deployment(
        **managers.action_facts(term, bound, rest),
        # As it was compiled: randomisation is on the device.
        **_gains(env.sim.mj_model, _in_scene(term, names)),
        robot_joint_names=managers.sdk_joint_names(robot),
        default_position=rest,
        position_limit_low=limits[0],
        position_limit_high=limits[1],
        sim_dt=env.physics_dt,
        decimation=env.cfg.decimation,
        history_length=history,
        history_order="oldest_first" if history and history > 1 else None,
        commands=managers.commands(env),
    )


def _gains(model: Any, joints: Sequence[str]) -> dict[str, Any]:
    """kp, kd and torque limit at each joint, by the one actuator that drives it.

    Gains are those of position servos (force = kp * (target - q) - kd * dq) without a gear, behind
    which targets would not be the joint's. None elsewhere.

    Args:
        model: MuJoCo's, of the whole scene.
        joints: by the scene's names, in which an entity's begin with its own.
    """
    import mujoco

    on_joints = np.isin(
        model.actuator_trntype, (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    )
    drivers = []
    for joint in joints:
        place = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, joint)
        found = np.flatnonzero(on_joints & (model.actuator_trnid[:, 0] == place))
        if len(found) != 1:
            return {}
        drivers += found.tolist()
    gear = abs(model.actuator_gear[drivers, 0])
    gain, bias = model.actuator_gainprm[drivers], model.actuator_biasprm[drivers]
    servo = bool((bias[:, 1] == -gain[:, 0]).all() and (gain[:, 0] > 0).all() and (gear == 1).all())
    limited = bool(model.actuator_forcelimited[drivers].all())
    limit = gear * model.actuator_forcerange[drivers, 1]
    return {
        "stiffness": tuple(gain[:, 0].tolist()) if servo else None,
        "damping": tuple((-bias[:, 2]).tolist()) if servo else None,
        "effort_limit": tuple(limit.tolist()) if limited else None,
    }


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    return installed.status("mjlab", "mjlab")


def tasks() -> tuple[str, ...]:
    """Mjlab's own registry where it is installed, else the tasks it is known to ship."""
    if not installed.is_installed("mjlab"):
        return TASKS
    from mjlab.tasks.registry import list_tasks

    return tuple(list_tasks())


def exists(name: str) -> bool:
    """Whether it is registered, if need be by its module; any module's, without mjlab."""
    if not installed.is_installed("mjlab"):
        return ":" in name or name in TASKS
    tasks()  # its own come first: a module may build on them
    return registered_id(name, f"mjlab/{name}") in tasks()


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Mjlab:
    """The environments of a registered mjlab task.

    Raises:
        InputError: mjlab is not installed.
    """
    installed.require("mjlab", "mjlab", f"mjlab/{name}")
    if render:
        draw_without_display()
    import mjlab.tasks  # noqa: F401 - fills the registry
    from mjlab.envs import ManagerBasedRlEnv
    from mjlab.tasks.registry import load_env_cfg, load_rl_cfg

    own = registered_id(name, f"mjlab/{name}")
    config = load_env_cfg(own)
    config.scene.num_envs = settings.num_envs
    override(config, settings.config, f"mjlab/{name}", fixed=FIXED)
    with contextlib.redirect_stdout(io.StringIO()):  # tables of every manager
        env = ManagerBasedRlEnv(config, str(device), "rgb_array" if render else None)
    return Mjlab(
        env,
        task_id=f"mjlab/{name}",
        action_bound=settings.action_bound,
        trainer=getattr(load_rl_cfg(own), "obs_groups", None),
    )
