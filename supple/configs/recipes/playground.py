"""MuJoCo Playground."""

from __future__ import annotations

from supple.configs.base import Settings


def walking(settings: Settings) -> None:
    """Discount 0.97."""
    settings.agent.gamma = 0.97


def humanoid(settings: Settings) -> None:
    """Discount 0.97, no pushes."""
    walking(settings)
    settings.env.config = ("push_config.enable=false",)


RECIPES = {"G1Joystick*": humanoid, "T1Joystick*": humanoid, "*Joystick*": walking}
"""Published for the G1 and T1 following commands; its other tasks take the defaults."""
