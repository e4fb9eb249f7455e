"""Seeds and variants side by side: a queue of training runs, one table, one figure."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supple import checkpoint, machine, sweep
from supple.cli import DONE, FAILED, RESUMABLE, Parser, seed_number, train_settings
from supple.compare_report import FIGURE, TABLE, Runs, foreign, report
from supple.configs.base import Settings, flat
from supple.curves import Curve, of_run, read_curves
from supple.display import print_line
from supple.envs.base import EnvSpec
from supple.errors import InputError
from supple.files import claim
from supple.metrics import METRICS, complete, read_csv
from supple.run import RESULT
from supple.signals import on_signals, requests_to_stop
from supple.trained import read_settings

VARIANT_NAME = re.compile(r"[A-Za-z0-9][\w .+-]*")
RESERVED = (TABLE, FIGURE, sweep.RECORD)
"""Files beside the variants' folders."""
OWN_FLAGS = ("--seed", "--run-dir", "--threads")
UNLIKE = ("seed", "run_dir", "threads", "device", "max_minutes")
"""Settings in which runs of one variant may differ; so may those of logs and checkpoints."""
TELLING = ("agent_name", "preset")
"""Settings that name a variant before others do."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training run of the queue."""

    variant: str
    seed: int
    folder: Path
    flags: tuple[str, ...]
    task: str = ""
    any_gpu: bool = False
    """Whether it runs on whichever GPU it is given."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.task}, {self.variant}, seed {self.seed}".removeprefix(", ")

    def result(self) -> dict[str, float] | None:
        """What the finished run reports; None while it is not finished.

        Raises:
            InputError: it is no report.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        try:
            found: dict[str, float] = json.loads(path.read_text())
            numbers = [float(found[name]) for name in ("return_mean", "env_steps", "seconds")]
        except (ValueError, LookupError, TypeError):
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            raise InputError(
                f"{path} is damaged: expected numbers called return_mean, env_steps and seconds;"
                f" remove it, and supple resume {shlex.quote(str(self.folder))} writes it anew"
            )
        return found

    def evaluations(self, column: str) -> dict[int, float]:
        """A metric of the evaluations so far, by environment step."""
        columns = read_csv(self.folder / METRICS)
        return {int(step): value for step, value in complete(columns, "step", column)}


