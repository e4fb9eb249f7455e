"""The command line. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from supple import ending
from supple.errors import INTEGER, DivergedError, InputError, SimulatorError
from supple.files import cache_folder
from supple.signals import on_signals, requests_to_stop
from supple.version import __version__
from supple.world import World, from_environment, may_restart, restarted

if TYPE_CHECKING:
    from supple.configs.base import Settings
    from supple.envs.base import EnvSpec
    from supple.run import Run
    from supple.trained import Trained

DONE, FAILED, BAD_INPUT, RESUMABLE, VERDICT = 0, 1, 2, 3, 4

DESCRIPTION = """\
Train robot policies fast, keep their networks able to learn, take them to the robot.

  supple train TASK [flags]      learn a task; supple train TASK --help lists every flag
  supple resume DIR              continue a stopped run, or extend it with --env-steps
  supple eval DIR                deterministic episodes: mean return and its interval
  supple play DIR                film an episode
  supple export DIR              a trained policy as ONNX, torch and C, with what the run knows
  supple verify BUNDLE           replays a bundle in every runtime here: table and exit status
  supple chain DIR               export, verify, and a C++ runner that moves a simulated robot
  supple diagnose DIR            is it still able to learn, right, steady, robust? one page
  supple compare TASK            seeds and variants side by side: one table, one figure
  supple bench WHAT              how fast this machine learns, samples, integrates, trains
  supple list                    agents, presets, simulators and tasks
  supple doctor                  what is installed and works here; --env checks your simulator

Several processes train as one: torchrun --nproc-per-node=2 -m supple train TASK (docs/scaling.md).
"""
EXIT_STATUS = """\
exit status: 0 done, 1 failed while running, 2 bad input, 3 stopped and resumable,
             4 a verdict failed, or is at or above --fail-on"""


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, and with one-line errors."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage."""
        message = re.sub(
            r"^argument (--[\w.-]+)\S*: invalid int value: '(.*)'",
            rf"\1 must be {INTEGER}, got \2",
            message,
        )
        raise InputError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read when torch loads. Threads that spin while waiting cost several times the work itself as
    # soon as another process wants the core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    return ending.note(_status_of(arguments))


def _status_of(arguments: list[str]) -> int:
    try:
        return dispatch(arguments)
    except SystemExit as stop:  # --help and --version, answered
        if stop.code:
            raise
        return DONE
    except InputError as error:
        return _fail(error, BAD_INPUT)
    except (SimulatorError, DivergedError) as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return _fail("stopped", FAILED)
    except BrokenPipeError as error:
        try:
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError):  # nobody reads it any more
            return FAILED
        return _fail(f"{type(error).__name__}: {error}", FAILED)
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), FAILED)
    except Exception as error:  # the one place that reports what nobody foresaw
        if ran_out_of_memory(error):
            return _fail(
                "out of memory; checkpoints are intact: lower --env.num-envs,"
                " --replay.capacity or --agent.batch-size, or end what else runs here",
                FAILED,
            )
        traceback.print_exc()
        return _fail(f"{type(error).__name__}: {error}", FAILED)


