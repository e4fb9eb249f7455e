"""Agents: learners that the one training loop drives."""

from collections.abc import Mapping
from typing import Any

from supple.agents.base import Agent
from supple.agents.flashsac import FlashSAC
from supple.agents.flashsac_settings import FlashSACSettings
from supple.agents.ppo import PPO
from supple.agents.ppo_settings import PPOSettings
from supple.errors import InputError

AGENTS: Mapping[str, type[FlashSAC] | type[PPO]] = {"flashsac": FlashSAC, "ppo": PPO}
"""By name; each takes a spec, its settings, and what ``FlashSAC`` takes besides."""


def agent_class(name: str) -> type[Any]:
    """What ``--agent`` names: one of ``AGENTS``, or ``module:Class`` that extends one of them.

    Raises:
        InputError: there is no such class.
    """
    if name in AGENTS:
        return AGENTS[name]
    from supple.envs.custom import load

    found = load(name, "--agent")
    if not (isinstance(found, type) and issubclass(found, tuple(AGENTS.values()))):
        raise InputError(f"--agent {name}: expected a class that extends FlashSAC or PPO")
    return found


def base_of(name: str) -> str:
    """Of ``AGENTS``, the one whose settings and presets an agent has.

    Raises:
        InputError: there is no such agent.
    """
    kind = agent_class(name)
    return next(base for base, own in AGENTS.items() if issubclass(kind, own))


__all__ = [
    "AGENTS",
    "PPO",
    "Agent",
    "FlashSAC",
    "FlashSACSettings",
    "PPOSettings",
    "agent_class",
    "base_of",
]
