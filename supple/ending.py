"""What ends the process itself as it is closed, and so is closed last.

Isaac Sim's Kit exits from within its ``close()``, with status 0 unless it is told another: whatever
came after would neither be done nor said.
Source: isaaclab 3.0.0, isaaclab/app/sim_launcher.py and isaaclab_physx/app/kit_launcher.py.
"""

from __future__ import annotations

import atexit
import contextlib
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


def _leave(launched: contextlib.AbstractContextManager[object]) -> None:
    uncaught = getattr(sys, "last_value", None) is not None
    status = _statuses[-1] if _statuses else int(uncaught)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    launched.__exit__(SystemExit, SystemExit(status), None)
