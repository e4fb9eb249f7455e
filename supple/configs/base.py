"""The settings of a run, and their JSON form.

Order: preset (per machine and purpose), recipe (per task), command-line flags. Presets (a file per
agent beside this one) and recipes are functions that return or change a full settings object;
nothing is overwritten afterwards.

Runs outlive the supple that recorded them: the default of a new field must be what was done before
there was such a field, and a field that is renamed or removed ends those runs.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from supple.agents import base_of
from supple.agents.care import CareSettings
from supple.agents.flashsac_settings import FlashSACSettings
from supple.agents.ppo_settings import PPOSettings
from supple.diagnostics.settings import DiagnosticsSettings
from supple.envs import EnvSettings
from supple.errors import InputError, require_rules, require_values
from supple.region import ComputeSettings
from supple.replay import ReplaySettings
from supple.signed_json import short
from supple.version import __version__

AgentSettings = FlashSACSettings | PPOSettings
AGENT_SETTINGS: dict[str, type[AgentSettings]] = {
    "flashsac": FlashSACSettings,
    "ppo": PPOSettings,
}
"""Of each agent; those of one's own have their base's."""


@dataclass(kw_only=True, slots=True)
class EvalSettings:
    """Deterministic evaluation during and after training, in environments of its own."""

    every: int = 0
    """Environment steps between evaluations; 0 is a tenth of the run."""
    episodes: int = 10
    """Episodes per evaluation."""
    video: bool = True
    """Write a video of the final policy, where the simulator can draw."""
    video_every: int = 0
    """Environment steps between videos during training, each made with an evaluation; 0 is none."""


@dataclass(kw_only=True, slots=True)
class LogSettings:
    """Metric rows, and where else they go."""

    every: int = 0
    """Environment steps between metric rows; 0 is a 200th of the run."""
    wandb: str = ""
    """Weights & Biases project; empty is off."""


@dataclass(kw_only=True, slots=True)
class CheckpointSettings:
    """What is kept of a run."""

    every: int = 0
    """Environment steps between checkpoints; 0 is a tenth of the run."""
    keep_replay: int = 2
    """Newest checkpoints whose replay rows stay on disk, so that they can be resumed. 0 writes no
    rows; a resumed FlashSAC then waits until an empty ring has min-replay transitions again."""


@dataclass(kw_only=True, slots=True)
class Settings:
    """Everything that defines a run."""

    task: Annotated[str, tyro.conf.Suppress] = ""
    agent_name: Annotated[str, tyro.conf.Suppress] = "flashsac"
    preset: Annotated[str, tyro.conf.Suppress] = ""
    env_steps: int = 1_000_000
    """Environment steps of the whole run, over all environments and processes."""
    seed: int = 0
    """Seed of every random draw, >= 0."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>; auto takes CUDA where there is one."""
    threads: int = 0
    """CPU threads for tensors; 0 is torch's own choice: every core, or OMP_NUM_THREADS."""
    max_minutes: float = 0.0
    """Stop training, as if finished, after this much wall-clock of this process; 0 is no limit."""
    overlap: bool = False
    """Learn while the simulator steps, on a thread of its own; each update then misses the newest
    vector step. For simulators that take a good part of the time."""
    init_from: str = ""
    """Start from the networks and statistics of another run, named by its folder or by one of its
    checkpoints; empty starts from scratch."""
    run_dir: str = ""
    """The run's folder, exactly; empty makes runs/<task>/<agent>/<time>-seed<k>."""
    env: EnvSettings = field(default_factory=EnvSettings)
    agent: tyro.conf.AvoidSubcommands[AgentSettings] = field(default_factory=FlashSACSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    log: LogSettings = field(default_factory=LogSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    care: CareSettings = field(default_factory=CareSettings)
    diagnostics: DiagnosticsSettings = field(default_factory=DiagnosticsSettings)

    def __post_init__(self) -> None:
        """Refuse values that cannot run."""
        require_values(self, "--")
        rules = (
            ("env_steps", self.env_steps >= 1, ">= 1"),
            ("seed", self.seed >= 0, ">= 0"),
            ("threads", self.threads >= 0, ">= 0"),
            ("max_minutes", self.max_minutes >= 0, ">= 0"),
            ("eval.every", self.eval.every >= 0, ">= 0"),
            ("eval.video_every", self.eval.video_every >= 0, ">= 0"),
            ("eval.episodes", self.eval.episodes >= 1, ">= 1"),
            ("log.every", self.log.every >= 0, ">= 0"),
            ("checkpoint.every", self.checkpoint.every >= 0, ">= 0"),
            ("checkpoint.keep_replay", self.checkpoint.keep_replay >= 0, ">= 0"),
        )
        require_rules(self, "--", rules)


def to_json(settings: Settings) -> dict[str, Any]:
    """Nested plain values; ``from_json`` reads them back."""
    return dataclasses.asdict(settings)


def missing(record: Mapping[str, Any], settings: Settings) -> list[str]:
    """Dotted names of what ``from_json`` filled in, as a record of an older supple lacks it."""

    def walk(own: Mapping[str, Any], told: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for name, value in own.items():
            if name not in told:
                yield prefix + name
            elif isinstance(value, Mapping):
                yield from walk(value, told[name], f"{prefix}{name}.")

    return list(walk(to_json(settings), record, ""))


def flat(settings: Settings) -> dict[str, Any]:
    """Every value under its dotted name, for example ``agent.gamma``."""

    def walk(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in record.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(to_json(settings), ""))


def settings_of(agent_name: object) -> type[AgentSettings]:
    """The class of an agent's settings.

    Raises:
        InputError: there is no such agent.
    """
    if not isinstance(agent_name, str) or not (agent_name in AGENT_SETTINGS or ":" in agent_name):
        known = ", ".join(AGENT_SETTINGS)
        raise InputError(
            f"settings.agent_name: expected one of {known} or module:Class, got {agent_name!r}"
        )
    return AGENT_SETTINGS[base_of(agent_name)]


def from_json(record: Mapping[str, Any]) -> Settings:
    """The settings ``to_json`` wrote, here or in an older supple.

    Fields that it did not know take their defaults.

    Raises:
        InputError: a field is unknown or of another type.
    """
    built: Settings = _build(Settings, record, "settings")
    return built


def _build(kind: type[Any], record: Any, where: str) -> Any:
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: expected an object, got {record!r}")
    hints = typing.get_type_hints(kind)
    if kind is Settings:
        hints["agent"] = settings_of(record.get("agent_name"))
    names = [item.name for item in dataclasses.fields(kind)]
    for name in record:
        if name not in names:
            raise InputError(
                f"{where}.{short(name)} is no setting of supple {__version__}: a newer supple wrote"
                " it, or it was removed since; use the supple that the run's versions.json names"
            )
    # A group that is missing is built from nothing: ``agent``, too, is then of its own kind.
    told = {name: {} for name in names if dataclasses.is_dataclass(hints[name])} | dict(record)
    values = {name: _value(hints[name], told[name], f"{where}.{name}") for name in told}
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _build(hint, value, where)
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value in options:
            return value
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        if type(value) is int and float in options and int not in options:
            return float(value)  # as where the hint is float alone
        if value is None or isinstance(value, tuple(o for o in options if isinstance(o, type))):
            return value
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple) and all(type(item) is options[0] for item in value):
            return tuple(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is hint:
        return value
    raise InputError(f"{where}: expected {hint}, got {value!r}")
