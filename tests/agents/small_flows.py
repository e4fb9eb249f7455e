"""Small flow critics and what they are fed."""

import pytest
import torch

from supple.agents.critics import CriticSize
from supple.agents.flow_critics import (
    BoundedFlowCritic,
    FlowCritic,
    FlowRange,
    PublishedFlowCritic,
)
from supple.agents.flow_settings import FlowSettings
from supple.agents.nets import project_
from tests.agents.small_agents import generator

G = 5.0
ROWS, INPUTS = 6, 4


def settings_of(**changes):
    small = {"width": 16, "depth": 2, "target_steps": 4, "read_steps": 4, "time_features": 8}
    return FlowSettings(**{**small, "target_samples": 3, "train_samples": 3, **changes})


def critic_of(kind=BoundedFlowCritic, *, members=2, seed=0, **changes):
    size = CriticSize(inputs=INPUTS, hidden=16, blocks=1, members=members)
    if kind is PublishedFlowCritic:
        changes = {"activation": "gelu", "norm": "layer", **changes}
    settings = settings_of(**changes)
    critic: FlowCritic
    if kind is BoundedFlowCritic:
        critic = BoundedFlowCritic(size, settings=settings, value_max=G, generator=generator(seed))
    else:
        spans = FlowRange.of(settings, G)
        critic = PublishedFlowCritic(
            size, settings=settings, spans=spans, generator=generator(seed)
        )
    project_(critic)
    return critic


KINDS = pytest.mark.parametrize(
    "kind", [BoundedFlowCritic, PublishedFlowCritic], ids=["flow", "official"]
)


def uniform(critic, use, seed=1):
    return torch.rand(ROWS, getattr(critic.draws, use), generator=generator(seed))


def inputs(seed=2):
    return torch.randn(ROWS, INPUTS, generator=generator(seed))
