import contextlib
import os
from typing import Any

LAUNCHED: list[Any] = []
"""Configurations of simulations that run."""
KIT = False
"""Whether closing it ends the process, as Isaac Sim does."""


@contextlib.contextmanager
def launch_simulation(config, options):
    LAUNCHED.append(config)
    status: Any = 0
    try:
        yield
    except SystemExit as stop:
        status = stop.code
        raise
    finally:
        LAUNCHED.remove(config)
        if KIT:
            os._exit(status)
