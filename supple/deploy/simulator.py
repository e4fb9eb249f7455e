"""What a bundle does in the simulator it was trained in, where that is installed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from supple.agents.base import concat
from supple.deploy.checks import FAILED, PASSED, SKIPPED, Verdict, verdict
from supple.deploy.contract import observation_terms
from supple.deploy.hostile import CannotRunError, short
from supple.deploy.runtimes import Runtime
from supple.envs import EnvSettings, make
from supple.envs.base import Env, EnvSpec, Groups
from supple.envs.config import FLAG
from supple.envs.gym_packages import importing_packages, quiet_mujoco
from supple.envs.registry import most_envs
from supple.errors import InputError, SimulatorError
from supple.evaluate import Evaluation, evaluate
from supple.rng import derive_seed

if TYPE_CHECKING:
    from supple.trained import Trained

ENVS = 10
_TASK = re.compile(r"[a-z]+(/[A-Za-z0-9_.-]+){1,2}")
"""Tasks by a registered name: a module that a bundle names is not imported."""


def greedy(runtime: Runtime, groups: tuple[str, ...]) -> Callable[[], Callable[[Groups], Tensor]]:
    """The runtime's policy as ``evaluate`` calls it: memories begin empty with every episode."""

    def begin() -> Callable[[Groups], Tensor]:
        memory: list[np.ndarray] = []

        def act(obs: Groups) -> Tensor:
            rows = concat(obs, groups).cpu().numpy()
            before = memory or [np.zeros((len(rows), runtime.memory), np.float32)]
            found = runtime.rows(rows, *before)
            memory[:] = [found.memory]
            if found.action.dtype == np.int64:
                return torch.from_numpy(found.action[:, 0])
            return torch.from_numpy(found.action)

        return act

    return begin


def _on_cpu(
    begin: Callable[[], Callable[[Groups], Tensor]], env: Env
) -> Callable[[], Callable[[Groups], Tensor]]:
    """A policy on the CPU for a simulator on any device."""

    def begun() -> Callable[[Groups], Tensor]:
        act = begin()
        return lambda obs: act({name: obs[name].cpu() for name in env.spec.observation}).to(
            env.spec.device
        )

    return begun


def _why(error: Exception) -> str:
    """In one line: ours say it all, those of simulators need their kind."""
    ours = isinstance(error, InputError | SimulatorError)
    return str(error) if ours else f"{type(error).__name__}: {short(error)}"


def closed_loop(
    contract: Mapping[str, Any],
    runtime: Runtime | None,
    *,
    episodes: int,
    recorded: Mapping[str, Any] | None,
    add: Callable[[Verdict], None],
    trained: Trained | None = None,
    device: torch.device | str = "cpu",
) -> Verdict:
    """The exported policy's return equals the checkpoint's within both intervals.

    Args:
        contract: names the task.
        runtime: takes rows in batches; None where there is none.
        episodes: how many.
        recorded: the run's own evaluation.
        add: takes the verdict on the observation's terms, which the simulator describes itself.
        trained: the checkpoint on the CPU, where the run is at hand: its policy is evaluated anew.
        device: the simulator's.
    """
    check, task = "closed loop", contract["origin"]["task"]
    if runtime is None:
        return Verdict(check, SKIPPED, "no runtime for many rows is here")
    if trained and trained.settings.task != task:
        return Verdict(check, SKIPPED, f"the run is of {trained.settings.task}, this is of {task}")
    if not _TASK.fullmatch(str(task)):
        return Verdict(check, SKIPPED, f"{task} is a module of one's own: not imported from here")
    groups = tuple(contract["observation"]["groups"])
    try:
        recorded_env = contract["origin"].get("env", {})
        count = min(episodes, ENVS, most_envs(task, torch.device(device)))
        settings = _env_settings(recorded_env, count, own=trained is not None)
        env = make(task, settings, device=device)
    except Exception as error:  # simulators raise kinds of their own where something is missing
        return Verdict(check, SKIPPED, f"no simulator: {_why(error)}")
    with closing(env):
        absent = [name for name in groups if name not in env.spec.observation]
        if absent:
            return Verdict(check, FAILED, f"{task} has no observation group {absent[0]!r}")
        add(terms_agree(contract, env.spec))
        if trained is None and env.progress():
            known = "a curriculum, and only the run knows how far it was: name it with --run"
            return Verdict(check, SKIPPED, f"{task} has {known}")
        policies = [greedy(runtime, groups), *([trained.greedy] if trained else [])]
        found = []
        try:
            for policy in policies:
                if trained and trained.progress:
                    env.load_progress(trained.progress)  # the evaluation before counted on
                seed = derive_seed(0, "verify")
                acting = _on_cpu(policy, env)
                found.append(evaluate(acting, env, episodes=episodes, seed=seed))
        except CannotRunError:
            raise
        except Exception as error:
            return Verdict(check, SKIPPED, f"the simulator broke down: {_why(error)}")
    if trained:
        recorded = {
            "return_mean": found[1].return_mean,
            "return_ci95": found[1].return_ci95,
            "episodes": episodes,
        }
    return compare_returns(check, found[0], recorded)


