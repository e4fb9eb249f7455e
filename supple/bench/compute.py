"""What a gradient step of any settings computes."""

from __future__ import annotations

import copy
import dataclasses

import torch

from supple.agents.flashsac_settings import FlashSACSettings
from supple.bench.update import counted_flops
from supple.build import build_agent
from supple.configs.base import Settings
from supple.envs.base import EnvSpec, step_result
from supple.region import ComputeSettings
from supple.replay import Replay


def flops_per_update(settings: Settings, spec: EnvSpec) -> float:
    """Floating-point operations of the matrix products of one gradient step, counted on the CPU.

    Args:
        settings: of a run; neither they nor its random streams are changed.
        spec: of its environment.
    """
    settings = copy.deepcopy(settings)
    settings.device, settings.compute = "cpu", ComputeSettings(precision="float32", compile="off")
    settings.replay.spill = False
    spec = dataclasses.replace(spec, device=torch.device("cpu"))
    steps = 1
    if isinstance(settings.agent, FlashSACSettings):
        steps = settings.agent.actor_period  # the actor learns once in so many
        settings.agent.min_replay, settings.agent.utd, settings.agent.update_every = 2, 1.0, 1
        settings.replay.capacity = (64 + settings.agent.n_step) * spec.num_envs
        spec = dataclasses.replace(spec, num_envs=1)
    agent = build_agent(settings, spec)
    ring = agent.ring(settings.replay)
    replay = Replay(spec, ring, extra_spec=agent.extra_spec, compute=agent.compute)
    random = torch.Generator().manual_seed(0)
    total = 0.0
    while agent.updates < steps:
        for _ in range(agent.horizon):
            obs = {
                name: torch.randn(spec.num_envs, width, generator=random)
                for name, width in spec.observation.items()
            }
            action, extras = agent.act(obs, explore=True)
            step = step_result(
                observation=obs,
                final_observation=obs,
                reward=torch.randn(spec.num_envs, generator=random),
                terminated=torch.zeros(spec.num_envs, dtype=torch.bool),
                truncated=torch.zeros(spec.num_envs, dtype=torch.bool),
            )
            agent.observe(step)
            replay.add(obs, action, step, extras)
        total += counted_flops(lambda: agent.update(replay))
    return total / agent.updates
