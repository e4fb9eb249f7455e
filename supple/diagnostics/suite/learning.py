"""Can it still learn? The referee, and descriptors of the representation's geometry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from supple.diagnostics import geometry, trainability
from supple.diagnostics.context import Context, attempt
from supple.diagnostics.data import Transitions
from supple.diagnostics.reading import MEAN, WORST, Reading, ensemble, reading, require_rows
from supple.diagnostics.trainability import Probe
from supple.diagnostics.views import View

PROBE_ROWS = 4096
"""Fewer inputs are easier to memorise; the gap is then too small."""
GEOMETRY_ROWS = 1024
LEAST_GEOMETRY_ROWS = 512
"""Also what sensor noise is tried on, five times."""
SENSOR_NOISE = 0.01
"""Of a channel's standard deviation, where no noise is declared."""
NOISE_DRAWS = 5
FUNCTION, HEAD = 100, 200
"""Numbers of the untrained networks that give target functions, and a head."""
OF_RANGE = 0.2
"""Smallest deviation of new targets under a new head, over the end of the value range: labels that
lie closer together teach a sharp distribution long before they teach values."""
COARSE = {"functions": 2, "twins": 2, "steps": 200}
WHOLE = {"functions": 5, "twins": 3, "steps": 500}
_COARSE = "coarse: "
"""How the reason of a reading of the short probe begins."""


def coarsely(found: Reading) -> str:
    """Of a reading of the short probe, what the whole one takes; empty for every other."""
    first = found.reason.partition("; ")[0]
    return first.removeprefix(_COARSE) if first.startswith(_COARSE) else ""


def fit_gap(context: Context) -> Iterator[Reading]:
    """Error on new targets against untrained twins; coarse in the standard suite or on few rows."""
    coarse = context.suite != "full" or len(probe_inputs(context)) < PROBE_ROWS
    families = ("smooth",) if coarse else ("smooth", "hash")
    for view in context.subject.learning_views():
        for family in families:
            yield from attempt(
                partial(gap, context, view, family, coarse=coarse),
                metric="fit_gap",
                network=view.role,
                params={"family": family},
            )


