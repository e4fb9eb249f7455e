"""supple: train robot policies fast, keep their networks able to learn, take them to the robot.

Importing this package imports neither torch nor any simulator.
"""

from supple.version import __version__

__all__ = ["__version__"]
