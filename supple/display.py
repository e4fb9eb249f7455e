"""Progress in the terminal: a live bar where there is one, plain lines in a log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 5.0
"""At most one plain progress line per so many seconds, except at evaluations [s]."""
REFRESH_SECONDS = 0.2
"""At most one redraw of the live bar per so many seconds [s]."""
SPEED_REPORTS = 20
"""Reports over which the speed behind the remaining time is taken."""

# A terminal may vanish, refuse a character, or be written to from a signal handler in the middle of
# another write. None of that may end a run of hours.
_ODD_TERMINAL = (OSError, ValueError, RuntimeError)


class Display:
    """Progress of one run; use as a context manager around it.

    Usable before and after, too: ``notice`` and ``table`` then just print. Output that the terminal
    refuses is dropped.

    Args:
        total_steps: environment steps of the whole run.
        title: shown above the bar: task, agent, seed.
        clock: monotonic seconds; tests pass their own.
    """

    def __init__(
        self, total_steps: int, *, title: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = max(total_steps, 1)
        self._title = title
        self._clock = clock
        self._values: dict[str, float] = {}
        self._history: deque[tuple[float, float]] = deque(maxlen=SPEED_REPORTS)  # time, steps
        self._shown_at = -math.inf
        self._pending = False
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if not is_terminal():
            print_line(self._title)
            return self
        with suppress(*_ODD_TERMINAL):
            live = Live(
                console=_console(),
                auto_refresh=False,
                # A log on stderr must not end up on the terminal.
                redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
                get_renderable=self._render,
            )
            live.start(refresh=True)
            self._live = live
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pending:
            self._show()
        if self._live:
            with suppress(*_ODD_TERMINAL):
                self._live.stop()
            self._live = None

    def update(self, values: Mapping[str, float]) -> None:
        """Show a metric row.

        Args:
            values: ``step`` (environment steps), and any of ``train/return_mean``,
                ``eval/return_mean``, ``eval/return_ci95``, ``time/env_steps_per_s``,
                ``time/updates_per_s``, ``time/memory_gib``. What a row lacks keeps its last value.
        """
        self._values.update(values)
        now = self._clock()
        # Warming up without gradient steps says nothing of how long the rest takes.
        if values.get("time/updates_per_s", 1) > 0:
            self._history.append((now, values["step"]))
        self._pending = True
        wait = REFRESH_SECONDS if self._live else LINE_SECONDS
        if now - self._shown_at >= wait or (not self._live and "eval/return_mean" in values):
            self._show()

    def notice(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if self._live:
            with suppress(*_ODD_TERMINAL):
                self._live.console.print(Text(text), soft_wrap=True)
        else:
            print_line(text)

    @staticmethod
    def print_table(title: str, rows: Mapping[str, str]) -> None:
        """Print names and values under a title."""
        _print_grid(title, [], [[name, value] for name, value in rows.items()])

    @staticmethod
    def print_rows(title: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Print rows under a title; the columns are the first row's keys."""
        columns = list(rows[0]) if rows else []
        _print_grid(title, columns, [[row.get(name, "") for name in columns] for row in rows])

    # --- what is shown ----------------------------------------------------------------------

    def _show(self) -> None:
        self._pending = False
        self._shown_at = self._clock()
        if self._live:
            with suppress(*_ODD_TERMINAL):
                self._live.refresh()
        else:
            print_line(" | ".join([*self._progress(), *self._details()]))

    def _render(self) -> Group:
        done = min(self._values.get("step", 0), self._total)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(self._total, done, width=24), Text(" | ".join(self._progress())))
        return Group(Text(self._title, style="bold"), bar, Text(" | ".join(self._details())))

    def _progress(self) -> list[str]:
        step = self._values.get("step", 0)
        parts = [
            f"{min(100 * step / self._total, 100):.0f} %",
            f"{step:,.0f} / {self._total:,} env steps",
        ]
        left = self._seconds_left()
        return parts if left is None else [*parts, f"{format_seconds(left)} left"]

    def _details(self) -> list[str]:
        values = {name: format_number(value) for name, value in self._values.items()}
        if "eval/return_mean" in values and self._values.get("eval/return_ci95"):
            values["eval/return_mean"] += f" ± {values['eval/return_ci95']}"
        texts = {
            "train/return_mean": "return {}",
            "eval/return_mean": "evaluation {}",
            "time/env_steps_per_s": "{} env steps/s",
            "time/updates_per_s": "{} updates/s",
            "time/memory_gib": "{} GiB",
        }
        return [text.format(values[name]) for name, text in texts.items() if name in values]

    def _seconds_left(self) -> float | None:
        if len(self._history) < 2:
            return None
        (then, before), (now, step) = self._history[0], self._history[-1]
        if step <= before or now <= then:
            return None
        return max(self._total - step, 0) * (now - then) / (step - before)


class NoDisplay(Display):
    """Shows nothing: for processes beside the one that speaks."""

    def __enter__(self) -> Display:
        return self

    def update(self, values: Mapping[str, float]) -> None:
        """Nothing."""

    def notice(self, text: str) -> None:
        """Nothing."""


def is_terminal() -> bool:
    """Whether stdout is a terminal that can redraw lines."""
    if os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return False
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    try:
        return sys.stdout.isatty() and encoding.startswith("utf")
    except (AttributeError, ValueError):  # no stdout, or a closed one
        return False


def format_number(value: float) -> str:
    """Three significant digits; thousands in full."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.3g}"


def format_return(value: float) -> str:
    """Three significant digits, and one decimal of hundreds and more."""
    return f"{value:.1f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """A duration [s] as ``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


# --- output ----------------------------------------------------------------------------------


def print_line(text: str) -> None:
    """A plain line without control characters; what cannot be encoded becomes question marks.

    Dropped where nobody reads it.
    """
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    with suppress(*_ODD_TERMINAL, AttributeError):
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), flush=True)


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False)


def _print_grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if is_terminal():
        grid = Table.grid(padding=(0, 3))
        for _ in rows[0] if rows else columns:
            grid.add_column(overflow="fold")
        if columns:
            grid.add_row(*(Text(name, style="bold") for name in columns))
        for row in rows:
            grid.add_row(*(Text(cell) for cell in row))
        with suppress(*_ODD_TERMINAL):
            _console().print(Text(title, style="bold underline"), grid)
        return
    print_line(f"{title}:")
    lines = [columns, *rows] if columns else list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print_line(f"  {'  '.join(cells)}".rstrip())
