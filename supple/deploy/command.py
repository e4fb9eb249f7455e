"""``supple export`` and ``supple verify`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from supple.cli import DONE, VERDICT, Parser
from supple.deploy.bundle import zip_path
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.deploy.verify import Report


def export(arguments: list[str]) -> int:
    """``supple export DIR``; the bundle's folder is the last line."""
    parser = Parser(
        prog="supple export",
        description="A trained policy as ONNX, torch and C99, with all a robot needs to know.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a run's folder or a checkpoint")
    parser.add_argument(
        "--out", type=Path, help="the folder to write; default: bundle in the run's folder"
    )
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="mjlab: its keys in the ONNX files; unitree: deploy.yaml",
    )
    parser.add_argument("--no-zip", action="store_true", help="write no archive beside the folder")
    try:
        options = parser.parse_args(arguments)
    except SystemExit:  # --help was asked for and printed
        return DONE
    from supple.deploy.export import export as write

    out = write(options.folder, options.out, also=options.also, archive=not options.no_zip)
    if not options.no_zip:
        print(zip_path(out))
    print(out)
    return DONE


def verify(arguments: list[str]) -> int:
    """``supple verify BUNDLE``; status 4 where a verdict failed."""
    parser = Parser(
        prog="supple verify",
        description="Replays a bundle in every runtime that is here and checks what it says.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="its folder or .zip")
    parser.add_argument("--run", type=Path, help="the run it came from: compared with it as well")
    parser.add_argument(
        "--episodes", type=int, default=10, help="of the closed loop in the simulator; 0: none"
    )
    parser.add_argument("--no-latency", action="store_true", help="time nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    try:
        options = parser.parse_args(arguments)
    except SystemExit:  # --help was asked for and printed
        return DONE
    if options.episodes < 0:
        raise InputError(f"--episodes must be >= 0, got {options.episodes}")
    from supple.deploy.verify import verify as check

    report = check(
        options.bundle,
        run=options.run,
        episodes=options.episodes,
        latency=not options.no_latency,
    )
    if options.json:
        print(json.dumps(report.to_json()))
    else:
        _print_report(report)
    return VERDICT if report.failed else DONE


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
    failed = [found for found in report.verdicts if found.status == "FAILED"]
    print(
        f"{len(failed)} of {len(report.verdicts)} checks failed" if failed else "all checks passed"
    )