def main(arguments: Sequence[str]) -> int:
    """``supple compare``; returns the exit status."""
    parser = Parser(
        prog="supple compare",
        usage="supple compare TASK … --out D [--seeds K …] [--variant …] [--jobs J] [--csv FILE …]"
        " [-- FLAGS]\n       supple compare DIR … --out D [--csv FILE …]",
        description="Train seeds of one or more variants, as many at once as GPUs or cores allow,"
        " then draw one table and one figure. Run the same command again to continue. What follows"
        " -- are flags of supple train for every run. Given the folders of runs, it compares those"
        " and trains none: runs that differ by their seed alone are one variant. Intervals"
        " are of the stratified bootstrap; over several tasks, returns are scaled so that 0 is the"
        " worst first evaluation of a task and 1 the best mean at its end.",
        epilog="example: supple compare gym/Pendulum-v1 --seeds 0 1 2 --out cmp --variant "
        '"categorical: --agent.critic categorical" --variant "scalar: --agent.critic scalar"'
        " -- --preset laptop --env-steps 20000",
    )
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="or folders of runs")
    parser.add_argument(
        "--seeds", type=seed_number, nargs="+", metavar="K", help="of each variant; default: 0 1 2"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar='"NAME: FLAGS"',
        help="a variant and its flags; without any, one variant named default",
    )
    parser.add_argument(
        "--lr-sweep",
        type=float,
        nargs="*",
        metavar="RATE",
        help="a variant for each learning rate, and how sensitive returns are to it; without"
        " rates, five over two decades around the preset's",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        help="runs at once, which share the GPUs; default: one a GPU, or a core without any",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="D", help="folder for all of it")
    parser.add_argument(
        "--csv",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="evaluations of other libraries or papers to set beside: columns step and return, and"
        " where known task, variant, seed, seconds; or means with std and n_seeds",
    )
    own = list(arguments)
    cut = own.index("--") if "--" in own else len(own)
    own, common = own[:cut], own[cut + 1 :]
    options, unknown = parser.parse_known_args(own)
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)}; flags of supple train come after --"
        )
    rates: dict[str, float] = {}
    folders = [Path(given).is_dir() for given in options.tasks]
    if any(folders) and not all(folders):
        raise InputError(
            "expected tasks to train, or folders of runs that are there, got"
            f" {' '.join(options.tasks)}: compare the folders of both once all are trained"
        )
    if all(folders) and (common or options.variant or options.lr_sweep is not None):
        raise InputError(
            "runs that are there have their flags: compare folders without --variant,"
            " --lr-sweep and flags after --"
        )
    if all(folders) and (options.seeds or options.jobs):
        raise InputError("runs that are there are not trained: leave out --seeds and --jobs")
    options.seeds = options.seeds or [0, 1, 2]
    if options.lr_sweep is not None:
        if options.variant or len(options.tasks) > 1:
            raise InputError("--lr-sweep makes the variants itself, of one task: leave out others")
        own_settings = train_settings([options.tasks[0], *common])
        rates = sweep.variants(own_settings, options.lr_sweep, len(options.seeds))
    if all(folders):
        jobs = runs_in([Path(given) for given in options.tasks])
        options.tasks = list(dict.fromkeys(job.task for job in jobs))
        queue = []
    else:
        variants = options.variant or [*rates]
        queue = jobs = plan_tasks(options.tasks, options.seeds, variants, common, options.out)
    curves: list[Curve] = []
    for path in options.csv:
        brought = read_curves(path, options.tasks)
        before, now = ({(each.task, each.variant) for each in of} for of in (curves, brought))
        if before & now:
            raise InputError(
                f'{path} brings "{min(before & now)[1]}" once more: give files whose column'
                " variant, or whose name where they have none, differs"
            )
        curves += brought
    if taken := {curve.variant for curve in curves} & {job.variant for job in jobs}:
        raise InputError(
            f'"{min(taken)}" is a variant of the CSV and of the runs: call it otherwise in the'
            " file, or, where it has no column of variants, give the file another name"
        )
    gpus = visible_gpus() if any(job.any_gpu for job in jobs) else []
    at_once = options.jobs or min(len(gpus) or machine.cores(), len(jobs))
    if at_once < 1:
        raise InputError(f"--jobs must be >= 1, got {options.jobs}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {options.out}: {error.strerror}") from error
    with claim(options.out):
        status = run_queue(queue, at_once, gpus)
        if any(job.result() for job in jobs):
            ours = summarise(jobs)
            report([*ours, *foreign(curves, ours)], options.out)
            if rates and status != RESUMABLE:
                try:
                    print_line(sensitivity(jobs, list(rates.values()), options.out))
                except InputError as nothing:  # was learned at any rate: the runs are done
                    print_line(str(nothing))
            print_line(str(options.out))
    return status


def runs_in(folders: Sequence[Path]) -> list[Job]:
    """Runs that are there, grouped to variants by their settings.

    A variant is called by the fewest settings that tell it from the others of its task.

    Raises:
        InputError: a folder holds no run, two are the same seed of one variant, or none has a
            result.
    """
    settings = {folder: flat(read_settings(folder)) for folder in dict.fromkeys(folders)}
    runs = {
        folder: {
            name: json.dumps(value)
            for name, value in found.items()
            if name not in UNLIKE and not name.startswith(("log.", "checkpoint."))
        }
        for folder, found in settings.items()
    }
    jobs = []
    for task in dict.fromkeys(found["task"] for found in settings.values()):
        here = {folder: run for folder, run in runs.items() if settings[folder]["task"] == task}
        names = _telling([*here.values()])
        for folder, run in here.items():
            called = [run[name].strip('"') for name in names[:1] if name in TELLING]
            called += [
                f"{name.removeprefix('agent.')} {run.get(name, '-')}".replace('"', "")
                for name in names[len(called) :]
            ]
            variant = ", ".join(called) or str(settings[folder]["agent_name"])
            jobs.append(Job(variant, settings[folder]["seed"], folder, (), task))
    left_out = [str(job.folder) for job in jobs if job.result() is None]
    if len(left_out) == len(jobs):
        raise InputError(
            f"no run has a result: supple resume {shlex.quote(str(left_out[0]))} finishes it, or"
            " says why it has no final evaluation"
        )
    for path in left_out:
        print(f"without a result, and left out: {path}", file=sys.stderr)
    known: dict[tuple[str, str, int], Path] = {}
    for job in jobs:
        other = known.setdefault((job.task, job.variant, job.seed), job.folder)
        if other != job.folder:
            raise InputError(
                f"{other} and {job.folder} are the same run ({job.name}), which would count as two"
                " seeds: give one of them"
            )
    return jobs


