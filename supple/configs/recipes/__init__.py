"""Recipes: what is published for a simulator's tasks, over any preset and below the flags.

A file per simulator that has any. ``RECIPES`` of each maps patterns of task names, the most special
first, to functions that change full settings; the first line of a function's docstring is what
``supple list`` shows. A recipe names only what differs from the agents' defaults and presets, whose
values of the same field it replaces.
Source of FlashSAC's values: Holiday-Robot/FlashSAC@87edc90, scripts/run_*.sh and configs/env.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supple.configs.base import Settings

Recipe = Callable[["Settings"], None]
SIMULATORS = ("envpool", "genesis", "isaaclab", "maniskill", "myosuite", "playground")
"""Those with a file here."""


def recipes_of(simulator: str) -> dict[str, Recipe]:
    """Patterns of task names and their recipes; empty where nothing differs from the defaults."""
    if simulator not in SIMULATORS:
        return {}
    found: dict[str, Recipe] = importlib.import_module(f"{__name__}.{simulator}").RECIPES
    return found


def apply_recipe(settings: Settings) -> None:
    """Change settings as published for their task, where anything is."""
    simulator, _, name = settings.task.partition("/")
    for pattern, recipe in recipes_of(simulator).items():
        if fnmatchcase(name, pattern):
            recipe(settings)
            return
