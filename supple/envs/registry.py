"""From a task string to an environment: ``<simulator>/<task>`` or ``module:callable``."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch

from supple.envs import installed
from supple.envs.base import Env
from supple.envs.config import FLAG, nearest, pairs
from supple.envs.torch_sim import RandomStreams, python_stream
from supple.envs.wrappers import wrap
from supple.errors import InputError, require_rules, require_values

ADAPTERS: dict[str, str] = {
    "toy": "supple.envs.toy",
    "gym": "supple.envs.gym",
    "mujoco": "supple.envs.mujoco",
    "envpool": "supple.envs.envpool",
    "dmc": "supple.envs.dmc",
    "metaworld": "supple.envs.metaworld",
    "myosuite": "supple.envs.myosuite",
    "humanoidbench": "supple.envs.humanoidbench",
    "isaaclab": "supple.envs.isaaclab",
    "mjlab": "supple.envs.mjlab",
    "maniskill": "supple.envs.maniskill",
    "genesis": "supple.envs.genesis",
    "playground": "supple.envs.playground",
    "brax": "supple.envs.brax",
}
"""Simulator to the module that adapts it, an ``Adapter``, imported on first use."""
ASKED = ("envpool", "dmc", "metaworld", "myosuite", "isaaclab", "mjlab", "maniskill", "playground")
"""Simulators that are asked for their tasks: where they are not installed, few are known."""
PACKAGES: dict[str, tuple[str, ...]] = {
    "gym": ("gymnasium", "mujoco", "box2d"),
    "mujoco": ("mujoco",),
    "envpool": ("envpool",),
    "dmc": ("dm-control", "mujoco"),
    "metaworld": ("metaworld", "gymnasium", "mujoco"),
    "myosuite": ("myosuite", "gymnasium", "mujoco"),
    "humanoidbench": ("humanoid-bench", "mujoco"),
    "isaaclab": ("isaaclab", "isaacsim", "newton", "mujoco-warp", "warp-lang"),
    "mjlab": ("mjlab", "mujoco", "mujoco-warp", "warp-lang"),
    "maniskill": ("mani-skill", "sapien"),
    "genesis": ("genesis-world", "quadrants"),
    "playground": ("playground", "mujoco-mjx", "mujoco", "jax"),
    "brax": ("brax", "jax"),
}
"""Of a simulator: what its physics and rewards depend on, by the names of package registries."""
ON_GPU = ("isaaclab", "mjlab", "maniskill", "genesis", "playground", "brax")
"""Simulators that step all environments of a task in one batch on a GPU."""
MOST_ENVS = 2**20
"""At once: nobody's settings may fill the memory one by one."""
UNPROVED: dict[str, str] = {
    "maniskill": "never run against it: a stand-in only",
    "humanoidbench": "never run against it: a stand-in only",
}
"""Adapters without a row in ``benchmarks/results/simulators.csv``, and what is known of each."""


