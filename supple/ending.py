"""What ends the process itself: closed last, since it does so as it is closed, or left abruptly.

Isaac Sim's Kit exits from within its ``close()``, with status 0 unless it is told another: whatever
came after would neither be done nor said.
Source: isaaclab 3.0.0, isaaclab/app/sim_launcher.py and isaaclab_physx/app/kit_launcher.py.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

_statuses: list[int] = []
"""Of this process's commands."""


def note(status: int) -> int:
    """Remember, and return, the exit status of a command."""
    _statuses.append(status)
    return status


def leave_last(launched: contextlib.AbstractContextManager[object]) -> None:
    """Leave a context as the process ends, as ``sys.exit`` with its last command's status would."""
    atexit.register(_leave, launched)


def leave_abruptly() -> None:
    """End the process without taking Python down: a thread is still busy in compiled code."""
    atexit.register(lambda: os._exit(_last_words()))


def _leave(launched: contextlib.AbstractContextManager[object]) -> None:
    launched.__exit__(SystemExit, SystemExit(_last_words()), None)


def _last_words() -> int:
    """The exit status, after everything that was said is written."""
    uncaught = getattr(sys, "last_value", None) is not None
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it any more
            stream.flush()
    return _statuses[-1] if _statuses else int(uncaught)
