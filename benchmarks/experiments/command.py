"""What the commands of all experiments share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from supple.errors import InputError


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
        found.add_argument("--jobs", type=int, default=2, help="runs at once")
    return found


def start(main: Callable[[], None]) -> None:
    """Run; bad input is one line."""
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from error
