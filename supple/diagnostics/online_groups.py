"""What is measured while training, smaller than the suites' groups and with a memory.

Members other than the mean and the worst, single layers, and untrained twins are left to
``supple diagnose``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any, NamedTuple

import torch

from supple.diagnostics import curvature, geometry, gradients, representation, units
from supple.diagnostics.context import Context, Pass, attempt
from supple.diagnostics.linalg import lanczos, singular_values
from supple.diagnostics.reading import Reading, ensemble, require_rows
from supple.diagnostics.step import next_step
from supple.diagnostics.suite import features, flow, outputs, steps, values
from supple.diagnostics.views import FlowView, View

Memory = MutableMapping[str, Any]
DRIFT_ROWS = 512
UNIT_ROWS = 512
"""A quarter of what ``supple diagnose`` wants, since rollouts may be short: units that fire in one
row of a hundred are told apart, and lines at 30 and 50 % of units do not wait for rarer ones."""
CURVATURE_ROWS = 1024
LANCZOS_STEPS = 8
"""From where the last call ended."""
FLOW_ROWS, FLOW_SAMPLES = 128, 8
SMOOTHING = 0.95
"""Of the noise scale's numerator and denominator over calls."""


class Group(NamedTuple):
    """One of a tier's measurements."""

    name: str
    measure: Callable[[Context, Memory], Iterator[Reading]]


def unit_health(context: Context, memory: Memory) -> Iterator[Reading]:
    """Inactive units and gradients of each network, from one pass on ``recent``."""
    data = context.data.current()
    for view in context.subject.learning_views():
        found = context.run(view.role, data)
        for metric, count in (("dormant", _units), ("grad_dormant", _deaf_units)):
            yield from attempt(
                partial(count, found, view, len(data)), metric=metric, network=view.role
            )
        names = [name for name, _ in view.parameters()]
        own = [view.split(name, part.detach()) for name, part in view.parameters()]
        slopes = [view.split(name, part) for name, part in zip(names, found.gradients, strict=True)]
        facts: dict[str, Any] = {"network": view.role, "n": len(data)}
        norm_E = gradients.weight_rms(slopes) * (view.flat(found.gradients).shape[1] ** 0.5)
        yield from ensemble(norm_E, metric="grad_norm", **facts)
        ratio_E = gradients.norm_ratio(*gradients.matrices(names, slopes, own))
        yield from ensemble(ratio_E, metric="grad_ratio", **facts)
        yield from ensemble(gradients.weight_rms(own), metric="w_rms", **facts)


def _units(found: Pass, view: View, rows: int) -> Iterator[Reading]:
    require_rows("counting inactive units", rows, UNIT_ROWS)
    widths = [part.shape[-1] for part in found.units.values()]
    facts: dict[str, Any] = {"network": view.role, "unit": "%", "n": rows}
    dormant = [units.dormant_fraction(each, 0.1) for each in found.units.values()]
    share_E = 100 * units.over_layers(dormant, widths)
    yield from ensemble(share_E, metric="dormant", params={"threshold": 0.1}, **facts)
    least = features.TANH_SPREAD if view.saturating else 0.0
    dead = [units.constant_fraction(each, least=least) for each in found.units.values()]
    yield from ensemble(100 * units.over_layers(dead, widths), metric="dead_var", **facts)


def _deaf_units(found: Pass, view: View, rows: int) -> Iterator[Reading]:
    require_rows("counting units without gradient", rows, UNIT_ROWS)
    widths = [part.shape[-1] for part in found.unit_gradients.values()]
    deaf = [
        units.gradient_dormant_fraction(each, 0.01, loss=found.loss)
        for each in found.unit_gradients.values()
    ]
    share_E = 100 * units.over_layers(deaf, widths)
    facts: dict[str, Any] = {"network": view.role, "unit": "%", "n": rows}
    yield from ensemble(share_E, metric="grad_dormant", params={"threshold": 0.01}, **facts)


def dimensionality(context: Context, memory: Memory) -> Iterator[Reading]:
    """Ranks and length of the features before the last norm."""
    data = context.data.current()
    for view in context.subject.learning_views():
        before = context.features(view.role, data).before_norm
        facts: dict[str, Any] = {"network": view.role, "n": before.shape[1]}
        yield from ensemble(representation.feature_norm(before), metric="feat_norm", **facts)

        def ranks(
            before: torch.Tensor = before, facts: dict[str, Any] = facts
        ) -> Iterator[Reading]:
            found = singular_values(before)
            rows = before.shape[1]
            for metric, value_E in (
                ("srank", representation.srank(found)),
                ("erank", representation.effective_rank(found)),
                ("feature_rank", representation.feature_rank(found, rows)),
            ):
                yield from ensemble(value_E, worst="low", metric=metric, **facts)

        yield from attempt(ranks, metric="srank", network=view.role)


