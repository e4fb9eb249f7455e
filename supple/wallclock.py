"""Where a run's wall-clock goes."""

from __future__ import annotations

import time


class WallClock:
    """Seconds spent within ``with`` blocks, on the host: nothing waits for the device.

    What a GPU was asked for is counted where the host first waits for it.
    """

    def __init__(self) -> None:
        self._seconds = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """What came together since the last call [s]."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
