"""Whether a simulator's package is here, and what to say where it is not."""

from __future__ import annotations

import importlib.util

from supple.errors import InputError, how_to_install


def is_installed(package: str) -> bool:
    """Whether it could be imported; nothing is imported to find out."""
    return importlib.util.find_spec(package) is not None


def status(package: str, simulator: str) -> str:
    """For ``supple list``: installed, or how to install it."""
    if is_installed(package):
        return "installed"
    return f"not installed: {how_to_install(simulator)}, or make sim-{simulator}"


def require(package: str, simulator: str, task_id: str) -> None:
    """Refuse to build a task whose simulator is missing.

    Raises:
        InputError: names the extra to install.
    """
    if not is_installed(package):
        raise InputError(f"{task_id} needs {package}, {status(package, simulator)}")
