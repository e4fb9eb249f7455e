"""What a run's folder says of it, and the policy it trained."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supple import checkpoint, machine
from supple.agents import Agent
from supple.build import build_agent
from supple.checkpoint import Checkpoint, following_format
from supple.configs.base import Settings, from_json, missing
from supple.envs.base import EnvSpec, Groups
from supple.errors import InputError, say_once
from supple.region import precision_of
from supple.run import other_simulator
from supple.signed_json import short
from supple.world import from_environment

MOST_RECORD_BYTES = 2**22
"""Of ``settings.json`` and ``spec.json``: a longer one is none, and would only fill the memory."""


def read_settings(folder: Path) -> Settings:
    """The settings of an existing run; says which of them its supple did not know yet.

    Raises:
        InputError: ``folder`` holds no run, or its settings are damaged.
    """
    path = folder / "settings.json"
    record = _read_json(path)
    settings = from_json(record)
    unknown_then = missing(record, settings)
    if unknown_then and from_environment().first:
        say_once(f"{path} is of an older supple, defaults taken for: {', '.join(unknown_then)}")
    return settings


def on_this_machine(settings: Settings, device: str = "") -> Settings:
    """A run's settings on ``device``; by default on its own, or the CPU where that is missing.

    Raises:
        InputError: ``device`` is unknown or not here.
    """
    try:
        found = machine.resolve_device(device or settings.device)
    except InputError:
        if device:
            raise
        print(f"supple: no {short(settings.device)} here, using the CPU", file=sys.stderr)
        found = torch.device("cpu")
    compute, replay = settings.compute, settings.replay
    if found.type != "cuda":  # leave out what only CUDA can do
        precision = "auto" if compute.precision == "tf32" else compute.precision
        compute = dataclasses.replace(compute, precision=precision, cuda_graphs=False)
        replay = dataclasses.replace(replay, spill=False)
    return dataclasses.replace(settings, device=str(found), compute=compute, replay=replay)


def as_recorded(settings: Settings, found: Checkpoint | None) -> Settings:
    """With the checkpoint's precision on the same kind of processor, where auto would time again.

    Two measurements could differ, and the run part from itself.
    """
    if found is None or settings.compute.precision != "auto":
        return settings
    device = machine.resolve_device(settings.device)
    with following_format(found.path):
        path = found.header["path"]
        here = (device.type, machine.model_name(device)) == (path["device"], path["model"])
        precision = precision_of(path["mode"]) if here else None
    compute = dataclasses.replace(settings.compute, precision=precision or "auto")
    return dataclasses.replace(settings, compute=compute)


def checkpoint_at(path: Path | str) -> tuple[Checkpoint, Path]:
    """A run's newest intact checkpoint, or the one whose folder this is, and the run's folder.

    Raises:
        InputError: nothing there, or damaged.
    """
    path = Path(path).resolve()
    folder = checkpoint.run_of(path)
    if folder != path:
        return checkpoint.load(path), folder
    read_settings(folder)  # says "no run here" before "no checkpoint here"
    found, skipped = checkpoint.newest_intact(folder)
    for reason in skipped:
        print(f"supple: skipped a damaged checkpoint: {reason}", file=sys.stderr)
    return found, folder


def check_fits(found: Checkpoint, settings: Settings, spec: EnvSpec) -> None:
    """Refuse a checkpoint of another agent or of other observations, in one line.

    Raises:
        InputError: says what was expected and found.
    """
    with following_format(found.path):
        agent = str(found.header["agent"])
        recorded = EnvSpec.from_json(found.header["spec"])
    if agent != settings.agent_name:
        raise InputError(
            f"{found.path} is a checkpoint of agent {agent[:100]}, this run's agent is"
            f" {settings.agent_name}: put back this run's own checkpoint"
        )
    for name in ("observation", "action", "num_envs"):
        expected, got = getattr(spec, name), getattr(recorded, name)
        if expected != got:
            raise InputError(
                f"{found.path} was made with {name} {got}, {spec.task_id} has {expected}:"
                " put back this run's own checkpoint"
            )


def agent_of(found: Checkpoint, settings: Settings, spec: EnvSpec) -> Agent:
    """The agent that a checkpoint holds; tells where the simulator here is another.

    Raises:
        InputError: it does not fit the settings or the spec, or is damaged.
    """
    check_fits(found, settings, spec)
    with following_format(found.path):
        changed = short("; ".join(other_simulator(found.header)))
    if changed:
        say_once(f"the simulator is another than in training: {changed}")
    agent = build_agent(settings, spec)
    with following_format(found.path):
        agent.load_state_dict(found.state["agent"])
    return agent


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A trained policy, without a simulator."""

    folder: Path
    settings: Settings
    env_steps: int
    agent: Agent
    spec: EnvSpec
    header: Mapping[str, Any]
    """The checkpoint's."""
    progress: Mapping[str, Any]
    """Of its simulator, ``Env.progress()``."""

    def greedy(self) -> Callable[[Groups], Tensor]:
        """Called as episodes begin: deterministic actions for observation groups."""
        return self.agent.greedy()


def load_trained(path: Path | str, *, device: str = "") -> Trained:
    """The policy of a run's newest intact checkpoint, or of one checkpoint folder.

    Args:
        path: either of them.
        device: where it acts; by default on the run's own, or the CPU where that is missing.

    Raises:
        InputError: nothing there, damaged, or of another agent.
    """
    found, folder = checkpoint_at(path)
    settings = as_recorded(on_this_machine(read_settings(folder), device), found)
    record = _read_json(folder / "spec.json")
    try:
        spec = EnvSpec.from_json(record)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{folder / 'spec.json'} is damaged: expected the run's EnvSpec, got {error!r}; put"
            " back the original file"
        ) from error
    if settings.threads:
        torch.set_num_threads(settings.threads)
    agent = agent_of(found, settings, spec)
    with following_format(found.path):
        env_steps = int(found.header["env_steps"])
        progress = found.progress
    return Trained(
        folder=folder,
        settings=settings,
        env_steps=env_steps,
        agent=agent,
        spec=spec,
        header=found.header,
        progress=progress,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} holds no run: expected {path}")
    if path.stat().st_size > MOST_RECORD_BYTES:
        raise InputError(f"{path} is damaged: expected at most {MOST_RECORD_BYTES:,} bytes")
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    return record