@dataclass(kw_only=True, slots=True)
class EnvSettings:
    """How the training environments are made."""

    num_envs: int = 1
    """Parallel environments, >= 1."""
    vectorization: Literal["sync", "async"] = "sync"
    """One process for all of them, or one for each (worth it only where a step is slow)."""
    config: tuple[str, ...] = ()
    """Changes to the simulator's own configuration, KEY=VALUE each: its keyword arguments, or
    dotted entries of its configuration. Values are JSON, or text."""
    history: int = 1
    """Newest observation frames the policy sees side by side, >= 1."""
    obs_noise: float = 0.0
    """Deviation of normal noise on the policy's observation [unit of each entry]."""
    declared_noise: float = 0.0
    """The same as a multiple of the noise each channel declares, where a simulator adds none."""
    obs_bias: float = 0.0
    """Most that is added to each entry of the policy's observation during an episode."""
    action_delay: int = 0
    """Steps until an action takes effect."""
    action_scale: float = 0.0
    """Most that actions are scaled by during an episode: a factor within it of 1."""
    action_offset: float = 0.0
    """Most that is added to each action during an episode [policy action]."""
    action_bound: float = 1.0
    """What the policy's 1 means to simulators whose actions have no bounds, > 0."""
    on_bad: Literal["quarantine", "fail"] = "quarantine"
    """What to do with steps that hold NaN, infinity or a reward beyond the limit: leave the
    environment's row out, count it and say so, or end the run."""
    reward_limit: float = 1e8
    """Size beyond which a reward is a fault of the simulator [raw reward], > 0."""
    patience: float = 600.0
    """How long a step may take where workers of their own make it, before the run ends [s]; 0 waits
    for ever."""

    def __post_init__(self) -> None:
        """Refuse values that cannot run."""
        require_values(self, "--env.")
        rules = (
            ("num_envs", 1 <= self.num_envs <= MOST_ENVS, f"in [1, {MOST_ENVS}]"),
            ("history", self.history >= 1, ">= 1"),
            ("obs_noise", self.obs_noise >= 0, ">= 0"),
            ("declared_noise", self.declared_noise >= 0, ">= 0"),
            ("obs_bias", self.obs_bias >= 0, ">= 0"),
            ("action_delay", self.action_delay >= 0, ">= 0"),
            ("action_scale", 0 <= self.action_scale < 1, "in [0, 1)"),
            ("action_offset", self.action_offset >= 0, ">= 0"),
            ("action_bound", self.action_bound > 0, "> 0"),
            ("reward_limit", self.reward_limit > 0, "> 0"),
            ("patience", self.patience >= 0, ">= 0"),
        )
        require_rules(self, "--env.", rules)
        pairs(self.config)


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulator:
    """What ``supple list`` says of a simulator."""

    name: str
    status: str
    tasks: tuple[str, ...]
    """Task names, without the simulator's prefix."""


