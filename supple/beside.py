"""Calls on a thread of their own, which keeps no process alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias

from supple.ending import leave_abruptly

A_LITTLE = 3.0
"""Most steps of simulators end within [s]."""
Call: TypeAlias = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Beside:
    """One daemon thread that makes one call after the other.

    Python waits for the threads of a ``ThreadPoolExecutor`` as it ends, also for a call that hangs.

    Args:
        name: of the thread.
        begin: called first, on the thread.
    """

    def __init__(self, name: str, begin: Callable[[], object]) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(begin,), name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call it when those before are done; the future gives its result, or raises its error."""
        future: Future[Any] = Future()
        self._calls.put((future, function, arguments))
        return future

    def shutdown(self, *, wait: bool) -> None:
        """Take no further calls; ``wait`` for those that were submitted, else only a little."""
        self._calls.put(None)
        self._thread.join(None if wait else A_LITTLE)
        if self._thread.is_alive():
            leave_abruptly()

    def _serve(self, begin: Callable[[], object]) -> None:
        failed: BaseException | None = None
        try:
            begin()
        except BaseException as error:
            failed = error
        while call := self._calls.get():
            future, function, arguments = call
            try:
                if failed:
                    raise failed
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)