def ran_out_of_memory(error: Exception) -> bool:
    """Python's own error, CUDA's, or what torch's allocator for the CPU says."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    said = ("DefaultCPUAllocator", "Storage size calculation overflowed")
    return named or any(text in str(error) for text in said)


def _fail(error: object, status: int) -> int:
    print("supple: error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    return status


def dispatch(arguments: list[str]) -> int:
    """Choose the command.

    Raises:
        InputError: unknown command.
    """
    commands = {
        "train": train,
        "resume": resume,
        "eval": evaluate,
        "play": play,
        "export": _of("supple.deploy.command:export"),
        "verify": _of("supple.deploy.command:verify"),
        "chain": _of("supple.deploy.command:chain"),
        "diagnose": diagnose,
        "compare": _of("supple.compare:main"),
        "bench": _of("supple.bench:main"),
        "list": list_,
        "doctor": doctor,
    }
    if arguments and arguments[0] in commands:
        if arguments[0] not in ("train", "resume") and from_environment().size > 1:
            raise InputError(
                f"supple {arguments[0]} is the work of one process: start it without torchrun"
            )
        return commands[arguments[0]](arguments[1:])
    parser = Parser(prog="supple", description=DESCRIPTION, epilog=EXIT_STATUS, usage="supple ...")
    parser.add_argument("--version", action="version", version=f"supple {__version__}")
    parser.add_argument("command", choices=list(commands), metavar="COMMAND", help="see above")
    parser.parse_args(arguments)
    raise InputError("the command comes first: supple COMMAND ..., see supple --help")


def _of(place: str) -> Callable[[list[str]], int]:
    """The command of another module, which is imported once it is called."""
    module, _, name = place.partition(":")

    def command(arguments: list[str]) -> int:
        status: int = getattr(importlib.import_module(module), name)(arguments)
        return status

    return command


def train(arguments: list[str]) -> int:
    """``supple train TASK``."""
    here = from_environment()
    try:
        settings = train_settings(arguments)
        if may_restart() and not settings.run_dir:
            raise InputError(
                "torchrun --max-restarts continues a run by its folder: name it with --run-dir"
            )
    except InputError:
        if not here.first:  # the first process says it for all
            return BAD_INPUT
        raise
    from supple import launch

    begin = launch.begun_or_continued if may_restart() or restarted() else launch.new_run
    return _train(lambda: begin(settings), here)


def resume(arguments: list[str]) -> int:
    """``supple resume DIR``."""
    parser = Parser(prog="supple resume", description="Continue a run where it was stopped.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the run's folder")
    parser.add_argument("--env-steps", type=int, help="extend training to this many steps")
    parser.add_argument("--no-wandb", action="store_true", help="go on without Weights & Biases")
    add_device(parser)
    options = parser.parse_args(arguments)
    from supple import launch

    def begin() -> Run:
        return launch.resumed_run(
            options.folder, options.env_steps, device=options.device, wandb=not options.no_wandb
        )

    return _train(begin, from_environment())


def _train(begin: Callable[[], Run], here: World) -> int:
    """Begin a run, see it through, and part from the other processes, where there are any."""
    from supple import distributed

    status = FAILED
    try:
        with on_signals(_end, *requests_to_stop()):
            run = begin()
        status = _see_through(run, here)
    except _Terminated:  # before the run took over: what was saved is as it was
        status = RESUMABLE
        return _fail("stopped before the first step: start again with the same command", status)
    except (SimulatorError, DivergedError):
        raise
    except RuntimeError:  # as sums over processes fail
        lost = distributed.lost_peer()
        if not lost:
            raise
        return _fail(f"process {here.rank}: {lost}", FAILED)
    finally:
        distributed.leave(in_peace=status in (DONE, RESUMABLE))
    return status


class _Terminated(BaseException):
    """A cluster's request to stop came while the run was being made."""


def _end(number: int, frame: object) -> None:
    raise _Terminated


def _see_through(run: Run, here: World) -> int:
    from supple.checkpoint import list_checkpoints
    from supple.train import train as train_loop

    named = shlex.quote(str(run.folder))
    try:
        with run.display, run:
            train_loop(run)
    except KeyboardInterrupt:
        saved = list_checkpoints(run.folder)
        kept = "the last checkpoint is intact" if saved else "no checkpoint yet, it starts again"
        return _fail(f"stopped at once; {kept}: supple resume {named}", FAILED)
    status = DONE if run.complete else RESUMABLE
    if not here.first:
        return status
    if run.complete:
        run.display.print_table("finished", run.summary())
    else:
        again = "supple" if here.size == 1 else f"torchrun --nproc-per-node={here.size} -m supple"
        at = f"stopped at {run.env_steps:,} env steps"
        run.display.notice(f"{at}; continue: {again} resume {named}")
    run.display.notice(str(run.folder))
    return status


def train_settings(arguments: list[str]) -> Settings:
    """What ``supple train`` was told, of a task that exists.

    Raises:
        InputError: as ``parsed_settings``, or an unknown task.
    """
    from supple.envs import check_task

    settings = parsed_settings(arguments)
    check_task(settings.task)
    return settings


def parsed_settings(arguments: list[str]) -> Settings:
    """Two passes: task, agent, preset and length choose the defaults, then each flag is a field.

    Raises:
        InputError: unknown agent, preset or flag, or a value that does not fit.
    """
    first = Parser(prog="supple train", add_help=False)
    first.add_argument("task", nargs="?", default="")
    first.add_argument("--agent", default="flashsac")
    first.add_argument("--preset", default="")
    first.add_argument("--agent.critic", dest="critic", default="")
    first.add_argument("--env-steps", "--env_steps", type=int)
    options, rest = first.parse_known_args(arguments)
    if options.critic == "flow_official":  # its next actions go by it
        spellings = ("--agent.flow.target-samples", "--agent.flow.target_samples")
        first.add_argument(*spellings, dest="target_samples", type=int)
        options, rest = first.parse_known_args(arguments)
    wants_help = "-h" in rest or "--help" in rest
    if arguments and arguments[0].startswith("-") and not wants_help:
        raise InputError(f"TASK comes first: supple train TASK [flags], got {arguments[0]} first")
    from supple.configs import default_settings
    from supple.configs.flags import parse_flags

    if not options.task and not wants_help:
        raise InputError(
            "supple train needs a TASK, for example gym/HalfCheetah-v5; see supple list"
        )
    default = default_settings(
        options.task,
        agent=options.agent,
        preset=options.preset,
        critic=options.critic,
        env_steps=options.env_steps,
        target_samples=getattr(options, "target_samples", None),
    )
    return parse_flags(default, rest)


