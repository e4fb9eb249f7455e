"""Environments: one contract over every simulator. Adapters are imported on first use."""

from __future__ import annotations

from typing import Any

from supple.envs.registry import EnvSettings, Simulator, check_task, known_tasks, make

__all__ = [
    "EnvSettings",
    "Simulator",
    "as_gymnasium",
    "as_torchrl",
    "check_task",
    "known_tasks",
    "make",
]


def __getattr__(name: str) -> Any:
    if name in ("as_gymnasium", "as_torchrl"):
        from supple.envs import interop  # torchrl takes seconds to import

        return getattr(interop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
