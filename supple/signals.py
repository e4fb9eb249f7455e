"""What SIGINT, SIGTERM and their like mean, for a while."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


def requests_to_stop() -> tuple[int, ...]:
    """A cluster's, and that of a terminal that closes unless the program was told to outlive it."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def on_signals(handler: Callable[[int, Any], object], *numbers: int) -> Iterator[None]:
    """A block in which these signals call ``handler``.

    Only the main thread may take signals: elsewhere the block changes nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main}
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # it was not Python's, and cannot be put back
                signal.signal(number, old)
