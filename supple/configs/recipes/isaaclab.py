"""Isaac Lab."""

from __future__ import annotations

from supple.agents.flashsac_settings import FlashSACSettings
from supple.configs.base import Settings


def isaaclab(settings: Settings) -> None:
    """FlashSAC: three-step returns. PPO's defaults are its own rsl_rl settings."""
    if isinstance(settings.agent, FlashSACSettings):
        settings.agent.n_step = 3


def franka(settings: Settings) -> None:
    """FlashSAC: three-step returns, actions between -3 and 3."""
    isaaclab(settings)
    if isinstance(settings.agent, FlashSACSettings):
        settings.env.action_bound = 3.0


RECIPES = {
    "IsaacContrib-Lift-Cube-Franka": franka,
    "Isaac-Open-Drawer-Franka": franka,
    "*": isaaclab,
}
