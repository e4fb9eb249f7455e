"""``supple export``, ``supple verify`` and ``supple chain`` on the command line."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import closing
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from supple.cli import (
    DONE,
    FAILED,
    RESUMABLE,
    VERDICT,
    Parser,
    add_best,
    add_device,
    chosen,
    seed_number,
    train,
)
from supple.deploy.bundle import zip_path
from supple.deploy.known import REQUIRABLE, sentence
from supple.errors import InputError, require_rules

if TYPE_CHECKING:
    from supple.deploy.verify import Report


def export(arguments: list[str]) -> int:
    """``supple export DIR``; the bundle's folder is the last line of the standard output."""
    parser = Parser(
        prog="supple export",
        description="A trained policy as ONNX, torch and C99, with what a robot needs to know and a"
        " list of what nobody told.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a run's folder or a checkpoint")
    add_best(parser)
    parser.add_argument(
        "--out", type=Path, help="the folder to write; default: bundle in the run's folder"
    )
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="mjlab: its keys in the ONNX files; unitree: deploy.yaml; refused, with what is"
        " missing, where the run does not know all that they say",
    )
    parser.add_argument("--no-zip", action="store_true", help="write no archive beside the folder")
    options = parser.parse_args(arguments)
    from supple.deploy.bundle import read_bundle
    from supple.deploy.export import export as write

    run = chosen(options.folder, options)
    out = write(run, options.out, also=options.also, archive=not options.no_zip)
    if line := sentence(read_bundle(out).manifest["unknown"]):
        print(f"supple: {line}", file=sys.stderr)
    if not options.no_zip:
        print(zip_path(out))
    print(out)
    return DONE


def verify(arguments: list[str]) -> int:
    """``supple verify BUNDLE``; status 4 where a verdict failed, or what is required lacks."""
    parser = Parser(
        prog="supple verify",
        description="Replays a bundle in every runtime that is here and checks what it says.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="its folder or .zip")
    parser.add_argument("--run", type=Path, help="the run it came from: compared with it as well")
    add_best(parser)
    parser.add_argument(
        "--episodes", type=int, default=10, help="of the closed loop in the simulator; 0: none"
    )
    add_device(parser)  # the simulator's
    parser.add_argument("--no-latency", action="store_true", help="time nothing")
    parser.add_argument(
        "--require",
        nargs="+",
        default=[],
        choices=REQUIRABLE,
        metavar="WHAT",
        help=f"of {' '.join(REQUIRABLE)}: status 4 also where one was not checked or is not known",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_args(arguments)
    if options.episodes < 0:
        raise InputError(f"--episodes must be >= 0, got {options.episodes}")
    if options.best and options.run is None:
        raise InputError("--best chooses among the checkpoints of --run: give it")
    from supple.deploy.verify import verify as check

    report = check(
        options.bundle,
        run=options.run and chosen(options.run, options),
        episodes=options.episodes,
        latency=not options.no_latency,
        device=options.device,
    )
    lacking = report.missing(options.require)
    if options.json:
        print(json.dumps(report.to_json() | {"missing": lacking}))
    else:
        _print_report(report)
        print("\n".join(lacking), end="\n" * bool(lacking))
    return VERDICT if report.failed or lacking else DONE


def _print_report(report: Report) -> None:
    from supple.display import Display

    rows = [
        {"check": found.check, "verdict": found.status, "detail": found.detail}
        for found in report.verdicts
    ]
    Display.print_rows(f"verify {report.bundle}", rows)
    if report.latency:
        times = [
            {
                "one step, one thread": name,
                **{f"p{p} [us]": f"{getattr(found, f'p{p}'):.1f}" for p in (50, 95, 99)},
            }
            for name, found in report.latency.items()
        ]
        Display.print_rows("latency", times)
    passed, failed, skipped = map(report.count, ("passed", "FAILED", "skipped"))
    if line := sentence(report.unknown):
        print(line)
    found = f"{failed} of {passed + failed} checks failed" if failed else f"{passed} checks passed"
    print(f"{found}, {skipped} skipped" if skipped else found)


def chain(arguments: list[str]) -> int:
    """``supple chain WHAT``: from training to a robot that moves, in one command."""
    parser = Parser(
        prog="supple chain",
        description="Train or take a run, export, verify, build the C++ runner and let it move a"
        " simulated robot in another process; ends with a video.",
    )
    parser.add_argument("what", metavar="DIR|TASK", help="a run's folder, or a task to train first")
    add_best(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seconds", type=float, default=20.0, help="that the robot moves, > 0")
    parser.add_argument("--loss", type=float, default=0.01, help="probability, per packet")
    parser.add_argument("--delay", type=float, default=0.0, help="mean delay of a packet [s]")
    parser.add_argument("--seed", type=seed_number, default=0, help="of start, losses and delays")
    parser.add_argument("--no-video", action="store_true")
    options = parser.parse_args(arguments)
    from supple.checkpoint import run_of
    from supple.deploy.bundle import read_bundle
    from supple.deploy.chain import build_runner, drive, film
    from supple.deploy.export import export as write
    from supple.deploy.robot import Body
    from supple.deploy.verify import verify as check
    from supple.display import Display, print_line
    from supple.envs.gym_packages import importing_packages
    from supple.trained import read_settings

    out: Path = options.out
    rules = (
        ("seconds", 0 < options.seconds < inf, "a number > 0"),
        ("loss", 0 <= options.loss < 1, "in [0, 1)"),
        ("delay", 0 <= options.delay < inf, "a number >= 0"),
    )
    require_rules(options, "--", rules)
    if out.exists():
        raise InputError(f"{out} is there already: choose another --out")
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    out.rmdir()  # it is there once there is something to put into it
    run = Path(options.what)
    task = read_settings(run_of(run)).task if run.is_dir() else options.what
    with importing_packages(task), closing(Body({"origin": {"task": task}})):
        pass  # no robot here: said before minutes go into training or a build
    if not run.is_dir():
        run = out / "run"
        status = train([task, "--preset", "laptop", "--run-dir", str(run)])
        if status == RESUMABLE:
            print_line(f"then: supple chain {shlex.quote(str(run))} --out ANOTHER")
        if status != DONE:
            return status
    run = chosen(run, options)
    bundle = write(run, out / "bundle", archive=False)
    report = check(bundle, run=run)
    _print_report(report)
    if report.failed:
        return VERDICT
    runner = build_runner(bundle, out / "build")
    found = drive(
        runner,
        bundle,
        seconds=options.seconds,
        loss=options.loss,
        delay=options.delay,
        seed=options.seed,
        record=out / "poses.safetensors",
        log=out / "runner.csv",
    )
    rows = {**found.runner, **{f"robot: {key}": value for key, value in found.robot.items()}}
    said = {key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in rows.items()}
    Display.print_table("runner", said)
    if found.status != 0:
        print(f"supple: error: {found.error}", file=sys.stderr)
        return FAILED
    if not options.no_video:
        contract = read_bundle(bundle).contract
        fps = 1 / contract["timing"]["control_dt"]
        film(contract["origin"]["task"], out / "poses.safetensors", out / "robot.mp4", fps=fps)
        print(out / "robot.mp4")
    print(out)
    return DONE
