"""envpool's ports: those of the simulators they were made from."""

from __future__ import annotations

from supple.configs.recipes.myosuite import myosuite
from supple.configs.recipes.playground import playground

RECIPES = {"MuJoCoPlayground/*": playground, "MyoSuite/*": myosuite}
