"""ManiSkill."""

from __future__ import annotations

from supple.configs.base import Settings


def maniskill(settings: Settings) -> None:
    """Discount 0.9, evaluations of 50 episodes; room for time-outs after 20 steps and more."""
    settings.agent.gamma = 0.9
    settings.eval.episodes = 50
    # Every episode ends by truncation, some after 50 steps.
    settings.replay.final_fraction = 0.05


RECIPES = {"*": maniskill}
