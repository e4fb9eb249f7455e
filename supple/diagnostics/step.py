"""The update that would come next, made on copies: what it changes is measured, nothing is kept.

The gradient is that of the diagnostics' objective (evaluation mode, one-step targets) on as many
rows as training uses; moments, learning rate, decay, clipping and projection are training's own.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from supple.agents.adam import Adam
from supple.agents.nets import project_
from supple.diagnostics.data import Transitions
from supple.diagnostics.subject import Subject


def next_step(subject: Subject, role: str, data: Transitions) -> nn.Module:
    """The network after one more step of its optimiser.

    Args:
        subject: whose.
        role: a learning network.
        data: its first ``batch_size`` rows in a random order are the batch.
    """
    view, moments = subject.views[role], subject.moments(role)
    random = subject.generator("batch")
    order = torch.randperm(len(data), generator=random, device=random.device)
    objective = subject.objective(role, data.rows(order[: subject.batch_size]))
    parameters = [part for _, part in view.parameters()]
    with torch.enable_grad():
        loss = objective.loss(view.module, *objective.rows)
    # Moments are those of the smaller loss that training steps on.
    gradients = torch.autograd.grad(
        moments.share * loss, parameters, allow_unused=True, materialize_grads=True
    )
    gradients = subject.clipped(gradients)
    after: nn.Module = copy.deepcopy(view.module)
    adam = Adam([part for _, part in after.named_parameters()])
    adam.load_state_dict({"mean": moments.mean, "square": moments.square})
    with torch.no_grad():
        for part, decay in zip(adam.params, moments.decays, strict=False):
            part *= 1 - moments.rate * decay
    adam.begin(moments.rate, moments.steps + 1)
    adam.step(gradients)
    if subject.projected(role):
        project_(after)
    return after