class Adapter(Protocol):
    """What the module of a simulator offers; importing it must work without the simulator.

    ``exists(name)``, where there is such a function, knows more tasks than ``tasks`` lists;
    ``TAKES_CONFIG``, where it is true, that ``build`` heeds ``settings.config``; ``TAKES_ASYNC``,
    that it heeds ``settings.vectorization``; ``DRAWS``, where it is false, that no task of it has a
    picture; ``MOST_ON_CPU`` how many step together there.
    """

    def status(self) -> str:
        """Whether it can run here, and if not, what to install."""

    def tasks(self) -> tuple[str, ...]:
        """Task names without the simulator's prefix, as far as they can be told here."""

    def build(self, name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Env:
        """The environments of a task, not yet reset.

        Raises:
            InputError: the simulator or one of its packages is missing, or the task is none.
        """


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
        seed: of what is drawn while building, and of the reset it comes with.
        render: whether ``render()`` will be called.

    Raises:
        InputError: unknown task (with the nearest names), or one that cannot be built here.
    """
    with aside():
        # Some simulators randomise robots once, as they are built, from the global generators.
        with RandomStreams(torch.device(device), seed), python_stream(seed):
            env = wrap(_build(task, settings, torch.device(device), render), settings)
        try:
            env.reset(seed)
        except BaseException:
            env.close()
            raise
    return env


def aside() -> contextlib.AbstractContextManager[object]:
    """What simulators print goes to the error stream: programs may read a command's output."""
    return contextlib.redirect_stdout(sys.stderr)


def _build(task: str, settings: EnvSettings, device: torch.device, render: bool) -> Env:
    check_task(task)
    simulator, name = _split(task)
    if simulator == "":
        from supple.envs import custom

        return custom.build(task, settings, device=device, render=render)
    adapter = _adapter(simulator)
    if settings.config and not getattr(adapter, "TAKES_CONFIG", False):
        raise InputError(f"{FLAG} {settings.config[0]}: {simulator}/ takes none, drop the flag")
    most = most_envs(task, device)
    if settings.num_envs > most:
        raise InputError(
            f"{task} steps at most {most} environment on the CPU, got --env.num-envs"
            f" {settings.num_envs}: give --env.num-envs {most}, or --device cuda"
        )
    with _together(task):
        return adapter.build(name, settings, device=device, render=render)


@contextlib.contextmanager
def _together(task: str) -> Iterator[None]:
    """Turn what is raised where packages are known not to work together into one line.

    Raises:
        InputError: instead of it.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told = installed.clashes(_split(task)[0], task)
        if not told:
            raise
        raise InputError(f"{task} cannot be built: {_said(error)}; {told}") from error


def check_task(task: str) -> None:
    """Whether a task exists, without building it.

    Raises:
        InputError: it does not; names the nearest that do.
    """
    simulator, name = _split(task)
    if simulator == "":
        from supple.envs import custom

        custom.load(task)
        return
    if simulator not in ADAPTERS:
        near = nearest(simulator, tuple(ADAPTERS))
        raise InputError(
            f"unknown simulator {simulator} in task {task}{near}; simulators:"
            f" {', '.join(ADAPTERS)}, or your own as module:callable"
        )
    adapter = _adapter(simulator)
    with _together(task):
        exists = getattr(adapter, "exists", None) or adapter.tasks().__contains__
        found = exists(name)
    if not found:
        near = nearest(name, adapter.tasks(), prefix=f"{simulator}/")
        if knows_few(simulator):
            raise InputError(
                f"cannot look up task {task}{near}; {simulator}/ is {adapter.status()}"
            )
        raise InputError(f"unknown task {task}{near}; all of them: supple list {simulator}")


def knows_few(simulator: str) -> bool:
    """Whether only the best known tasks of a simulator are listed, since it is not installed."""
    return simulator in ASKED and _adapter(simulator).status().startswith("not installed")


def require_processes(task: str, settings: EnvSettings) -> None:
    """Refuse processes for environments that are stepped together.

    Raises:
        InputError: names the flag.
    """
    simulator = task.partition("/")[0]
    if settings.vectorization == "sync" or simulator not in ADAPTERS:
        return
    if not getattr(_adapter(simulator), "TAKES_ASYNC", False):
        raise InputError(
            f"--env.vectorization async: {simulator}/ steps all environments in one process, drop"
            " the flag"
        )


def most_envs(task: str, device: torch.device) -> int:
    """How many environments of a task step together on a device, at most."""
    simulator = task.partition("/")[0]
    if device.type != "cpu" or simulator not in ADAPTERS:
        return MOST_ENVS
    most: int = getattr(_adapter(simulator), "MOST_ON_CPU", MOST_ENVS)
    return most


def require_drawing(task: str) -> None:
    """Refuse to film what no simulator draws, before it is built for nothing.

    Raises:
        InputError: its simulator has no pictures.
    """
    simulator = _split(task)[0]
    if simulator in ADAPTERS and not getattr(_adapter(simulator), "DRAWS", True):
        raise InputError(f"cannot film {task}: {simulator}/ has no picture to draw")


def packages_of(task: str) -> tuple[str, ...]:
    """The packages that decide what a task's simulator does; of a callable, its own."""
    simulator = task.partition("/")[0]
    module, colon, _ = simulator.partition(":")
    return (module.partition(".")[0],) if colon else PACKAGES.get(simulator, ())


def runs_on_gpu(task: str) -> bool:
    """Whether a task steps in one batch on a GPU where there is one; nothing is built to find out.

    A callable of one's own does where it names both how many and on which device.

    Raises:
        InputError: there is no such callable.
    """
    simulator = task.partition("/")[0]
    if ":" not in simulator:
        return simulator in ON_GPU
    from supple.envs import custom

    batch = {"num_envs": 1, "device": "cuda"}
    return custom.accepted(custom.load(task), batch) == batch


def known_tasks() -> dict[str, Simulator]:
    """Every simulator with an adapter, installed or not."""
    known = {}
    for name in ADAPTERS:
        adapter = _adapter(name)
        doubt = f"its adapter: {UNPROVED[name]}" if name in UNPROVED else ""
        said = [adapter.status(), doubt, installed.clashes(name)]
        tasks: tuple[str, ...] = ()
        try:
            with aside():
                tasks = adapter.tasks()
        except Exception as error:  # whatever one simulator raises, the others are listed
            said.append(f"cannot be imported: {_said(error)}")
        known[name] = Simulator(name=name, status="; ".join(filter(None, said)), tasks=tasks)
    return known


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


def _adapter(simulator: str) -> Adapter:
    return cast(Adapter, importlib.import_module(ADAPTERS[simulator]))


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
