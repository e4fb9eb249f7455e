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
    if type(config.sim.physics).__name__ == "PhysxCfg":  # as Isaac Sim's launcher decides
        config.sim.device = options.get("device", "cuda:0")
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