def drift(context: Context, memory: Memory) -> Iterator[Reading]:
    """How far the geometry of the anchor states moved since the last call."""
    if context.data.anchor is None:
        return
    kept = context.data.anchor.spread(DRIFT_ROWS)
    for view in context.subject.learning_views():

        def measure(view: View = view) -> Iterator[Reading]:
            x_ND = context.subject.inputs(view.role, kept)
            now = [geometry.profile(each) for each in view.representation(x_ND)]
            before = memory.get(f"profile {view.role}")
            memory[f"profile {view.role}"] = now
            if before is not None:
                value_E = [1 - float(a @ b) for a, b in zip(before, now, strict=True)]
                facts: dict[str, Any] = {"network": view.role, "n": len(kept)}
                yield from ensemble(value_E, metric="rdm_drift", **facts)

        yield from attempt(measure, metric="rdm_drift", network=view.role)


def movement_of_next_step(context: Context, memory: Memory) -> Iterator[Reading]:
    """What one more update would change, and what all since the last call did."""
    data, elsewhere = context.data.current(), context.data.comparable()
    subject = context.subject
    frozen = context.data.anchor is not None  # only the same states can be compared later
    for view in subject.learning_views():
        after = next_step(subject, view.role, data)
        rate = subject.moments(view.role).rate
        yield from steps.changed_weights(view, after, subject.projected(view.role), rate)
        x_ND = subject.inputs(view.role, elsewhere)
        with torch.no_grad():
            now, later = (view.outputs(each, x_ND) for each in (view.module, after))
        changes = {"1": (now, later)}
        if frozen:
            key = f"outputs {view.role}"
            if (before := memory.get(key)) is not None:
                changes["period"] = (before, now)
            memory[key] = now
        for updates, pair in changes.items():
            churn = partial(steps.churn, context, view, x_ND, *pair, updates=updates)
            yield from attempt(churn, metric="churn", network=view.role)
        yield from attempt(
            partial(steps.epsilon, context, view), metric="eps_frac", network=view.role
        )


def limits(context: Context, memory: Memory) -> Iterator[Reading]:
    """Saturation, logits, value range."""
    for each in (*outputs.saturation(context), *outputs.support(context)):
        few_joints = each.metric == "logit_pre" and each.status != "ok"  # nothing to be done about
        if "joint" not in each.params and not few_joints:
            yield each


def flow_shape(context: Context, memory: Memory) -> Iterator[Reading]:
    """Straightness, fineness and fit of a flow critic."""
    view = context.subject.views[context.subject.critic_role]
    if isinstance(view, FlowView):
        data = context.data.comparable()
        for metric, measure in (
            ("flow_straight", partial(flow.measured, samples=FLOW_SAMPLES)),
            ("flow_sigma_res", flow.fitted),
        ):
            own = partial(measure, context, view, data, FLOW_ROWS)
            yield from attempt(own, metric=metric, network="flow")


def curvature_of_critic(context: Context, memory: Memory) -> Iterator[Reading]:
    """Largest eigenvalue of each network's loss, and Adam's limit, warm-started."""
    data = context.data.current().spread(CURVATURE_ROWS)
    subject = context.subject
    for view in subject.learning_views():
        point = curvature.hessian(view, subject.objective(view.role, data))
        projected = subject.projected(view.role)
        product = curvature.on_spheres(view, point) if projected else point.product
        key = f"top {view.role}"
        start = memory.get(key)
        found = lanczos(product, point.gradient_EP if start is None else start, LANCZOS_STEPS)
        memory[key] = found.vector_EP
        facts: dict[str, Any] = {"network": view.role, "n": len(data)}
        yield from ensemble(found.high_E, metric="hess_max", **facts)
        yield from ensemble(found.residual_E, metric="hess_residual", **facts)
        moments = subject.moments(view.role)
        square_EP = view.flat(moments.square)
        own = curvature.preconditioned(point.product, square_EP, moments.steps)
        key = f"adam top {view.role}"
        start = memory.get(key)
        found = lanczos(own, point.gradient_EP if start is None else start, LANCZOS_STEPS)
        memory[key] = found.vector_EP
        stab_E = curvature.stability_of_adam(moments.step_size, found.high_E)
        yield from ensemble(stab_E, metric="stab_adam", **facts)


def noise(context: Context, memory: Memory) -> Iterator[Reading]:
    """Gradient noise over signal, numerator and denominator smoothed over calls."""
    for view in context.subject.learning_views():
        list(attempt(partial(steps.noise, context, view), metric="x", network=view.role))
        found = context.arrays.get(f"{view.role}/all/mean/noise_scale")
        if found is None:
            continue
        key = f"noise {view.role}"
        before = memory.get(key)
        memory[key] = found if before is None else torch.lerp(found, before, SMOOTHING)
        scale_E, signal_E = memory[key]
        if bool((signal_E > 0).all()):
            facts: dict[str, Any] = {"network": view.role, "unit": "rows"}
            yield from ensemble(scale_E / signal_E, metric="noise_scale", **facts)


def excitation(context: Context, memory: Memory) -> Iterator[Reading]:
    """Self-excitation of bootstrapping."""
    yield from values.excitation(context)


TIER1 = (
    Group("unit_health", unit_health),
    Group("dimensionality", dimensionality),
    Group("drift", drift),
    Group("next_step", movement_of_next_step),
    Group("limits", limits),
    Group("flow", flow_shape),
)
TIER2 = (
    Group("curvature", curvature_of_critic),
    Group("noise_scale", noise),
    Group("excitation", excitation),
)
