"""Are features healthy? Units, dimensionality, size of each network on each data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from supple.diagnostics import representation, units
from supple.diagnostics.context import Context, Pass, attempt
from supple.diagnostics.data import Transitions
from supple.diagnostics.linalg import singular_values
from supple.diagnostics.reading import Reading, ensemble, require_rows, require_rows_of
from supple.diagnostics.views import View

DORMANT = (0.0, 0.025, 0.1)
GRADIENT_DORMANT = (0.01, 0.1)
UNIT_ROWS = 2048
"""Fewer make rarely firing units look inactive."""
TANH_SPREAD = 1e-3


def unit_health(context: Context) -> Iterator[Reading]:
    """Inactive, constant and gradient-less units of each layer [% of units]."""
    for name, data in context.sets():
        for view in context.subject.learning_views():
            facts: dict[str, Any] = {"network": view.role, "params": {"data": name}}

            def measure(
                view: View = view, name: str = name, data: Transitions = data
            ) -> Iterator[Reading]:
                require_rows("counting inactive units", len(data), UNIT_ROWS)
                yield from _units(context.run(view.role, data), view, name, len(data))

            yield from attempt(measure, metric="dormant", n=len(data), **facts)


def _units(found: Pass, view: View, data: str, rows: int) -> Iterator[Reading]:
    def report(metric: str, shares: dict[str, Tensor], *values: float) -> Iterator[Reading]:
        widths = [found.units[layer].shape[-1] for layer in shares]
        params = {**dict(zip(("threshold",), values, strict=False)), "data": data}
        facts: dict[str, Any] = {
            "metric": metric,
            "network": view.role,
            "params": params,
            "unit": "%",
            "n": rows,
        }
        whole = units.over_layers(list(shares.values()), widths)
        yield from ensemble(100 * whole, **facts)
        if len(shares) > 1:
            for layer, share_E in shares.items():
                yield from ensemble(100 * share_E, layer=layer, **facts)

    for threshold in DORMANT:
        shares = {n: units.dormant_fraction(h, threshold) for n, h in found.units.items()}
        yield from report("dormant", shares, threshold)
    smallest = TANH_SPREAD if view.saturating else 0.0
    shares = {n: units.constant_fraction(h, least=smallest) for n, h in found.units.items()}
    yield from report("dead_var", shares)
    for threshold in GRADIENT_DORMANT:
        facts: dict[str, Any] = {
            "network": view.role,
            "params": {"threshold": threshold, "data": data},
            "n": rows,
        }

        def gradients(threshold: float = threshold) -> Iterator[Reading]:
            shares = {
                n: units.gradient_dormant_fraction(g, threshold, loss=found.loss)
                for n, g in found.unit_gradients.items()
            }
            yield from report("grad_dormant", shares, threshold)

        yield from attempt(gradients, metric="grad_dormant", **facts)


def dimensionality(context: Context) -> Iterator[Reading]:
    """Ranks of the features before (``prenorm``) and behind the last norm, and their length."""
    for name, data in context.sets():
        for view in context.subject.learning_views():
            before, after = context.features(view.role, data)
            places = {"penultimate": after, "prenorm": before}
            if torch.equal(before, after):
                places = {"penultimate": after}
            for layer, features_ENH in places.items():
                yield from _ranks(context, view, name, layer, features_ENH)
            yield from ensemble(
                representation.feature_norm(before),
                metric="feat_norm",
                network=view.role,
                params={"data": name},
                n=before.shape[1],
            )


def _ranks(
    context: Context, view: View, data: str, layer: str, features_ENH: Tensor
) -> Iterator[Reading]:
    rows, width = features_ENH.shape[1:]
    facts: dict[str, Any] = {"network": view.role, "layer": layer, "n": rows, "unit": "directions"}
    facts["reference"] = {"width": float(width)}

    def measure() -> Iterator[Reading]:
        note = require_rows_of(f"the rank of {width} features", rows, width)
        values = singular_values(features_ENH)
        for member, spectrum in enumerate(values):
            context.arrays[f"{view.role}/{layer}/{member}/spectrum_{data}"] = spectrum.cpu()
        found: dict[str, tuple[Tensor, dict[str, float]]] = {
            "srank": (representation.srank(values), {"delta": 0.01}),
            "erank": (representation.effective_rank(values), {}),
            "feature_rank": (representation.feature_rank(values, rows), {"epsilon": 0.01}),
            "feature_rank_rel": (representation.relative_rank(values), {"epsilon": 0.01}),
            "stable_rank": (representation.stable_rank(values), {}),
            "part_ratio": (representation.participation_ratio(values), {}),
        }
        for metric, (value_E, params) in found.items():
            own = {**params, "data": data}
            yield from ensemble(
                value_E, worst="low", metric=metric, params=own, reason=note, **facts
            )

    yield from attempt(measure, metric="srank", params={"data": data}, **facts)

    def centred() -> Iterator[Reading]:
        note = require_rows_of(f"the rank of {width} features", rows, width)
        value_E = representation.pca_rank(features_ENH)
        own = {"share": 0.99, "data": data}
        yield from ensemble(
            value_E, worst="low", metric="pca_rank", params=own, reason=note, **facts
        )

    yield from attempt(centred, metric="pca_rank", params={"data": data}, **facts)


def consecutive(context: Context) -> Iterator[Reading]:
    """Likeness of the critic's features of a state-action and of the one that follows."""
    subject = context.subject
    view = subject.views[subject.critic_role]
    for name, data in context.sets():

        def measure(name: str = name, data: Transitions = data) -> Iterator[Reading]:
            going = ~data.terminated
            require_rows("comparing consecutive features", int(going.sum()), 512)
            goes = data.rows(going)
            now = view.features(subject.inputs(view.role, goes)).before_norm
            after = view.features(subject.next_inputs(view.role, goes)).before_norm
            dot_E, cosine_E = representation.consecutive_likeness(now, after)
            facts: dict[str, Any] = {"network": view.role, "params": {"data": name}, "n": len(goes)}
            yield from ensemble(dot_E, metric="feat_dot", **facts)
            yield from ensemble(cosine_E, metric="feat_cos", **facts)

        yield from attempt(measure, metric="feat_dot", network=view.role, params={"data": name})
