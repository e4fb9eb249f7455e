"""ManiSkill."""

from __future__ import annotations

from supple.configs.base import Settings


def maniskill(settings: Settings) -> None:
    """Discount 0.9."""
    settings.agent.gamma = 0.9


RECIPES = {"*": maniskill}
