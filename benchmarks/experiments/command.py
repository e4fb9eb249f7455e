"""What the commands of all experiments share."""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from supple import compare
from supple.bench.table import append, origin, read
from supple.display import Display
from supple.errors import InputError
from supple.run import RESULT
from supple.trained import read_settings

K = TypeVar("K")


def parser(
    description: str | None, *, runs: str = "", seeds: Sequence[int] = ()
) -> argparse.ArgumentParser:
    """What every experiment takes.

    Args:
        description: the module's docstring, shown as it is written.
        runs: name of the folder that keeps its runs; without one it keeps none.
        seeds: by default, of experiments that train several at once.
    """
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--report", action="store_true", help="only say what was found")
    if runs:
        found.add_argument("--out", type=Path, default=Path("runs") / runs, help="folder of runs")
    if seeds:
        found.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
        found.add_argument("--jobs", type=at_least_one, default=2, help="runs at once")
    return found


def with_reference(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; whoever does more than report must say where the published code is."""
    parser.add_argument("--reference", type=Path, metavar="PATH", help="checkout of the code")
    options = parser.parse_args()
    if not options.report and options.reference is None:
        parser.error("give --reference PATH, a checkout of Holiday-Robot/FlashSAC")
    return options


def curves(
    rows: Iterable[Mapping[str, str]], key: Callable[[Mapping[str, str]], K]
) -> dict[K, dict[str, list[float]]]:
    """The returns in a file of results, in its order: by a key of the row, then by seed."""
    found: dict[K, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[key(row)][row["seed"]].append(float(row["return"]))
    return found


def at_least_one(text: str) -> int:
    """A number of runs, as argparse takes it."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def record(planned: Sequence[compare.Job], path: Path, command: str, **facts: str) -> None:
    """Append the evaluations of finished runs that a file does not have yet.

    Args:
        planned: runs, some of them finished.
        path: the file of results.
        command: that makes them.
        facts: columns in front, the same for all of these runs.
    """
    names = (*facts, "task", "variant", "seed")
    known = {tuple(row[name] for name in names) for row in read(path)}
    for job in planned:
        own = {**facts, "task": job.task, "variant": job.variant, "seed": str(job.seed)}
        if job.result() is None or tuple(own.values()) in known:
            continue
        seconds, where = job.evaluations("time/seconds"), made(job.folder)
        rows = [
            {
                **own,
                "step": step,
                "return": round(value, 1),
                "seconds": round(seconds[step], 1),
                **where,
            }
            for step, value in job.evaluations("eval/return_mean").items()
        ]
        append(rows, path, command)


def made(folder: Path) -> dict[str, Any]:
    """Columns that say when and where a finished run was made, whoever collects its rows."""
    settings = read_settings(folder)
    found = json.loads((folder / "versions.json").read_text())
    ended = (folder / RESULT).stat().st_mtime
    return {
        "date": time.strftime("%Y-%m-%d", time.localtime(ended)),
        "threads": settings.threads,
        "load": "",
        **origin(found, gpu="gpu" in found and settings.device != "cpu"),
    }


def say(title: str, lines: Sequence[Mapping[str, str]]) -> None:
    """Print a table, or that there is none yet."""
    if lines:
        Display.print_rows(title, list(lines))
    else:
        print("no finished runs yet")


def start(main: Callable[[], int | None]) -> None:
    """Run, and exit with the status that comes of it; bad input or a second Ctrl-C is one line."""
    try:
        raise SystemExit(main())
    except InputError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit("stopped at once; runs keep what they saved") from None