def evaluate(arguments: list[str]) -> int:
    """``supple eval DIR``."""
    parser = Parser(
        prog="supple eval",
        description="Deterministic episodes of a trained policy. --env.* flags, as supple train has"
        " them, change its environment, for example --env.obs-noise 0.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a run's folder or a checkpoint")
    add_best(parser)
    _add_task(parser)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=seed_number, default=0, help="of the episodes' starts")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    add_device(parser)
    options, flags = _parse_env_flags(parser, arguments)
    from supple.display import Display, format_number
    from supple.envs.registry import aside
    from supple.evaluate import evaluate as run_episodes
    from supple.evaluate import make_env
    from supple.rng import derive_seed
    from supple.trained import load_trained

    if options.episodes < 1:
        raise InputError(f"--episodes must be >= 1, got {options.episodes}")
    trained = load_trained(chosen(options.folder, options), device=options.device)
    settings, progress = _elsewhere(trained, options.task, flags, options.episodes, parser.prog)
    env = make_env(
        settings,
        num_envs=settings.env.num_envs,
        purpose=f"eval {options.seed}",
        progress=progress,
    )
    with aside(), closing(env):
        _require_interface(trained, env.spec)
        seed = derive_seed(options.seed, "eval")
        found = run_episodes(trained.greedy, env, episodes=options.episodes, seed=seed)
    if options.json:
        record: dict[str, Any] = {
            "return_mean": found.return_mean,
            "return_std": found.return_std if found.episodes > 1 else None,
            "return_ci95": found.return_ci95 if found.episodes > 1 else None,
            "episodes": found.episodes,
            "env_steps": trained.env_steps,
        }
        if found.success_once is not None:
            record |= {"success_once": found.success_once, "success_end": found.success_end}
        print(json.dumps(record))
        return DONE
    rows = {
        "task": settings.task,
        "trained for": f"{trained.env_steps:,} env steps",
        "return": str(found),
        "standard deviation": format_number(found.return_std) if found.episodes > 1 else "none",
        "episode length": f"{found.length_mean:.0f}",
    }
    if found.success_once is not None:
        end = f"{found.success_end:.0%} at the last step"
        rows["success"] = f"{found.success_once:.0%} of episodes, {end}"
    Display.print_table("evaluation", rows)
    return DONE


