"""Is the flow critic a flow? Shape, steps, recovery and left-over noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from supple.diagnostics import flows
from supple.diagnostics.context import Context, attempt
from supple.diagnostics.data import Transitions
from supple.diagnostics.reading import Reading, ensemble, require_rows
from supple.diagnostics.subject import Subject
from supple.diagnostics.views import FlowView

ROWS, SAMPLES = 512, 64
LEAST_ROWS, LEAST_SAMPLES = 256, 16
SHIFT = 0.1
"""Injected error, in standard deviations of values."""
FIT_SAMPLES = 8
"""Noise samples of each row's fit."""
FAN = 6
"""Rows whose paths are kept for a plot."""


def flow(context: Context) -> Iterator[Reading]:
    """Everything of a flow critic; nothing for others."""
    view = context.subject.views[context.subject.critic_role]
    if isinstance(view, FlowView):
        data = context.data.comparable()
        yield from attempt(
            lambda: measured(context, view, data, ROWS, SAMPLES),
            metric="flow_straight",
            network="flow",
        )
        yield from attempt(
            lambda: fitted(context, view, data, ROWS), metric="flow_sigma_res", network="flow"
        )


@torch.no_grad()
def measured(
    context: Context, view: FlowView, data: Transitions, rows: int, samples: int
) -> Iterator[Reading]:
    """On so many rows and noise samples; with few samples only the flow's shape and steps."""
    require_rows("a flow's measurements", len(data), min(rows, LEAST_ROWS))
    critic, settings = view.module, view.module.settings
    x_ND = context.subject.inputs(view.role, data.spread(rows))
    start_BM = noise_for(context.subject, view, len(x_ND), samples, "flow")
    prediction = critic(x_ND, train=False)
    facts: dict[str, Any] = {"network": "flow", "n": len(x_ND)}
    steps = settings.target_steps
    value_EBM = critic.integrated(prediction, start_BM, steps)
    fine_EBM = critic.integrated(prediction, start_BM, 4 * steps)
    found = flows.coarseness(value_EBM, fine_EBM)
    yield from ensemble(found, metric="flow_conv", params={"steps": float(steps)}, **facts)
    velocity = critic.velocity_at(prediction)
    few_1BM = start_BM[None, :, : min(samples, 8)]
    straight_E = flows.straightness(velocity, few_1BM)
    yield from ensemble(straight_E, worst="low", metric="flow_straight", **facts)
    if samples < LEAST_SAMPLES:
        return
    yield from ensemble(flows.noise_share(value_EBM), metric="flow_noise_share", **facts)
    shift = SHIFT * float(value_EBM.mean(-1).std())
    for part in (1, 2, 3):
        done = round(part * steps / 4)
        if 0 < done < steps:
            left_E = flows.recovery(velocity, few_1BM, shift, steps=steps, done=done)
            params = {"tau": done / steps}
            yield from ensemble(left_E, metric="flow_recovery", params=params, **facts)
    context.arrays["flow/all/mean/paths"] = _paths(context, view, x_ND[:FAN], start_BM[:FAN])


@torch.no_grad()
def fitted(context: Context, view: FlowView, data: Transitions, rows: int) -> Iterator[Reading]:
    """How well the field fits its targets, over its noise and flow times, and where it leads."""
    critic = view.module
    data = data.spread(rows)
    target = context.subject.target_distribution(data)
    end_BM = target[:, None] if target.dim() == 1 else target[:, :FIT_SAMPLES]
    samples = FIT_SAMPLES if target.dim() == 1 else end_BM.shape[1]
    start_1BM = noise_for(context.subject, view, len(data), samples, "flow")[None]
    velocity = critic.velocity_at(critic(context.subject.inputs(view.role, data), train=False))
    facts: dict[str, Any] = {"network": "flow", "n": len(data)}

    sigma_E = flows.endpoint_error(velocity, start_1BM, end_BM)
    own = (critic.range.noise_high - critic.range.noise_low) / 12**0.5  # of uniform noise
    yield from ensemble(sigma_E, metric="flow_sigma_res", unit="scaled reward", **facts)
    yield from ensemble(sigma_E / own, metric="flow_sigma_ratio", **facts)
    loss_TE = flows.loss_by_time(velocity, start_1BM, end_BM) / critic.velocity_scale**2
    for place, loss_E in enumerate(loss_TE):
        params = {"from": place / len(loss_TE)}
        yield from ensemble(loss_E, metric="flow_loss", params=params, **facts)
    ends, steps = (critic.range.value_low, critic.range.value_high), critic.settings.target_steps
    outside_E = flows.outside_share(velocity, start_1BM, *ends, steps=steps)
    yield from ensemble(outside_E, metric="flow_outside", **facts)


def noise_for(subject: Subject, view: FlowView, rows: int, samples: int, name: str) -> Tensor:
    """Noise z0 that every checkpoint of a run shares, (B, M)."""
    random = torch.Generator(subject.agent.device).manual_seed(sum(name.encode()))
    uniform = torch.rand((rows, samples), generator=random, device=subject.agent.device)
    return view.module.noise(uniform)


def _paths(context: Context, view: FlowView, x_ND: Tensor, start_BM: Tensor) -> Tensor:
    """States along the flow of member 0, (K + 1, rows, M)."""
    velocity = view.module.velocity_at(view.module(x_ND, train=False))
    state, kept = start_BM[None, :, :8], []
    for k in range(16):
        kept.append(state.expand(view.members, -1, -1)[0])
        state = state + velocity(k / 16, state) / 16
    return torch.stack([*kept, state[0]]).float().cpu()