def terms_agree(contract: Mapping[str, Any], spec: EnvSpec) -> Verdict:
    """Name, unit, history, scale and clip of every entry are what the simulator says of it."""
    check, listed = "observation terms", contract["observation"]["terms"]
    terms = observation_terms(spec, contract["observation"]["groups"])
    if terms is None:
        return Verdict(check, SKIPPED, f"{spec.task_id} does not describe its observation")
    faults = []
    for index, (term, own) in enumerate(zip(listed, terms, strict=False)):
        # What the simulator does not tell may have been said by hand.
        for key in ("name", "unit", "history", "scale", "clip"):
            if None not in (own[key], term[key]) and term[key] != own[key]:
                what = f"observation {index}" if key == "name" else f"{key} of {own['name']}"
                faults.append(f"{what} is {term[key]!r}, in the simulator {own[key]!r}")
                break
    if len(listed) != len(terms):
        faults.append(f"the bundle lists {len(listed)} entries, the simulator {len(terms)}")
    return verdict(check, faults, f"{len(terms)} entries as {spec.task_id} describes them")


def _env_settings(recorded: Mapping[str, Any], num_envs: int, *, own: bool) -> EnvSettings:
    """The run's own noise, delay, history and configuration, which a policy was trained with.

    Args:
        recorded: in the bundle.
        num_envs: how many.
        own: whether the run is at hand. A bundle alone may be anybody's, and what it says must not
            reach into a simulator.

    Raises:
        InputError: they are none, or configure the simulator and the run is not at hand.
    """
    try:
        settings = EnvSettings(**{**recorded, "num_envs": num_envs})
    except TypeError as error:
        raise InputError(f"origin.env is not of this version of supple: {error}") from error
    if settings.config and not own:
        raise InputError(f"{FLAG} is not taken from a bundle alone: name the run with --run")
    return settings


def compare_returns(check: str, found: Evaluation, recorded: Mapping[str, Any] | None) -> Verdict:
    """Whether two means are as far apart as their 95 % intervals allow."""
    own = f"{found.return_mean:.6g} ± {found.return_ci95:.3g}"
    if found.episodes < 2:
        why = "one episode has no interval: raise --episodes"
        return Verdict(check, SKIPPED, f"return {own}, but {why}")
    if recorded is None or recorded["episodes"] < 2:
        why = "the run holds no interval of this checkpoint: name it with --run"
        return Verdict(check, SKIPPED, f"return {own}, but {why}")
    mean, half = recorded["return_mean"], recorded["return_ci95"]
    apart, allowed = abs(found.return_mean - mean), found.return_ci95 + half
    # Equal returns in every episode have no width at all.
    fine = apart <= max(allowed, 1e-6 * max(1.0, abs(mean)))
    text = f"return {own}, checkpoint {mean:.6g} ± {half:.3g}"
    return Verdict(check, PASSED if fine else FAILED, text)


def joints_move(contract: Mapping[str, Any]) -> Verdict:
    """In MuJoCo, a unit of action i loads joint i, by the listed scale, and no other joint."""
    check, task = "joints in the simulator", contract["origin"]["task"]
    joints = contract["joints"]["policy_names"]
    if joints is None or contract["gains"]["control_mode"] != "torque":
        return Verdict(check, SKIPPED, "no torque-controlled joints are described")
    if not str(task).startswith("gym/") or not _TASK.fullmatch(str(task)):
        return Verdict(check, SKIPPED, f"{task} is not one of Gymnasium's")
    env = contract["origin"].get("env")
    if isinstance(env, Mapping) and env.get("config"):
        return Verdict(check, SKIPPED, f"{FLAG} changed it")
    if any(importlib.util.find_spec(name) is None for name in ("mujoco", "gymnasium")):
        return Verdict(check, SKIPPED, "MuJoCo is not installed")
    import gymnasium

    name = str(task).removeprefix("gym/")
    try:
        with importing_packages(str(task)), quiet_mujoco():
            made = gymnasium.make(name)
    except Exception as error:
        return Verdict(check, SKIPPED, f"no simulator: {_why(error)}")
    with closing(made) as robot:
        loads = unit_loads(robot, name, joints, contract["action"]["simulator"])
    if isinstance(loads, str):
        return Verdict(check, FAILED, loads)
    steps = {step["step"]: step for step in contract["action"]["pipeline"]}
    scale = np.array(steps["scale"]["values"])
    faults = []
    for i, j in zip(*np.nonzero(~np.isclose(loads, np.diag(scale), rtol=1e-6)), strict=True):
        expected = scale[i] if i == j else 0.0
        faults.append(
            f"a unit of action {joints[i]} puts {loads[i, j]:.4g} N·m on {joints[j]}: expected"
            f" {expected:.4g}"
        )
    return verdict(check, faults, f"unit action on each of {len(joints)} loads its own joint")


def unit_loads(
    env: Any, task: str, joints: list[str], simulator: Mapping[str, Any]
) -> np.ndarray | str:
    """Joint forces per unit of each action, (A, A), from MuJoCo; or what is missing."""
    import mujoco

    with quiet_mujoco():
        env.reset(seed=0)
        robot: Any = env.unwrapped
        model, data = robot.model, robot.data
        known = {model.joint(index).name: index for index in range(model.njnt)}
        for name in joints:
            if name not in known:
                return f"{task} has no joint {name!r}: expected one of {', '.join(known)}"
        dofs = [int(model.jnt_dofadr[known[name]]) for name in joints]
        low, high = np.array(simulator["low"]), np.array(simulator["high"])

        def forces(action: np.ndarray) -> np.ndarray:
            data.ctrl[:] = (high + low) / 2 + action * (high - low) / 2
            mujoco.mj_forward(model, data)
            return np.array(data.qfrc_actuator)[dofs]

        zero = forces(np.zeros(len(joints)))
        return np.stack([forces(unit) - zero for unit in np.eye(len(joints))])
