"""``supple bench``: how fast updates, replay and the loop are, beside what the machine could do.

Every variant of one table is timed in turn, round by round, so that a noisy neighbour hits all of
them; medians and their ratios are what to read. The ceiling of an update is its own matrix
products, run alone in the same rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from supple import machine
from supple.bench.critics import bench_critics
from supple.bench.envs import bench_envs
from supple.bench.kernels import SIZES as FLOWS
from supple.bench.kernels import bench_kernels
from supple.bench.loop import bench_loop
from supple.bench.ppo import bench_ppo
from supple.bench.profile import bench_profile
from supple.bench.replay import bench_replay
from supple.bench.table import MODES, Shape, parse_size, precisions, report
from supple.bench.update import bench_update
from supple.cli import DONE, RESUMABLE, Parser
from supple.errors import InputError
from supple.region import Precision, has_compiler

SIZES = ("17x6", "376x17", "310x37")
CHECKOUT = Path(__file__).resolve().parents[2]
WHAT = ("update", "profile", "replay", "kernels", "critics", "ppo", "envs", "loop", "all")


def main(arguments: Sequence[str]) -> int:
    """``supple bench``; returns the exit status."""
    parser = Parser(
        prog="supple bench",
        description="Times gradient steps (update), what they consist of (profile), replay"
        " sampling, the integration of flow critics (kernels), the laptop preset with each critic"
        " (critics), PPO's iterations (ppo), MuJoCo simulators (envs) and the whole training loop,"
        " and appends rows to"
        " OUT/bench_WHAT.csv. Flags of supple train for the loop come after --.",
        epilog="Within a checkout of supple OUT is its benchmarks/results, elsewhere runs/bench;"
        " of a GPU the folder gpu in it.",
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="OBSxACT")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 2048], metavar="B")
    parser.add_argument("--rounds", type=int, default=15, help="timings of every variant")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--modes", nargs="+", choices=MODES, help="by default all the device has")
    parser.add_argument(
        "--precisions", nargs="+", choices=get_args(Precision), help="of updates; likewise"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument(
        "--reference", type=Path, help="a checkout of the official FlashSAC to time in between"
    )
    parser.add_argument(
        "--reference-compile",
        default="auto",
        choices=("auto", "default", "reduce-overhead", "max-autotune", "off"),
        help="how it is compiled on a GPU: auto is as it ships, for which it takes minutes",
    )
    parser.add_argument(
        "--peers", action="store_true", help="time other libraries, those that are installed, too"
    )
    parser.add_argument("--task", default="gym/HalfCheetah-v5", help="what the loop trains on")
    parser.add_argument("--out", type=Path, help="folder of the rows; default: see below")
    given = list(arguments)
    at = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:at])
    options.flags = given[at + 1 :]
    if options.flags and options.what not in ("loop", "all"):
        raise InputError(
            f"flags after -- are those of the loop's run, supple bench {options.what} takes none:"
            f" leave out {' '.join(options.flags)}"
        )
    options.device = machine.resolve_device(options.device)
    machine.use(options.device)
    has_graphs = options.device.type == "cuda"
    compiles = has_compiler(options.device)
    if not compiles and options.what in ("kernels", "profile", "all"):
        raise InputError(
            f"supple bench {options.what} times compiled code and finds no compiler: install g++"
            " (Triton for a GPU), or time update, replay, critics, ppo, envs or loop"
        )
    known_modes = MODES if has_graphs else MODES[:-1]
    options.modes = options.modes or list(known_modes if compiles else MODES[:1])
    known = precisions(options.device)
    options.precisions = options.precisions or known
    for precision in options.precisions:
        if precision not in known:
            raise InputError(
                f"--precisions {precision} is not for {options.device}, which has"
                f" {', '.join(known)}: leave it out"
            )
    if "graphs" in options.modes and not has_graphs:
        raise InputError(f"--modes graphs needs a CUDA device, got {options.device}: leave it out")
    counts = [("--rounds", options.rounds), ("--threads", options.threads)]
    for flag, value in (*counts, *(("--batch-sizes", size) for size in options.batch_sizes)):
        if value < 1:
            raise InputError(f"{flag} must be >= 1, got {value}")
    sizes = [parse_size(text) for text in options.sizes]
    if options.reference and not (options.reference / "flash_rl").is_dir():
        raise InputError(f"--reference {options.reference}: no flash_rl folder in it")
    options.out = options.out or folder_of_rows() / ("gpu" if has_graphs else "")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    command = "supple bench " + " ".join(arguments)
    for obs, act in sizes:
        for batch_size in options.batch_sizes:
            shape = Shape(obs, act, batch_size, options.device)
            if options.what in ("update", "all"):
                rows = bench_update(shape, options)
                report(f"update {shape}", rows, options.out / "bench_update.csv", command)
            if options.what in ("profile", "all"):
                rows = bench_profile(shape, options)
                report(f"profile {shape}", rows, options.out / "bench_profile.csv", command)
            if options.what in ("replay", "all"):
                rows = bench_replay(shape, options)
                report(f"replay {shape}", rows, options.out / "bench_replay.csv", command)
    if options.what in ("critics", "all"):
        for obs, act in sizes:
            found = bench_critics(obs, act, options)
            report(f"critics {obs}x{act}", found, options.out / "bench_critics.csv", command)
    if options.what in ("ppo", "all"):
        for obs, act in sizes:
            found = bench_ppo(obs, act, options)
            report(f"PPO iteration {obs}x{act}", found, options.out / "bench_ppo.csv", command)
    if options.what in ("kernels", "all"):
        for size in FLOWS:
            found = bench_kernels(size, options)
            report(f"kernels {size}", found, options.out / "bench_kernels.csv", command)
    if options.what in ("envs", "all"):
        for title, found in bench_envs(options):
            report(title, found, options.out / "bench_envs.csv", command)
    if options.what in ("loop", "all"):
        found = bench_loop(options)
        if not found:
            print("stopped: of a part of the loop's run there are no rows")
            return RESUMABLE
        report(f"loop, {options.task}", found, options.out / "bench_loop.csv", command)
    print(options.out)
    return DONE


def folder_of_rows() -> Path:
    """Within a checkout its committed rows', elsewhere beside the runs."""
    committed = CHECKOUT / "benchmarks" / "results"
    here = committed.is_dir() and Path.cwd().is_relative_to(CHECKOUT)
    return committed if here else Path("runs") / "bench"
