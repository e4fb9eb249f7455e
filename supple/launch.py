"""From settings to a run that is ready to start: new, resumed, or only for looking at."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from shlex import quote
from typing import IO, Any

import torch
from torch import Tensor

from supple import checkpoint, distributed, machine
from supple.agents import Agent, agent_class
from supple.checkpoint import Checkpoint, following_format, list_checkpoints
from supple.configs.base import Settings, from_json, missing, to_json
from supple.diagnostics.subject import subject_of
from supple.display import Display, NoDisplay
from supple.distributed import world
from supple.divergence import DUMPS
from supple.envs import make
from supple.envs.base import Env, EnvSpec, Groups
from supple.envs.registry import packages_of
from supple.errors import InputError, say_once
from supple.files import claim, replace_file, sync_folder
from supple.metrics import METRICS, WANDB_ID, require_wandb
from supple.region import precision_of
from supple.replay import Replay, SpilledReplay, prefill
from supple.replay.plan import plan_ring
from supple.replay.segments import verify as verify_rows
from supple.rng import derive_seed
from supple.run import REPLAY_FOLDER, RESULT, Run, other_simulator
from supple.signed_json import short
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
MOST_RECORD_BYTES = 2**22
"""Of ``settings.json`` and ``spec.json``: a longer one is none, and would only fill the memory."""


def new_run(settings: Settings) -> Run:
    """A run that starts from scratch, its folder created.

    Raises:
        InputError: task, agent, memory or folder do not allow it; nothing was written then.
    """
    if settings.log.wandb:
        require_wandb(settings.log.wandb)
    distributed.join(machine.resolve_device(settings.device))
    display = _display(settings)
    with contextlib.ExitStack() as undo:
        env, agent, replay = build(settings, display.notice)
        undo.callback(env.close)
        source = _start_from(settings, env.spec, agent)
        _prefill(settings, agent, replay)
        agent.check_length(settings.env_steps, replay.size)
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
    display.notice(f"{folder}: preset {settings.preset}, {many}")
    display.notice(f"update: {agent.compute}")
    if source:
        display.notice(f"starting from the networks of {source}")
    if agent.remark:
        display.notice(agent.remark)
    return run


def begun_or_continued(settings: Settings) -> Run:
    """What torchrun may start again after a failure: the run in its folder goes on.

    Machines count restarts for themselves, so the processes agree on what this start is.
    """
    distributed.join(machine.resolve_device(settings.device))
    folder = Path(settings.run_dir)
    again = distributed.agreed([float(restarted())])[0] > 0
    if distributed.from_first("go on" if again and (folder / "settings.json").exists() else ""):
        return resumed_run(folder)
    return new_run(settings)


def resumed_run(
    folder: Path, env_steps: int | None = None, *, device: str = "", wandb: bool = True
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
        settings = _as_recorded(settings, found)
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


def _as_recorded(settings: Settings, found: Checkpoint | None) -> Settings:
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


def _start_from(settings: Settings, spec: EnvSpec, agent: Agent) -> Path | None:
    """Give the agent what ``settings.init_from`` names, if it does; the checkpoint it was.

    Raises:
        InputError: there is none, or it is of another agent, architecture or observation.
    """
    if not settings.init_from:
        return None
    found, folder = _checkpoint_at(Path(settings.init_from))
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
        prefill(replay, Path(settings.replay.prefill))
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
    raise InputError(
        f"{folder} was trained by {before} processes, each with its share of the replay rows, now"
        f" there are {size}: continue with {start if before != 1 else f'python {command}'}"
    )


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


def _checkpoint_at(path: Path | str) -> tuple[Checkpoint, Path]:
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


def load_trained(path: Path | str, *, device: str = "") -> Trained:
    """The policy of a run's newest intact checkpoint, or of one checkpoint folder.

    Args:
        path: either of them.
        device: where it acts; by default on the run's own, or the CPU where that is missing.

    Raises:
        InputError: nothing there, damaged, or of another agent.
    """
    found, folder = _checkpoint_at(path)
    settings = _as_recorded(on_this_machine(read_settings(folder), device), found)
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
    check_fits(found, settings, spec)
    say_other_simulator(found)
    agent = build_agent(settings, spec)
    with following_format(found.path):
        agent.load_state_dict(found.state["agent"])
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


def build_agent(settings: Settings, spec: EnvSpec) -> Agent:
    """The agent the settings describe, for an environment of this spec."""
    device = machine.resolve_device(settings.device)
    envs = spec.num_envs * world().size
    steps = settings.agent.gradient_steps(settings.env_steps, envs)
    compute = settings.compute.resolve(device, gradient_steps=steps)
    if compute.cuda_graphs and world().size > 1:
        raise InputError(
            "--compute.cuda-graphs is for one process, exchanges between several were never proved"
            " in graphs: drop the flag"
        )
    if compute.precision == "tf32":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    agent: Agent = agent_class(settings.agent_name)(
        spec,
        settings.agent,
        total_env_steps=settings.env_steps,
        seed=settings.seed,
        device=device,
        replay_device="cpu" if settings.replay.spill else device,
        compute=compute,
    )
    return agent


def build(
    settings: Settings, say: Callable[[str], None] = lambda _: None
) -> tuple[Env, Agent, Replay]:
    """The environment, agent and ring that the settings describe; checks before it allocates.

    Args:
        settings: of the run.
        say: told what the ring will take, before it does.

    Raises:
        InputError: the task, agent and memory do not fit together.
    """
    device = machine.resolve_device(settings.device)
    machine.use(device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    seed = derive_seed(settings.seed, "train", *world().seed_words)
    env = make(settings.task, settings.env, device=device, seed=seed)
    try:
        agent = build_agent(settings, env.spec)
        agent.prepare()
        if settings.diagnostics.enabled:
            subject_of(agent, seed=settings.seed)  # refuses networks it cannot look into
        if settings.overlap and agent.horizon > 1:
            raise InputError(
                f"--overlap learns at every step, {settings.agent_name} here every"
                f" {agent.horizon}: drop the flag (FlashSAC: or set --agent.update-every 1)"
            )
        if settings.replay.spill and device.type != "cuda":
            raise InputError(f"--replay.spill needs a CUDA device, got {device}: drop the flag")
        ring = agent.ring(settings.replay)
        plan = plan_ring(env.spec, ring, agent.extra_spec)
        agent.check_room(plan)
        say(str(plan))
        replay = (SpilledReplay if ring.spill else Replay)(
            env.spec,
            ring,
            extra_spec=agent.extra_spec,
            device=device,
            compute=agent.compute,
        )
    except BaseException:
        env.close()
        raise
    return env, agent, replay


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


def say_other_simulator(found: Checkpoint) -> None:
    """Tell that what a policy does here may not be what it did in training."""
    with following_format(found.path):
        changed = short("; ".join(other_simulator(found.header)))
    if changed:
        say_once(f"the simulator is another than in training: {changed}")


def _title(settings: Settings) -> str:
    return f"{settings.task} · {settings.agent_name} · seed {settings.seed}"


def as_text(settings: Settings) -> str:
    """The content of ``settings.json``."""
    return _json_text(to_json(settings))


def _json_text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    replace_file(path, _json_text(record).encode())
