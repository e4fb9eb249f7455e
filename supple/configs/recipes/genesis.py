"""Genesis."""

from __future__ import annotations

from supple.configs.base import Settings


def genesis(settings: Settings) -> None:
    """Discount 0.95."""
    settings.agent.gamma = 0.95


RECIPES = {"*": genesis}
