"""Settings of runs: defaults per task (recipes) and per machine and purpose (presets)."""

from __future__ import annotations

import difflib
from typing import Any, cast

import torch

from supple.agents.flashsac_settings import CRITICS
from supple.agents.flow_settings import published
from supple.configs.base import PRESETS, Settings
from supple.errors import InputError

AGENTS = ("flashsac",)


def default_settings(
    task: str, *, agent: str = "flashsac", preset: str = "", critic: str = "categorical"
) -> Settings:
    """The settings of a task before any flag: defaults, those of the critic, then the preset.

    Args:
        task: ``<simulator>/<task>`` or ``module:callable``.
        agent: one of ``AGENTS``.
        preset: one of ``PRESETS``; empty is ``gpu`` where CUDA is, else ``laptop``.
        critic: one of ``CRITICS``.

    Raises:
        InputError: unknown agent, preset or critic.
    """
    preset = preset or ("gpu" if torch.cuda.is_available() else "laptop")
    _known("--agent", agent, AGENTS)
    _known("--preset", preset, tuple(PRESETS))
    _known("--agent.critic", critic, CRITICS)
    settings = Settings(task=task, agent_name=agent, preset=preset)
    settings.agent.critic = cast(Any, critic)
    if critic == "flow_official":
        settings.agent.flow = published()
    PRESETS[preset](settings)
    return settings


def _known(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{flag} must be one of {', '.join(choices)}, got {value}{hint}")
