"""supple: train robot policies fast, keep their networks able to learn, take them to the robot.

Importing this package imports neither torch nor any simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supple.version import __version__

if TYPE_CHECKING:
    from supple.policy import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from supple.policy import load  # torch takes seconds to import

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
