import contextlib
from typing import Any

LAUNCHED: list[Any] = []
"""Configurations of simulations that run."""


@contextlib.contextmanager
def launch_simulation(config, options):
    LAUNCHED.append(config)
    yield
    LAUNCHED.remove(config)
