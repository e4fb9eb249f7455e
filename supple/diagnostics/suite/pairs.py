"""What changed between two checkpoints, t before t', on the same states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from supple.diagnostics import flows, geometry, trainability
from supple.diagnostics.context import attempt
from supple.diagnostics.data import Transitions
from supple.diagnostics.reading import Reading, ensemble, require_rows, require_rows_of
from supple.diagnostics.subject import Subject
from supple.diagnostics.suite.flow import ROWS, SAMPLES, noise_for
from supple.diagnostics.suite.learning import GEOMETRY_ROWS, LEAST_GEOMETRY_ROWS
from supple.diagnostics.views import FlowView, View


def drift(before: Subject, after: Subject, data: Transitions) -> Iterator[Reading]:
    """How far the geometry of states moved: 0 not at all, 1 unrelated."""
    for now in after.learning_views():
        then = before.views[now.role]

        def measure(then: View = then, now: View = now) -> Iterator[Reading]:
            require_rows("the geometry of states", len(data), LEAST_GEOMETRY_ROWS)
            kept = data.spread(GEOMETRY_ROWS)
            x_ND = after.inputs(now.role, kept)
            pairs = zip(then.representation(x_ND), now.representation(x_ND), strict=True)
            value_E = [1 - geometry.geometry_correlation(a, b) for a, b in pairs]
            yield from ensemble(
                torch.stack(value_E), metric="rdm_drift", network=now.role, n=len(kept)
            )

        yield from attempt(measure, metric="rdm_drift", network=now.role)


def overwriting(before: Subject, after: Subject, data: Transitions) -> Iterator[Reading]:
    """Whether old features serve new targets, and new features still express old targets."""
    role = after.critic_role
    yield from attempt(
        lambda: _overwriting(before, after, data), metric="overwriting", network=role
    )


@torch.no_grad()
def _overwriting(before: Subject, after: Subject, data: Transitions) -> Iterator[Reading]:
    then, now = (each.views[each.critic_role] for each in (before, after))
    old_N, new_N = before.targets(data), after.targets(data)
    x_ND = after.inputs(now.role, data)
    old, new = (_features(view, x_ND) for view in (then, now))
    facts: dict[str, Any] = {"network": now.role, "n": len(data)}
    width = old[0].shape[-1]
    facts["reason"] = require_rows_of(f"a probe of {width} features", len(data), width)
    found = []
    for member in range(now.members):
        own, reuse, kept = (
            sum(trainability.linear_r2(x[member], y, data.episode) for x in features)
            / len(features)
            for features, y in ((old, old_N), (old, new_N), (new, old_N))
        )
        found.append(trainability.overwriting(own, reuse, kept))
    for name in ("reuse", "retention", "overwriting"):
        values = [getattr(each, name) for each in found]
        facts["worst"] = "high" if name == "overwriting" else "low"
        yield from ensemble(values, metric=name, **facts)


def _features(view: View, x_ND: Tensor) -> list[Tensor]:
    """Penultimate features (E, N, H); of a flow at each of four times."""
    found = view.features(x_ND).after_norm
    if not isinstance(view, FlowView):
        return [found]
    rows = len(x_ND)
    # Times lie side by side as rows, each with its noise samples.
    shaped = found.unflatten(1, (len(view.TIMES), rows, -1)).mean(3)
    return list(shaped.unbind(1))


def noise_consistency(before: Subject, after: Subject, data: Transitions) -> Iterator[Reading]:
    """Whether two flow critics respond to the same noise alike; nothing for others."""
    then, now = (each.views[each.critic_role] for each in (before, after))
    if isinstance(then, FlowView) and isinstance(now, FlowView):
        yield from attempt(
            lambda: _consistency(before, then, now, after.inputs(now.role, data.spread(ROWS))),
            metric="flow_noise_cons",
            network="flow",
        )


@torch.no_grad()
def _consistency(
    subject: Subject, then: FlowView, now: FlowView, x_ND: Tensor
) -> Iterator[Reading]:
    shared, own = (noise_for(subject, now, len(x_ND), SAMPLES, name) for name in ("flow", "own"))

    def read(view: FlowView, start_BM: Tensor) -> Tensor:
        prediction = view.module(x_ND, train=False)
        return view.module.integrated(prediction, start_BM, view.module.settings.target_steps)

    read_EBM = (read(then, shared), read(now, shared), read(now, own))
    value_E = flows.noise_consistency(*read_EBM)
    yield from ensemble(value_E, worst="low", metric="flow_noise_cons", network="flow", n=len(x_ND))
