"""From settings to a run that is ready to start, new or resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from shlex import quote
from typing import IO, Any

import torch

from supple import checkpoint, distributed, machine
from supple.agents import Agent
from supple.build import build
from supple.checkpoint import Checkpoint, following_format, list_checkpoints
from supple.configs.base import Settings, from_json, settings_of, to_json
from supple.display import Display, NoDisplay
from supple.distributed import world
from supple.divergence import DUMPS
from supple.envs.base import EnvSpec
from supple.envs.registry import packages_of, require_processes
from supple.errors import InputError
from supple.files import claim, replace_file, sync_folder
from supple.metrics import METRICS, WANDB_ID, require_wandb
from supple.replay import Replay, prefill
from supple.replay.segments import verify as verify_rows
from supple.run import REPLAY_FOLDER, RESULT, Run
from supple.trained import as_recorded, check_fits, checkpoint_at, on_this_machine, read_settings
from supple.world import from_environment, restarted

RUN_NAMES = (
    "spec.json",
    "versions.json",
    METRICS,
    "metrics.jsonl",
    WANDB_ID,
    "progress.png",
    RESULT,
    "checkpoints",
    REPLAY_FOLDER,
    "videos",
    "ranks",
    DUMPS,
)
"""What a run writes into its folder, besides ``settings.json``."""


def new_run(settings: Settings) -> Run:
    """A run that starts from scratch, its folder created.

    Raises:
        InputError: task, agent, memory or folder do not allow it; nothing was written then.
    """
    # Fields may have been set since the settings were made, and what is recorded must be readable.
    kind = settings_of(settings.agent_name)
    if type(settings.agent) is not kind:
        raise InputError(
            f"settings.agent is a {type(settings.agent).__name__}, expected {kind.__name__}, which"
            f" agent_name {settings.agent_name} reads; what only your own agent reads is its"
            " class's"
        )
    from_json(to_json(settings))
    require_processes(settings.task, settings.env)
    if settings.log.wandb:
        require_wandb(settings.log.wandb)
    distributed.join(machine.resolve_device(settings.device))
    display = _display(settings)
    with contextlib.ExitStack() as undo:
        env, agent, replay = build(settings, display.notice)
        undo.callback(env.close)
        source = _start_from(settings, env.spec, agent)
        _prefill(settings, agent, replay)
        unseen = env.spec.num_envs * world().size if settings.overlap else 0
        agent.check_length(settings.env_steps, replay.size, unseen)
        _require_same(settings, agent)
        folder, lock = prepare_folder(settings, env.spec)
        undo.callback(lock.close)
        distributed.broadcast(agent.shared_state())
        run = Run(
            settings,
            folder=folder,
            env=env,
            agent=agent,
            replay=replay,
            display=display,
            lock=lock,
        )
        run.open_sinks()
        undo.pop_all()
    many = f"{env.spec.num_envs} environments"
    if world().size > 1:
        many += f" in each of {world().size} processes"
    if env.spec.num_envs != settings.env.num_envs:  # a callable of one's own with a fixed number
        many += f", which is how many {settings.task} builds, not --env.num-envs"
    display.notice(f"{folder}: preset {settings.preset}, {many}")
    display.notice(f"update: {agent.compute}")
    if source:
        display.notice(f"starting from the networks of {source}")
    if agent.remark:
        display.notice(agent.remark)
    return run


def begun_or_continued(settings: Settings) -> Run:
    """What torchrun may start again after a failure: the run in its folder goes on.

    Machines count restarts for themselves, so the processes agree on what this start is. What was
    refused is started again, too: the folder may hold another run.
    """
    distributed.join(machine.resolve_device(settings.device))
    folder = Path(settings.run_dir)
    again = distributed.agreed([float(restarted())])[0] > 0
    if distributed.from_first("go on" if again and _holds(folder, settings) else ""):
        return resumed_run(folder)
    return new_run(settings)


def _holds(folder: Path, settings: Settings) -> bool:
    """Whether the folder, wherever it lies by now, holds the run of these settings."""
    if not (folder / "settings.json").exists():
        return False
    recorded = dataclasses.replace(read_settings(folder), run_dir=settings.run_dir)
    return as_text(recorded) == as_text(settings)


def resumed_run(
    folder: Path | str, env_steps: int | None = None, *, device: str = "", wandb: bool = True
) -> Run:
    """A run that continues from its newest intact checkpoint, or from scratch before its first.

    Args:
        folder: the run's folder.
        env_steps: extend training to this many steps. FlashSAC's learning-rate schedule keeps its
            length, PPO's linear one ends there.
        device: continue there; by default on the run's own, or the CPU where that is missing.
        wandb: False goes on without Weights & Biases, this time.

    Raises:
        InputError: no intact checkpoint, one that does not fit the run, or nothing left to do.
    """
    folder = Path(folder)
    recorded = read_settings(folder)
    if env_steps is not None:
        recorded = dataclasses.replace(recorded, env_steps=env_steps)
    settings = on_this_machine(recorded, device)
    if not wandb:
        settings = dataclasses.replace(settings, log=dataclasses.replace(settings.log, wandb=""))
    _require_processes(folder)
    distributed.join(torch.device(settings.device))
    with contextlib.ExitStack() as undo:
        own = own_folder(folder)
        lock = undo.enter_context(claim(own))
        found, skipped = newest_common(folder) if list_checkpoints(folder) else (None, [])
        done = found.header["env_steps"] if found else 0
        finished = done >= recorded.env_steps and (folder / RESULT).exists()
        if finished or (env_steps is not None and env_steps <= done):
            raise InputError(
                f"{folder} has already trained {done:,} of {recorded.env_steps:,} env steps:"
                f" extend it with --env-steps, more than {done}"
            )
        display = _display(settings)
        kept = as_recorded(settings, found)
        # By all or none: the others would wait for it in the timing of ``auto``.
        if distributed.lowest(int(kept.compute.precision != "auto")):
            settings = kept
        env, agent, replay = build(settings, display.notice)
        undo.callback(env.close)
        if found:
            check_fits(found, settings, env.spec)
        else:
            _start_from(settings, env.spec, agent)
            _prefill(settings, agent, replay)
        _require_same(settings, agent)
        for reason in skipped:
            display.notice(f"skipped a damaged checkpoint: {reason}")
        run = Run(
            settings,
            folder=own,
            env=env,
            agent=agent,
            replay=replay,
            display=display,
            resumed=found,
            lock=lock,
        )
        run.open_sinks()
        # Nothing may be refused from here on: the folder changes.
        checkpoint.clean_leftovers(own)
        (own / RESULT).unlink(missing_ok=True)  # of the run before it was extended
        if found:
            checkpoint.abandon_after(own, done)
            if world().first:
                _add_versions(folder, settings.task)
                if env_steps is not None:
                    _write_json(folder / "settings.json", to_json(recorded))
        else:
            if world().first:
                _describe(folder, recorded, env.spec)
            run.start_again()
            display.notice(f"{folder} has no checkpoint yet: starting again")
        undo.pop_all()
        return run


def _start_from(settings: Settings, spec: EnvSpec, agent: Agent) -> Path | None:
    """Give the agent what ``settings.init_from`` names, if it does; the checkpoint it was.

    Raises:
        InputError: there is none, or it is of another agent, architecture or observation.
    """
    if not settings.init_from:
        return None
    found, folder = checkpoint_at(Path(settings.init_from))
    source = read_settings(folder)

    def require(what: str, expected: object, got: object) -> None:
        if expected != got:
            raise InputError(
                f"--init-from {found.path}: expected networks with {what} {expected}, as this run"
                f" asks for, got {got}: make the two the same, or start from scratch"
            )

    require("--agent", settings.agent_name, source.agent_name)
    for name in agent.architecture():
        flag = f"--agent.{name.replace('_', '-')}"
        require(flag, *(attrgetter(name)(each.agent) for each in (settings, source)))
    with following_format(found.path):
        recorded = EnvSpec.from_json(found.header["spec"])
        require("observation", spec.observation, recorded.observation)
        agent.start_from(found.state["agent"])
    return found.path


def _prefill(settings: Settings, agent: Agent, replay: Replay) -> None:
    if settings.replay.prefill:
        path = Path(settings.replay.prefill)
        prefill(replay, path, reward_limit=settings.env.reward_limit)
        for step in replay.steps():
            agent.observe(step.to(agent.device))


def _display(settings: Settings) -> Display:
    kind = Display if world().first else NoDisplay
    return kind(settings.env_steps, title=_title(settings))


def _require_same(settings: Settings, agent: Agent) -> None:
    """Refuse processes that would not learn the same, in one line."""
    # Each process has its own of the GPUs.
    kind = dataclasses.replace(settings, device=settings.device.partition(":")[0])
    distributed.require_same(
        {"settings": as_text(kind), "update": str(agent.compute)},
        "settings, or another way to compute,",
        "start all with one command, on machines of one kind",
    )


def own_folder(folder: Path) -> Path:
    """Where this process writes: the run's folder, or its own within it."""
    distributed.on_loss(
        f"checkpoints are whole: continue with torchrun ... -m supple resume {quote(str(folder))}"
    )
    if world().first:
        return folder
    own = folder / "ranks" / str(world().rank)
    own.mkdir(parents=True, exist_ok=True)
    sync_folder(own.parent)
    sync_folder(folder)
    return own


