"""envpool's ports: those of the simulators they were made from."""

from __future__ import annotations

from supple.configs.recipes.myosuite import myosuite
from supple.configs.recipes.playground import walking

RECIPES = {"*Joystick*": walking, "Myo*": myosuite, "myo*": myosuite}
"""Each task has two ids, with its suite's name before it and without."""