def gap(context: Context, view: View, family: str, *, coarse: bool) -> Iterator[Reading]:
    """Of one network and family of targets: each member against the mean of untrained ones."""
    subject, size = context.subject, COARSE if coarse else WHOLE
    data = probe_inputs(context)
    require_rows("fit_gap", len(data), PROBE_ROWS // 2 if coarse else PROBE_ROWS)
    x_ND = subject.inputs(view.role, data)
    twins = [subject.fresh(number, data).views[view.role] for number in range(size["twins"])]
    learner = view.probed(subject.fresh(HEAD, data).views[view.role])
    probe = Probe(
        steps=size["steps"],
        rate=subject.probe_rate(view.role),
        project=subject.projected(view.role),
        # A head that is new says nothing yet that would have to be unlearned.
        residual=learner is view,
    )
    scale_W = scale_of_targets(context, view, data)
    if not probe.residual and view.value_limit is not None:
        scale_W = scale_W.clamp_min(OF_RANGE * view.value_limit)
    with torch.no_grad():
        base_ENW = probe.residual * view.outputs(view.module, x_ND)
    targets, rooms = [], []
    for j in range(size["functions"]):
        source = subject.fresh(FUNCTION + j, data).views[view.role]
        with torch.no_grad():
            target_NW = trainability.new_targets(source.outputs(source.module, x_ND)[0], family)
        rooms.append(trainability.room_for(base_ENW, target_NW, scale_W, view.value_limit))
        targets.append(target_NW)
    found = trainability.fit(
        (learner, *twins),
        x_ND,
        torch.stack(targets),
        torch.stack([room * scale_W for room in rooms]),
        probe,
        generators=[context.twin_generator(j) for j in range(size["functions"])],
    )
    names = ("trained", *(f"fresh{number}" for number in range(size["twins"])))
    for j, curves in enumerate(found.curve_JCP.tolist()):
        for name, curve in zip(names, curves, strict=True):
            context.arrays[f"{view.role}/all/{name}/fit_curve_{family}_{j}"] = torch.tensor(
                list(zip(found.steps, curve, strict=True))
            )
    error_JCE, shrunk = found.error_JCE.cpu(), min(rooms)
    own_JE, fresh_JT = error_JCE[:, 0], error_JCE[:, 1:].mean(-1)
    random = torch.Generator().manual_seed(subject.seed)
    whole, *members = (
        trainability.fit_gap(error_J, fresh_JT, random)
        for error_J in (own_JE.mean(-1), *own_JE.unbind(-1))
    )
    verdicts = {str(member): verdict for member, verdict in enumerate(members)}
    verdicts |= {MEAN: whole, WORST: max(members, key=lambda verdict: verdict.gap)}
    whole_takes = "--suite full measures it wholly"
    if len(data) < PROBE_ROWS:
        whole_takes = f"the whole probe (--suite full) needs {PROBE_ROWS} rows, got {len(data)}"
    reasons = [_COARSE + whole_takes] if coarse else []
    if shrunk < 1:
        reasons.append(f"targets shrunk to {shrunk:.2f} of their size to fit the value range")
    facts: dict[str, Any] = {"network": view.role, "n": len(data), "reason": "; ".join(reasons)}
    facts["params"] = {"family": family, "steps": str(probe.steps)}
    for each in ensemble([verdict.gap for verdict in members], metric="fit_gap", **facts):
        own = verdicts[each.member]
        reference = {"fresh": 0.0, "error": own.error, "fresh_error": own.fresh_error}
        yield replace(each, ci95=own.ci95, reference=reference)


def probe_inputs(context: Context) -> Transitions:
    """Rows of ``recent`` and ``anchor`` together, at most 4096."""
    parts = [each for _, each in context.sets()]
    return Transitions.join(parts).spread(PROBE_ROWS)


@torch.no_grad()
def scale_of_targets(context: Context, view: View, data: Transitions) -> Tensor:
    """The deviation of the critic's targets, or of each output of the actor, (W,)."""
    subject = context.subject
    if view.role == "actor":
        output_NW = view.outputs(view.module, subject.inputs(view.role, data))[0]
        return output_NW.std(0).clamp_min(0.1)
    return subject.targets(data).std().clamp_min(1e-3).reshape(1)


@torch.no_grad()
def robustness(context: Context) -> Iterator[Reading]:
    """Whether sensor noise rearranges which states are alike."""
    data = context.data.comparable()
    for view in context.subject.learning_views():

        def measure(view: View = view) -> Iterator[Reading]:
            require_rows("the geometry of states", len(data), LEAST_GEOMETRY_ROWS)
            kept = data.spread(LEAST_GEOMETRY_ROWS)
            x_ND = context.subject.inputs(view.role, kept)
            sigma_D = noise_levels(context, view, kept, x_ND)
            still = view.representation(x_ND)
            clean = [geometry.profile(each) for each in still]
            random = context.subject.generator("sensor noise")
            draws = []
            for _ in range(NOISE_DRAWS):
                noise = torch.randn(x_ND.shape, generator=random, device=x_ND.device)
                noisy = view.representation(x_ND + sigma_D * noise)
                pairs = zip(clean, noisy, strict=True)
                draws.append([float(own @ geometry.profile(other)) for own, other in pairs])
            value_E = torch.tensor(draws, dtype=torch.float64).mean(0)
            # Of the last draw alone: draws differ by far less than states do.
            intervals = {
                str(member): geometry.geometry_interval(own, other, random)
                for member, (own, other) in enumerate(zip(still, noisy, strict=True))
            }
            intervals[WORST] = intervals[str(int(value_E.argmin()))]
            if len(value_E) == 1:
                intervals[MEAN] = intervals["0"]
            facts: dict[str, Any] = {"metric": "rdm_noise", "network": view.role, "n": len(kept)}
            for each in ensemble(value_E, worst="low", **facts):
                yield replace(each, ci95=intervals.get(each.member))

        yield from attempt(measure, metric="rdm_noise", network=view.role)


def noise_levels(context: Context, view: View, data: Transitions, x_ND: Tensor) -> Tensor:
    """Standard deviation of the noise of each input, 0 for actions, (D,)."""
    declared = context.subject.channel_noise(view.role)
    widths = sum(data.observation[group].shape[1] for group in context.subject.groups(view.role))
    sigma_D = SENSOR_NOISE * x_ND.std(0)
    for place, noise in declared.items():
        sigma_D[place] = noise
    sigma_D[widths:] = 0
    return sigma_D


@torch.no_grad()
def descriptors(context: Context) -> Iterator[Reading]:
    """Redundancy of axes and collapse of the actor's features; no verdict may use them."""
    data = context.data.comparable()
    for view in context.subject.learning_views():

        def measure(view: View = view) -> Iterator[Reading]:
            require_rows("descriptors", len(data), LEAST_GEOMETRY_ROWS)
            kept = data.spread(GEOMETRY_ROWS)
            features = view.representation(context.subject.inputs(view.role, kept))
            random = context.subject.generator("split")
            value_E = [geometry.split_half(each, random, permutations=10) for each in features]
            facts: dict[str, Any] = {"network": view.role, "n": features.shape[1]}
            yield from ensemble(torch.stack(value_E), metric="feat_split", **facts)
            if view.role == "actor":
                actions = view.outputs(view.module, context.subject.inputs("actor", data)[:1])
                collapse = geometry.regression_collapse(features[0], actions.shape[-1])
                yield reading(collapse, metric="nrc1", **facts)

        yield from attempt(measure, metric="feat_split", network=view.role)
