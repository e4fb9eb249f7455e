"""The command line of ``supple diagnose``: options in, files and verdicts out."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from supple.checkpoint import run_of
from supple.cli import seed_number
from supple.diagnostics.context import SUITES
from supple.diagnostics.diagnose import Diagnosis, Options, diagnose
from supple.diagnostics.document import arrays_npz, as_bytes, latest
from supple.diagnostics.report.page import render, unanswered
from supple.errors import InputError
from supple.files import replace_file

MODES = ("action", "fisher", "critic", "choice", "information")
FAIL_ON = ("warn", "bad")
PAGE = "report.html"
SHAPES = {"bad": "■", "warn": "▲", "ok": "●"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``supple diagnose``."""
    add = parser.add_argument
    add("targets", metavar="TARGET", nargs="+", type=Path, help="run folders or checkpoints")
    add(
        "--suite",
        choices=SUITES,
        default="quick",
        help="how much; quick makes no environment",
    )
    add("--out", type=Path, help="folder of the report; default: the run's diagnostics folder")
    add("--episodes", type=int, default=20, help="of the standard and full suites")
    add(
        "--rollouts",
        action="store_true",
        help="with standard: disturb the policy in closed loop, as full always does",
    )
    add("--compare", metavar="RUN", nargs="+", type=Path, default=[], help="other runs beside it")
    add("--baseline", metavar="CHECKPOINT", type=Path, help="a good checkpoint to compare with")
    add("--modes", default="", help=f"of policy instability, some of {','.join(MODES)}")
    add("--noise-spec", metavar="FILE", type=Path, help="JSON: channel name to its sensor noise")
    add("--seed", type=seed_number, default=0, help="of all random draws")
    add("--budget", type=float, default=0.0, metavar="MIN", help="begin no stage after that")
    add("--fail-on", choices=FAIL_ON, help="exit with status 4 for a verdict at or above it")
    add("--no-html", action="store_true", help="only report.json and arrays.npz")


def run(options: argparse.Namespace, arguments: Sequence[str]) -> bool:
    """Diagnose, write and print.

    Returns:
        Whether a verdict is at or above ``--fail-on``.

    Raises:
        InputError: an option does not fit, or there is nothing intact to look at.
    """
    asked = read_options(options, arguments)
    out: Path = options.out or _default_out(options.targets[0])
    _check_writable(out)
    found = diagnose(asked, lambda text: print(text, file=sys.stderr))
    files = write(found, out, html=not options.no_html)
    for line in summary(found):
        print(line)
    for path in files:
        print(path)
    levels = {"warn": ("warn", "bad"), "bad": ("bad",)}
    return options.fail_on is not None and found.worst in levels[options.fail_on]


def read_options(options: argparse.Namespace, arguments: Sequence[str]) -> Options:
    """Checked options.

    Raises:
        InputError: a value that does not fit.
    """
    if options.episodes < 2:
        raise InputError(f"--episodes must be >= 2, got {options.episodes}")
    if not 0 <= options.budget < float("inf"):
        raise InputError(f"--budget must be >= 0 minutes, got {options.budget:g}")
    if options.rollouts and options.suite == "quick":
        raise InputError(
            "--rollouts needs the simulator, the quick suite makes none: add --suite standard"
        )
    modes = tuple(filter(None, options.modes.split(",")))
    for mode in modes:
        if mode not in MODES:
            raise InputError(f"--modes must be some of {', '.join(MODES)}, got {mode}")
    return Options(
        paths=[*options.targets, *options.compare],
        suite=options.suite,
        episodes=options.episodes,
        modes=modes,
        rollouts=options.rollouts,
        baseline=options.baseline,
        noise=options.noise_spec,
        seed=options.seed,
        device=options.device,
        budget_s=60 * options.budget,
        command=shlex.join(["supple", "diagnose", *arguments]),
    )


def _default_out(path: Path) -> Path:
    folder = run_of(path)
    if not folder.is_dir():
        raise InputError(f"no run or checkpoint at {folder}: give the folder of one")
    return folder / "diagnostics"


def _check_writable(out: Path) -> None:
    """Before minutes are spent, and without making anything: what fails leaves nothing behind."""
    nearest = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise InputError(f"cannot write {out}: {nearest} is no folder; choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {out}: no permission in {nearest}; choose another --out")


def write(found: Diagnosis, out: Path, *, html: bool = True) -> list[Path]:
    """The files of a report, each replaced in one step.

    Raises:
        InputError: the folder cannot be made.
    """
    document = found.document.to_json()
    arrays = {
        f"{number}/{name}": part
        for number, own in found.arrays.items()
        for name, part in own.items()
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays_npz(arrays))  # type: ignore[arg-type]
    contents = {"report.json": as_bytes(document), "arrays.npz": packed.getvalue()}
    if html:
        contents[PAGE] = render(document, found.analyses, found.arrays).encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    if not html:  # an earlier page would contradict what stands beside it
        (out / PAGE).unlink(missing_ok=True)
    for name, data in contents.items():
        replace_file(out / name, data)
    return [out / name for name in contents]


def summary(found: Diagnosis) -> list[str]:
    """One verdict per rule and run, worst first, with what to try; what else a reader must know."""
    document = found.document.to_json()
    verdicts, missing = latest(document), unanswered(document)
    lines = [] if verdicts else [f"{SHAPES['ok']} no fault found by the checks that ran"]
    for verdict in verdicts:
        sure = f"{verdict['rule']}, confidence {verdict['confidence']}"
        lines.append(
            f"{SHAPES[verdict['level']]} {verdict['level']}: {verdict['sentence']} [{sure}]"
        )
        lines += [f"    try: {action}" for action in verdict["actions"]]
    lines += [missing] if missing else []
    return lines + [f"note: {note}" for note in document["notes"]]
