"""Agents: learners that the one training loop drives."""

from collections.abc import Callable, Mapping

from supple.agents.base import Agent
from supple.agents.flashsac import FlashSAC
from supple.agents.flashsac_settings import FlashSACSettings
from supple.agents.ppo import PPO
from supple.agents.ppo_settings import PPOSettings

AGENTS: Mapping[str, Callable[..., Agent]] = {"flashsac": FlashSAC, "ppo": PPO}
"""What ``--agent`` names; each takes a spec, its settings, and what ``FlashSAC`` takes besides."""

__all__ = ["AGENTS", "PPO", "Agent", "FlashSAC", "FlashSACSettings", "PPOSettings"]
