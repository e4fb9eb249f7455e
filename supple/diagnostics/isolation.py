"""Measuring must leave training as it was, to the bit.

Measurements are written so that they touch nothing: twins of networks, evaluation mode, generators
of their own. ``isolated`` makes sure: what they may touch by mistake is put back, and the precision
they need is set for them alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from supple.agents.base import Agent
from supple.region import float32_products


@contextlib.contextmanager
def isolated(agent: Agent) -> Iterator[None]:
    """Float32 without autocast or TF32; the process's random streams are put back afterwards.

    Args:
        agent: whose device's stream is kept too.
    """
    device = agent.device
    cuda = device.type == "cuda"
    state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if cuda else None
    try:
        with float32_products("ieee"), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_rng_state(state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)
