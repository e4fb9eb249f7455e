"""MuJoCo Playground."""

from __future__ import annotations

from supple.configs.base import Settings


def playground(settings: Settings) -> None:
    """Discount 0.97."""
    settings.agent.gamma = 0.97


RECIPES = {"*": playground}