def _require_processes(folder: Path) -> None:
    """Refuse to go on with more or fewer processes than wrote the newest checkpoint.

    Raises:
        InputError: says how to start as many.
    """
    size = from_environment().size
    for path in reversed(list_checkpoints(folder)):
        with contextlib.suppress(InputError):  # the next older one tells as well
            before = checkpoint.read_header(path).get("processes", 1)
            if type(before) is not int or before < 1:
                continue
            if before == size:
                return
            command = f"-m supple resume {quote(str(folder))}"
            start = f"torchrun --nproc-per-node={before} {command}, or on several machines as then"
            break
    else:
        return
    if before == 1:
        many, start = "one process", f"python {command}"
    else:
        many = f"{before} processes, each with its share of the replay rows"
    raise InputError(f"{folder} was trained by {many}, now there are {size}: continue with {start}")


def newest_common(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that every process can resume from, with this process's part in it.

    Returns:
        It, and in one line each why newer ones were skipped here.

    Raises:
        InputError: there is none.
    """
    if world().size == 1:
        return newest_resumable(folder)
    own, most = own_folder(folder), sys.maxsize
    found: Checkpoint | None = None
    reasons: list[str] = []
    while True:
        if found is None or checkpoint.step_of(found.path) > most:
            found, skipped = _newest_or_none(own, most)
            reasons += skipped
        step = checkpoint.step_of(found.path) if found else -1
        least = distributed.lowest(step)
        if distributed.lowest(int(step == least)):
            break
        if found and step > least:
            reasons.append(f"{found.path} is not whole in every process")
        most = least
    if found is None:
        reason = reasons[0] if reasons else "another process has none"
        raise InputError(
            f"{folder} has no checkpoint that all {world().size} processes can resume: {reason}"
        )
    if not world().first:
        for reason in reasons:
            print(f"supple: process {world().rank} skipped: {reason}", file=sys.stderr)
        path = next(each for each in list_checkpoints(folder) if checkpoint.step_of(each) == step)
        found.state["agent"] = checkpoint.load(path).state["agent"] | found.state["agent"]
    return found, reasons


def _newest_or_none(folder: Path, most: int) -> tuple[Checkpoint | None, list[str]]:
    try:
        return newest_resumable(folder, most)
    except InputError as error:
        return None, [str(error)]


def newest_resumable(folder: Path, most: int = sys.maxsize) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is intact together with its replay rows.

    Args:
        folder: the run's, or one process's part of it.
        most: environment steps that it may have.

    Returns:
        It, and in one line each why newer ones were skipped.

    Raises:
        InputError: there is none; names the newest one's damage.
    """
    skipped: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        if checkpoint.step_of(path) > most:
            continue
        try:
            found = checkpoint.load(path)
            with following_format(path):
                verify_rows(folder / REPLAY_FOLDER, found.header["replay"])
                int(found.header["env_steps"])
        except InputError as error:
            skipped.append(str(error))
        else:
            return found, skipped
    reason = skipped[0] if skipped else "it has none yet"
    raise InputError(f"{folder} has no checkpoint to resume from: {reason}")


def default_folder(settings: Settings) -> Path:
    """``--run-dir`` exactly, or runs/<task>/<agent>/<time>-seed<k>."""
    if settings.run_dir:
        return Path(settings.run_dir)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    task, agent = (
        name.replace("/", "-").replace(":", "-") for name in (settings.task, settings.agent_name)
    )
    return Path("runs") / task / agent / f"{stamp}-seed{settings.seed}"


def prepare_folder(settings: Settings, spec: EnvSpec) -> tuple[Path, IO[str]]:
    """Create the run's folder, lock it, and write settings, versions and spec.

    Only the first of several processes does; the others get their own within it.

    Raises:
        InputError: it already holds a run or files a run would write, or cannot be written.
    """
    if not world().first:
        own = own_folder(Path(distributed.from_first("")))
        return own, claim(own)
    folder = default_folder(settings)
    try:
        if settings.run_dir:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _new_folder(folder)
        _refuse_used(folder)
        lock = claim(folder)
        _refuse_used(folder)  # by another process, just before the lock was ours
        _describe(folder, settings, spec)
    except OSError as error:
        raise InputError(
            f"cannot write the run folder {folder}: {error.strerror}; choose another --run-dir"
        ) from error
    distributed.from_first(str(folder.absolute()))
    return own_folder(folder), lock


def _describe(folder: Path, settings: Settings, spec: EnvSpec) -> None:
    """Write what the run is. Settings come first: a folder that holds them can be resumed."""
    _write_json(folder / "settings.json", to_json(settings))
    _write_json(folder / "spec.json", spec.to_json())
    _write_json(folder / "versions.json", machine.versions(packages_of(settings.task)))


def _add_versions(folder: Path, task: str) -> None:
    """Write what a resumed run goes on with; its commits are all named, oldest first."""
    now, path = machine.versions(packages_of(task)), folder / "versions.json"
    try:
        before = str(json.loads(path.read_text())["commit"]).split(", ")
    except (OSError, ValueError, LookupError, TypeError):
        before = []
    commits = list(dict.fromkeys([*before, now["commit"]]))
    _write_json(path, now | {"commit": ", ".join(commits)})


def _new_folder(folder: Path) -> Path:
    """A folder of this name that nobody has yet: runs may start in the same second."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        try:
            folder.mkdir()
        except FileExistsError:
            folder = folder.with_name(f"{folder.name.partition('_')[0]}_{number}")
        else:
            break
    return folder


def _refuse_used(folder: Path) -> None:
    if (folder / "settings.json").exists():
        raise InputError(
            f"{folder} already holds a run: continue it with supple resume {quote(str(folder))}, or"
            " choose another --run-dir"
        )
    for name in RUN_NAMES:
        if (folder / name).exists():
            raise InputError(
                f"{folder} holds {name}, which a run would write over: choose another --run-dir"
            )


def _title(settings: Settings) -> str:
    return f"{settings.task} · {settings.agent_name} · seed {settings.seed}"


def as_text(settings: Settings) -> str:
    """The content of ``settings.json``."""
    return _json_text(to_json(settings))


def _json_text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    replace_file(path, _json_text(record).encode())
