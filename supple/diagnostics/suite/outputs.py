"""Are outputs at their limits? Actions, standard deviations, logits, the value range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from supple.agents.critics import CategoricalCritic
from supple.diagnostics import movement
from supple.diagnostics.context import Context, attempt
from supple.diagnostics.reading import Reading, ensemble, reading
from supple.diagnostics.values import support_use

EDGE = 0.01
"""Share of the value range at either end that counts as its edge, as one atom of 101 does."""


@torch.no_grad()
def saturation(context: Context) -> Iterator[Reading]:
    """Shares of saturated actions and standard deviations, size of means and logits."""
    subject, data = context.subject, context.data.current()
    mean_NA, log_std_NA = subject.policy_params(subject.inputs("actor", data))
    facts: dict[str, Any] = {"network": "actor", "n": len(data)}
    if subject.discrete:
        yield reading(movement.logit_range(mean_NA), metric="logit_range", **facts)
        # The distribution keeps normalised logits; what the network says is not.
        view = subject.views["actor"]
        logits = view.outputs(view.module, subject.inputs("actor", data))[0]
        yield reading(movement.logit_offset(logits), metric="logit_z", **facts)
        return
    if subject.bounded:
        action_NA = subject.squash(mean_NA.double())
        share_A, pinned_A = (
            count(action_NA) for count in (movement.saturated_share, movement.pinned_share)
        )
        yield reading(share_A.mean(), metric="act_sat", **facts)
        for joint, share, pinned in zip(subject.joints, share_A, pinned_A, strict=True):
            yield reading(share, metric="act_sat", params={"joint": joint}, **facts)
            yield reading(pinned, metric="act_pinned", params={"joint": joint}, **facts)
    edge = movement.edge_share(log_std_NA, *subject.log_std_range)
    yield reading(edge, metric="std_edge", **facts)
    yield from attempt(
        lambda: [reading(movement.largest_mean(mean_NA), metric="logit_pre", **facts)],
        metric="logit_pre",
        **facts,
    )
    for joint, entropy in zip(subject.joints, movement.joint_entropy(log_std_NA), strict=True):
        params = {"joint": joint}
        yield reading(entropy, metric="entropy", params=params, unit="nats", **facts)
    lowest = movement.joint_entropy(log_std_NA).min()
    yield reading(lowest, metric="entropy_min_joint", unit="nats", **facts)


@torch.no_grad()
def support(context: Context) -> Iterator[Reading]:
    """How a critic uses its value range; of a flow, what share of values lies at an end."""
    subject, data = context.subject, context.data.current()
    view = subject.views[subject.critic_role]
    facts: dict[str, Any] = {"network": view.role, "n": len(data)}
    x_ND = subject.inputs(view.role, data)
    value_EN = view.outputs(view.module, x_ND)[..., 0]
    yield from ensemble(value_EN.abs().mean(-1), metric="q_abs", unit="scaled reward", **facts)
    if view.target_range is None:
        return
    low, high = view.target_range
    reference = {"value_min": low, "value_max": high}
    clipped = subject.clipped_mass(data)
    yield reading(clipped, metric="support_clip", reference=reference, **facts)
    if not isinstance(view.module, CategoricalCritic):
        end = EDGE * (high - low)
        edge_EN = (value_EN < low + end) | (value_EN > high - end)
        yield from ensemble(edge_EN.double().mean(-1), metric="support_edge", **facts)
        return
    logits = view.module.heads(x_ND, train=False, rows=slice(None))
    yield from ensemble(movement.logit_range(logits), metric="logit_range", **facts)
    yield from ensemble(movement.logit_offset(logits), metric="logit_z", **facts)
    target = subject.target_distribution(data)
    found = [support_use(each, target, view.module.atoms) for each in logits.softmax(-1)]
    for name in ("edge", "use", "resolution"):
        metric = "support_res" if name == "resolution" else f"support_{name}"
        values = [float(getattr(each, name)) for each in found]
        facts["worst"] = "high" if name == "edge" else "low"
        yield from ensemble(values, metric=metric, **facts)
    for member, each in enumerate(logits.softmax(-1)):
        context.arrays[f"{view.role}/all/{member}/support_prediction"] = each.mean(0).cpu()
    context.arrays[f"{view.role}/all/mean/support_target"] = target.mean(0).cpu()
    context.arrays[f"{view.role}/all/mean/support_atoms"] = view.module.atoms.cpu()
