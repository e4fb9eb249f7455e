"""Settings of runs: defaults per task (recipes) and per machine and purpose (presets)."""

from __future__ import annotations

import difflib
from typing import Any, cast

import torch

from supple.agents import base_of
from supple.agents.flashsac_settings import CRITICS, FlashSACSettings
from supple.agents.flow_settings import published
from supple.configs import flashsac, ppo
from supple.configs.base import AGENT_SETTINGS, Settings
from supple.configs.recipes import apply_recipe
from supple.envs.registry import ON_GPU, runs_on_gpu
from supple.errors import InputError
from supple.world import from_environment

PRESETS = {"flashsac": flashsac.PRESETS, "ppo": ppo.PRESETS}
"""Of each agent, by name."""
AGENTS = tuple(PRESETS)
LONG_RUN_ROWS = 1_000_000
"""Up to so many transitions the ring of a run that is longer than its preset's keeps all."""
PRESET_RULE = (
    f"laptop without CUDA; with it gpu for {', '.join(ON_GPU)} and your own callable that takes"
    " num_envs and device, cpu for simulators on the CPU"
)
"""Which preset a task has where none is named."""


def default_settings(
    task: str,
    *,
    agent: str = "flashsac",
    preset: str = "",
    critic: str = "",
    env_steps: int | None = None,
    target_samples: int | None = None,
) -> Settings:
    """The settings of a task before any flag: the critic's own, the preset, then its recipe.

    Args:
        task: ``<simulator>/<task>`` or ``module:callable``.
        agent: one of ``AGENTS``, or ``module:Class`` that extends one of theirs.
        preset: one of the agent's ``PRESETS``; empty goes by ``PRESET_RULE``.
        critic: of FlashSAC, one of ``CRITICS``; empty is ``categorical``.
        env_steps: of the run, by which its ring is made, too; None is the preset's.
        target_samples: of a flow critic; the published one takes as many next actions.

    Raises:
        InputError: unknown agent, preset or critic; or no such callable, where no preset is named.
    """
    preset = preset or _usual_preset(task)
    if ":" not in agent:
        _known("--agent", agent, AGENTS)
    base = base_of(agent)
    _known("--preset", preset, tuple(PRESETS[base]))
    own = AGENT_SETTINGS[base]()
    settings = Settings(task=task, agent_name=agent, preset=preset, agent=own)
    if isinstance(own, FlashSACSettings):
        _known("--agent.critic", critic or own.critic, CRITICS)
        own.critic = cast(Any, critic or own.critic)
        if critic == "flow_official":
            own.flow = published()
    elif critic:
        raise InputError(f"--agent.critic is FlashSAC's, --agent is {agent}: drop one of the two")
    PRESETS[base][preset](settings)
    apply_recipe(settings)
    if isinstance(own, FlashSACSettings) and target_samples is not None:
        own.flow.target_samples = target_samples
    if critic == "flow_official":
        assert isinstance(own, FlashSACSettings)
        own.next_actions = own.flow.target_samples  # as published, one for each
    if env_steps is not None:
        settings.env_steps = env_steps
        own_steps = -(-env_steps // from_environment().size)  # each process has a ring
        replay = settings.replay
        replay.capacity = max(replay.capacity, min(own_steps, LONG_RUN_ROWS))
    return settings


def _usual_preset(task: str) -> str:
    """What ``PRESET_RULE`` says."""
    if not torch.cuda.is_available():
        return "laptop"
    return "gpu" if runs_on_gpu(task) else "cpu"


def _known(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{flag} must be one of {', '.join(choices)}, got {value}{hint}")
