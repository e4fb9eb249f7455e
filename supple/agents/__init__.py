"""Agents: learners that the one training loop drives."""

from supple.agents.base import Agent
from supple.agents.flashsac import FlashSAC
from supple.agents.flashsac_settings import FlashSACSettings

__all__ = ["Agent", "FlashSAC", "FlashSACSettings"]