def _parse_env_flags(parser: Parser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command's own options, and the ``--env.*`` flags beside them, for ``parse_flags``.

    Raises:
        InputError: another flag.
    """
    options, flags = parser.parse_known_args(arguments)
    for flag in flags:
        if flag.startswith("--") and not flag.startswith("--env."):
            parser.error(f"unrecognized arguments: {flag}")
    # The value of a flag that argparse does not know is taken for DIR.
    before = takewhile(lambda word: not word.startswith("--env."), arguments)
    if "folder" in options and options.folder not in map(Path, before):
        raise InputError(f"DIR comes before --env. flags: {parser.prog} DIR [flags]")
    return options, flags


def _elsewhere(
    trained: Trained, task: str, flags: list[str], episodes: int, command: str
) -> tuple[Settings, Mapping[str, Any] | None]:
    """The run's settings in another task and under ``--env.*`` flags, and the progress there."""
    import torch

    from supple.configs.flags import parse_flags
    from supple.evaluate import evaluation_envs

    own = trained.settings
    count = evaluation_envs(trained.spec.num_envs, torch.device(own.device), episodes)
    settings = replace(own, task=task or own.task, env=replace(own.env, num_envs=count))
    if flags:
        settings = parse_flags(settings, flags, f"{command} DIR")
    return settings, trained.progress if settings.task == own.task else None


def _require_interface(trained: Trained, spec: EnvSpec) -> None:
    """Refuse an environment that the policy cannot act in; say where its actions differ."""
    from supple.evaluate import other_bounds, require_same_interface

    require_same_interface(spec, trained.spec, trained.agent.actor_groups)
    if warning := other_bounds(spec, trained.spec):
        print(f"supple: {warning}", file=sys.stderr)


def play(arguments: list[str]) -> int:
    """``supple play DIR``."""
    parser = Parser(
        prog="supple play",
        description="Film one episode of a trained policy. --env.* flags change its environment, as"
        " supple eval's do.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a run's folder or a checkpoint")
    add_best(parser)
    _add_task(parser)
    parser.add_argument(
        "--video",
        type=Path,
        help="the .mp4, .webp or .gif to write; default: an .mp4 in the run's videos folder",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=math.inf, help="film no more than this of the episode"
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the episode's start")
    add_device(parser)
    options, flags = _parse_env_flags(parser, arguments)
    from supple.evaluate import film
    from supple.trained import load_trained

    trained = load_trained(chosen(options.folder, options), device=options.device)
    video = options.video or trained.folder / "videos" / f"step_{trained.env_steps}.mp4"
    if video.suffix not in (".mp4", ".webp", ".gif"):
        raise InputError(f"--video must end in .mp4, .webp or .gif, got {video}")
    settings, progress = _elsewhere(trained, options.task, flags, 1, parser.prog)

    def accept(spec: EnvSpec) -> None:
        _require_interface(trained, spec)
        print(f"filming {spec.task_id}, which takes as long as the episode", file=sys.stderr)

    found = film(
        settings,
        trained.greedy,
        video,
        seed=options.seed,
        max_seconds=options.seconds,
        progress=progress,
        accept=accept,
    )
    print(f"return {found.return_mean:.1f} over {found.length_mean:.0f} steps")
    print(video)
    return DONE


def diagnose(arguments: list[str]) -> int:
    """``supple diagnose DIR``."""
    parser = Parser(
        prog="supple diagnose",
        description="Measure checkpoints, judge them, and write one self-contained page.",
    )
    from supple.diagnostics import command

    command.add_arguments(parser)
    add_device(parser)
    options = parser.parse_args(arguments)
    return VERDICT if command.run(options, arguments) else DONE


def list_(arguments: list[str]) -> int:
    """``supple list``."""
    parser = Parser(prog="supple list", description="Agents, presets, simulators and tasks.")
    parser.add_argument("simulator", nargs="?", help="only this simulator's tasks, one a line")
    options = parser.parse_args(arguments)
    from supple.doctor import print_list

    print_list(options.simulator)
    return DONE


def doctor(arguments: list[str]) -> int:
    """``supple doctor``."""
    parser = Parser(
        prog="supple doctor",
        description="Says what is installed and works here; --env proves an environment, with"
        " --env.* flags as supple train has them.",
    )
    parser.add_argument("--env", help="module:callable, or any task, to check against the contract")
    parser.add_argument("--device", default="cpu", help="of --env: where its tensors live")
    parser.add_argument("--num-envs", type=int, default=4, help="of --env: how many are built")
    parser.add_argument(
        "--steps",
        type=int,
        help="of --env: of each rollout; default: past a whole episode, within reason",
    )
    parser.add_argument(
        "--nan-dump", type=Path, metavar="DIR", help="a dump of a run's nan folder: repeat its step"
    )
    options, flags = _parse_env_flags(parser, arguments)
    if flags and not options.env:
        of = ": --env.* flags are of --env TASK" if flags[0].startswith("--env.") else ""
        parser.error(f"unrecognized arguments: {flags[0]}{of}")
    for name, value, least in (("--num-envs", options.num_envs, 1), ("--steps", options.steps, 2)):
        if value is not None and value < least:
            raise InputError(f"{name} must be >= {least}, got {value}")
    from supple.configs.base import Settings
    from supple.configs.flags import parse_flags
    from supple.doctor import check_dump, check_environment, check_machine
    from supple.envs import EnvSettings

    if options.nan_dump:
        return check_dump(options.nan_dump)
    if options.env:
        settings = Settings(task=options.env, env=EnvSettings(num_envs=options.num_envs))
        if flags:
            settings = parse_flags(settings, flags, f"{parser.prog} --env TASK")
        return check_environment(
            options.env, settings.env, device=options.device, steps=options.steps
        )
    return check_machine()


def _add_task(parser: Parser) -> None:
    parser.add_argument("--task", default="", help="act there; default: the run's own")


def add_device(parser: Parser) -> None:
    """``--device``."""
    parser.add_argument(
        "--device", default="", help="default: the run's own, or cpu where that is missing"
    )


def add_best(parser: Parser) -> None:
    """``--best``, which ``chosen`` follows."""
    parser.add_argument(
        "--best",
        action="store_true",
        help="take the checkpoint of the run's best evaluation, not the newest",
    )


def chosen(folder: Path, options: argparse.Namespace) -> Path:
    """``folder`` as it is, or the checkpoint that ``--best`` finds there, which is said.

    Raises:
        InputError: it is no run's, was not evaluated, or keeps that checkpoint no more.
    """
    if not options.best:
        return folder
    from supple.evaluate import best_checkpoint
    from supple.trained import read_settings

    read_settings(folder)  # says "no run here" before "no evaluation here"
    path, mean = best_checkpoint(folder)
    print(f"supple: best evaluation {mean:.6g}, of {path}", file=sys.stderr)
    return path


def seed_number(text: str) -> int:
    """A seed on the command line.

    Raises:
        ArgumentTypeError: it is negative, or has more than 64 bits.
    """
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be >= 0 and within 64 bits, got {value}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be > 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