def _telling(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Of the settings that differ, enough to tell runs of different settings apart."""
    names: list[str] = []

    def kinds(chosen: Sequence[str]) -> int:
        return len({tuple(run.get(name) for name in chosen) for run in runs})

    known = list(dict.fromkeys(name for run in runs for name in run))
    wanted = kinds(known)
    for name in (*TELLING, *known):
        if kinds(names) < wanted and kinds([*names, name]) > kinds(names):
            names.append(name)
    return names


def sensitivity(jobs: Sequence[Job], rates: Sequence[float], out: Path) -> str:
    """Write the record of a learning-rate sweep whose queue is empty; what to print."""
    names = dict(zip(dict.fromkeys(job.variant for job in jobs), rates, strict=True))
    returns: dict[float, list[float | None]] = {rate: [] for rate in rates}
    for job in jobs:
        found = job.result()
        returns[names[job.variant]].append(None if found is None else found["return_mean"])
    settings = read_settings(next(job.folder for job in jobs if job.result()))
    return sweep.write(returns, sweep.random_return(settings), out)


def plan_tasks(
    tasks: Sequence[str],
    seeds: Sequence[int],
    variants: Sequence[str],
    common: Sequence[str],
    out: Path,
) -> list[Job]:
    """``plan`` for several tasks, a folder each where there is more than one; seeds outermost.

    Raises:
        InputError: as ``plan``, or a task is given twice.
    """
    if len(set(tasks)) != len(tasks):
        raise InputError(f"tasks must differ, got {' '.join(tasks)}")
    jobs = []
    for task in tasks:
        folder = out / re.sub(r"[^\w.+-]", "-", task) if len(tasks) > 1 else out
        jobs += plan(task, seeds, variants, common, folder)
    return sorted(jobs, key=lambda job: seeds.index(job.seed))


def plan(
    task: str, seeds: Sequence[int], variants: Sequence[str], common: Sequence[str], out: Path
) -> list[Job]:
    """The runs to make, checked before any starts.

    Raises:
        InputError: a flag, the task or a variant's form is wrong.
    """
    named: dict[str, list[str]] = {}
    for text in variants or ["default:"]:
        name, colon, own_flags = text.partition(":")
        name = name.strip()
        if not colon or not VARIANT_NAME.fullmatch(name) or name in (*named, *RESERVED):
            raise InputError(
                '--variant must be "NAME: FLAGS" with a name of its own of letters, digits, spaces'
                f' and _.+-, and none of {", ".join(RESERVED)}, got "{text}"'
            )
        try:
            named[name] = shlex.split(own_flags)
        except ValueError as error:
            raise InputError(f'--variant "{text}": {error}') from error
    if len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds must differ, got {' '.join(map(str, seeds))}")
    jobs = []
    for name, flags in named.items():
        for flag in (each.partition("=")[0] for each in (*common, *flags)):
            if flag.replace("_", "-") in OWN_FLAGS:
                raise InputError(f"{flag} is set by supple compare for every run: leave it out")
        for seed in seeds:
            own = (task, *common, *flags, "--seed", str(seed))
            settings = train_settings(list(own))
            any_gpu = settings.device in ("auto", "cuda")
            job = Job(name, seed, out / name / f"seed{seed}", own, task, any_gpu)
            _check_same(job, settings)
            jobs.append(job)
    return jobs


def _check_same(job: Job, settings: Settings) -> None:
    """Refuse to take an earlier run with other settings for this one."""
    if not (job.folder / "settings.json").exists():
        return
    with claim(job.folder):  # a run that outlived a killed compare is refused now, not later
        before, now = flat(read_settings(job.folder)), flat(settings)
    for name in now:
        if name not in ("run_dir", "threads") and before[name] != now[name]:
            flags = _as_flags(name, before[name])
            raise InputError(
                f"{job.folder} was made with other settings ({name}: {before[name]}, now"
                f" {now[name]}): choose another --out{f', or give {flags} after --' * bool(flags)}"
            )


def _as_flags(name: str, value: Any) -> str:
    """How a setting is given to ``supple train``; empty where no flag gives it."""
    if name == "task" or value == ():
        return ""
    group, _, last = name.replace("_", "-").rpartition(".")
    flag = f"--{group}." if group else "--"
    if isinstance(value, bool):
        return f"{flag}{'' if value else 'no-'}{last}"
    words = value if isinstance(value, tuple) else [value]
    return shlex.join([f"{flag}{last.removesuffix('-name')}", *map(str, words)])


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each GPU that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = map(str, range(count)) if named is None else map(str.strip, named.split(","))
    return list(names)[:count]


def run_queue(jobs: Sequence[Job], at_once: int, gpus: Sequence[str] = ()) -> int:
    """Run what is not finished, ``at_once`` runs at a time.

    Args:
        jobs: all of them.
        at_once: >= 1.
        gpus: by the names of ``CUDA_VISIBLE_DEVICES``. Each run has one to itself, or shares it
            where there are more runs than GPUs.

    Returns:
        Exit status: done, failed if any run failed, resumable if stopped.
    """
    waiting = [job for job in jobs if job.result() is None]
    if len(waiting) < len(jobs):
        print_line(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are already finished")
    running: dict[Job, subprocess.Popen[bytes]] = {}
    places: dict[Job, str] = {}
    codes: set[int] = set()
    with on_signals(signal.default_int_handler, *requests_to_stop()):
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    threads = max(1, machine.cores() // at_once)
                    taken = [places[other] for other in running]
                    places[job] = min(gpus, key=taken.count, default="") if job.any_gpu else ""
                    running[job] = start(job, threads=threads, gpu=places[job])
                    where = f" on GPU {places[job]}" if places[job] else ""
                    print_line(f"started {job.name}{where}")
                time.sleep(0.2)
                for job, process in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[job]
                    if code == DONE and job.result() is None:
                        code = FAILED
                        print_line(f"no final evaluation: {job.name}: see {log_file(job)}")
                    elif code == DONE:
                        print_line(f"finished {job.name}")
                    elif code != RESUMABLE:
                        print_line(f"failed {job.name}: see {log_file(job)}")
                    codes.add(code)
                if RESUMABLE in codes:
                    waiting.clear()
        except KeyboardInterrupt:
            codes.add(RESUMABLE)
        finally:
            _stop(list(running.values()))
    if RESUMABLE in codes:
        print_line("stopped; run the same command again to continue")
        return RESUMABLE
    return FAILED if codes - {DONE} else DONE


def _stop(runs: Sequence[subprocess.Popen[bytes]]) -> None:
    """End runs: none outlives the queue. Each saves and stops by itself when it is asked.

    Whoever asks this process again asks them again, to stop at once, and then ends them.
    """
    for ask in (subprocess.Popen.terminate, subprocess.Popen.terminate, subprocess.Popen.kill):
        try:
            for process in runs:
                ask(process)
            if runs:
                print_line(f"waiting for {len(runs)} runs to save; again to stop at once")
            for process in runs:
                process.wait()
            return
        except KeyboardInterrupt:
            continue


def start(job: Job, *, threads: int, gpu: str = "") -> subprocess.Popen[bytes]:
    """Start or resume one run in a process of its own, which sees ``gpu`` alone if it is named."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "supple.cli"]
    if (job.folder / "settings.json").exists():
        command += ["resume", str(job.folder)]
    else:
        command += ["train", *job.flags, "--run-dir", str(job.folder), "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if gpu:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    environment.setdefault("WANDB_RUN_GROUP", f"{job.task}, {job.variant}")
    with log_file(job).open("ab") as log:
        # A session of its own: a terminal's Ctrl-C reaches it once, through the queue.
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def log_file(job: Job) -> Path:
    """Where the run's own output goes."""
    return job.folder.with_suffix(".log")


def summarise(jobs: Sequence[Job]) -> list[Runs]:
    """What the finished runs reached, by task and variant."""
    grouped: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        grouped.setdefault((job.task, job.variant), []).append(job)
    found = []
    for (task, variant), planned in grouped.items():
        finished = [(job, result) for job in planned if (result := job.result())]
        found.append(
            Runs(
                task=task,
                variant=variant,
                planned=len(planned),
                returns=np.array([result["return_mean"] for _, result in finished]),
                curves=[of_run(job.folder, task, variant) for job, _ in finished],
                env_steps=[int(result["env_steps"]) for _, result in finished],
                minutes=[result["seconds"] / 60 for _, result in finished],
                mflop=mflop_per_update(finished[0][0].folder) if finished else None,
            )
        )
    return found


def mflop_per_update(folder: Path) -> float | None:
    """Of a run's gradient step; None where no checkpoint says what it trained on, or it fails."""
    from supple.bench.compute import flops_per_update

    try:
        header = checkpoint.newest_intact(folder)[0].header
        return flops_per_update(read_settings(folder), EnvSpec.from_json(header["spec"])) / 1e6
    except Exception:  # of an agent of one's own, say: the table of finished runs is worth more
        return None
