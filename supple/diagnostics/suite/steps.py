"""Is the step size stable? Weights, gradients, the next update, curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from supple.diagnostics import curvature, gradients, movement
from supple.diagnostics.context import Context, attempt
from supple.diagnostics.linalg import Product, hutchinson, lanczos
from supple.diagnostics.reading import Reading, ensemble, reading, require_rows, undefined
from supple.diagnostics.step import next_step
from supple.diagnostics.views import View

LAYERS = ("weight", "first_EHD", "hidden_LEHH", "out_E1H")
"""What the parameters of linear layers are called."""
OF_PARAMETERS, PER_PARAMETER, PER_SQUARE = (
    "parameter units",
    "loss per parameter",
    "loss per parameter^2",
)
"""Units of weights, of gradients, and of all that is of the Hessian."""
PER_SAMPLE_ROWS = 256
NOISE_CHUNKS = 8
CURVATURE_ROWS = 1024
"""Fewer let one hard sample dominate."""
LANCZOS_STEPS = 30
TRACE_PROBES = 40
RELIABLE = 0.02
"""Residual of an eigenvalue, relative to it, that is accepted without a word."""


def weights(context: Context) -> Iterator[Reading]:
    """Size of weights, gradients and of the next update, per layer."""
    data = context.data.current()
    for view in context.subject.learning_views():
        facts: dict[str, Any] = {"network": view.role, "n": len(data)}
        names = [name for name, _ in view.parameters()]
        own = [view.split(name, part.detach()) for name, part in view.parameters()]
        yield from ensemble(gradients.weight_rms(own), metric="w_rms", unit=OF_PARAMETERS, **facts)
        found = context.run(view.role, data).gradients
        slopes = [view.split(name, part) for name, part in zip(names, found, strict=True)]
        norm_E = torch.stack([part.reshape(view.members, -1).norm(dim=-1) for part in slopes])
        yield from ensemble(norm_E.norm(dim=0), metric="grad_norm", unit=PER_PARAMETER, **facts)
        ratio_E = gradients.norm_ratio(*gradients.matrices(names, slopes, own))
        yield from ensemble(ratio_E, metric="grad_ratio", **facts)
        yield from _layers(view, own, slopes, facts)
        yield from attempt(partial(epsilon, context, view), metric="eps_frac", **facts)


def _layers(
    view: View, own: list[Tensor], slopes: list[Tensor], facts: dict[str, Any]
) -> Iterator[Reading]:
    for (name, _), weight, slope in zip(view.parameters(), own, slopes, strict=True):
        if name.rsplit(".", 1)[-1] not in LAYERS or weight.dim() < 3:
            continue
        layer = name.removesuffix(".weight")
        norms_E = gradients.spectral_norm(weight).reshape(view.members, -1).amax(-1)
        yield from ensemble(norms_E, metric="w_spec", layer=layer, unit=OF_PARAMETERS, **facts)
        rms_E = gradients.weight_rms([weight])
        yield from ensemble(rms_E, metric="w_rms", layer=layer, unit=OF_PARAMETERS, **facts)
        norm_E = slope.reshape(view.members, -1).norm(dim=-1)
        yield from ensemble(norm_E, metric="grad_norm", layer=layer, unit=PER_PARAMETER, **facts)


def epsilon(context: Context, view: View) -> Iterator[Reading]:
    """Share of parameters whose steps Adam's epsilon shrinks."""
    moments = context.subject.moments(view.role)
    share = gradients.epsilon_share(moments.square, moments.steps)
    count = sum(part.numel() for part in moments.square)
    yield reading(share, metric="eps_frac", network=view.role, n=count)


def movement_of_next_step(context: Context) -> Iterator[Reading]:
    """What one more update would change: weights, angles, decisions and values elsewhere."""
    subject, data = context.subject, context.data.current()
    elsewhere = context.data.comparable()
    for view in subject.learning_views():

        def measure(view: View = view) -> Iterator[Reading]:
            require_rows("churn", len(elsewhere), 1024)
            after = next_step(subject, view.role, data)
            rate = subject.moments(view.role).rate
            yield from changed_weights(view, after, subject.projected(view.role), rate)
            x_ND = subject.inputs(view.role, elsewhere)
            with torch.no_grad():
                outputs = [view.outputs(each, x_ND) for each in (view.module, after)]
            yield from churn(context, view, x_ND, *outputs, updates="1")

        yield from attempt(measure, metric="update_ratio", network=view.role)


def changed_weights(
    view: View, after: torch.nn.Module, projected: bool, rate: float
) -> Iterator[Reading]:
    """Relative change of layers, and the angle of rows whose length is kept.

    What it is read against, ``expected``, is the change by Adam where no gradient changes its sign:
    each weight moves by the learning rate.
    """
    later = dict(after.named_parameters())
    own, moved, full, angles, arcs = [], [], [], [], []
    for name, part in view.parameters():
        before, now = (view.split(name, each.detach()) for each in (part, later[name]))
        if not gradients.is_matrix(name, before):
            continue
        own.append(before)
        moved.append(now - before)
        full.append(torch.full_like(before, rate))
        if projected and name.rsplit(".", 1)[-1] == "weight" and before.dim() > 2:
            angles.append(gradients.turned(before, now))
            arcs.append(rate * before.shape[-1] ** 0.5)
    facts: dict[str, Any] = {"network": view.role, "n": sum(part.numel() for part in own)}
    facts["reference"] = {"expected": float(gradients.norm_ratio(full, own).mean())}
    yield from ensemble(gradients.norm_ratio(moved, own), metric="update_ratio", **facts)
    if angles:
        facts["reference"] = {"expected": sum(arcs) / len(arcs)}
        angle_E = torch.stack(angles).mean(0)
        yield from ensemble(angle_E, metric="angle_step", unit="rad", **facts)


@torch.no_grad()
def churn(
    context: Context, view: View, x_ND: Tensor, before_ENW: Tensor, now_ENW: Tensor, *, updates: str
) -> Iterator[Reading]:
    """Change of decisions or values on states that were not trained on.

    Args:
        context: whose.
        view: of the network.
        x_ND: the states, as it reads them.
        before_ENW: its outputs there.
        now_ENW: those after some updates.
        updates: how many.
    """
    facts: dict[str, Any] = {"network": view.role, "n": len(x_ND), "params": {"updates": updates}}
    if view.role != "actor":
        found_E = movement.value_churn(before_ENW[..., 0], now_ENW[..., 0])
        yield from ensemble(found_E, metric="churn_q", unit="std", **facts)
        return
    before, now = before_ENW[0], now_ENW[0]
    if context.subject.discrete:
        found = movement.choice_churn(before, now)
        yield reading(found.flip, metric="churn_act", **facts)
        kl = movement.choice_divergence(before, now).mean()
        yield reading(kl, metric="churn_kl", unit="nats", **facts)
        return
    squash = context.subject.squash
    found = movement.action_churn(squash(before), squash(now))
    yield reading(found.mean, metric="churn_mean", unit="of range", **facts)
    yield reading(found.flip, metric="churn_flip", **facts)
    _, log_std = context.subject.policy_params(x_ND)
    kl = movement.gaussian_divergence(before, log_std, now, log_std).mean()
    # The standard deviation's own change is left out: of the means alone.
    yield reading(kl, metric="churn_kl", unit="nats", **facts)


def per_sample(context: Context) -> Iterator[Reading]:
    """Alignment of single samples' gradients, rank of the tangent kernel, noise of the batch."""
    subject, data = context.subject, context.data.current()
    for view in subject.learning_views():

        def align(view: View = view) -> Iterator[Reading]:
            require_rows("gradient alignment", len(data), PER_SAMPLE_ROWS)
            objective = subject.objective(view.role, data.spread(PER_SAMPLE_ROWS))
            found = gradients.alignment(
                gradients.gradient_gram(view, objective.loss, objective.rows, is_mean=True)
            )
            facts: dict[str, Any] = {"metric": "grad_cos", "network": view.role}
            facts["n"] = PER_SAMPLE_ROWS - found.dropped
            for what in ("mean", "absolute", "negative"):
                value_E = getattr(found, f"{what}_E")
                yield from ensemble(value_E, params={"of": what}, **facts)
            facts["metric"] = "grad_erank"
            yield from ensemble(found.rank_E, worst="low", unit="of n", **facts)
            for member, cosine in enumerate(found.cosine_Enn):
                context.arrays[f"{view.role}/all/{member}/grad_cos"] = cosine.float().cpu()

        yield from attempt(align, metric="grad_cos", network=view.role)
        yield from attempt(partial(_kernel, context, view), metric="ntk_erank", network=view.role)
        yield from attempt(partial(noise, context, view), metric="noise_scale", network=view.role)


def _kernel(context: Context, view: View) -> Iterator[Reading]:
    data = context.data.current()
    require_rows("the tangent kernel", len(data), PER_SAMPLE_ROWS)
    x_ND = context.subject.inputs(view.role, data.spread(PER_SAMPLE_ROWS))
    with torch.no_grad():
        width = view.outputs(view.module, x_ND[:1]).shape[-1]

    def output(number: int) -> Callable[..., Tensor]:
        return lambda module, x: view.outputs(module, x)[..., number].sum()

    grams = [gradients.gradient_gram(view, output(w), (x_ND,)) for w in range(width)]
    found = [gradients.kernel_ranks(gram) for gram in grams]
    facts: dict[str, Any] = {"network": view.role, "n": PER_SAMPLE_ROWS, "unit": "of n"}
    for metric, values in zip(("ntk_erank", "ntk_rank"), zip(*found, strict=True), strict=True):
        yield from ensemble(torch.stack(values).mean(0), worst="low", metric=metric, **facts)


def noise(context: Context, view: View) -> Iterator[Reading]:
    """Gradient noise over signal [rows]: batches far smaller are noisy, far larger wasteful."""
    subject, data = context.subject, context.data.current()
    rows = min(subject.batch_size, len(data)) // NOISE_CHUNKS
    require_rows("the noise of a batch", rows, 1)
    kept = data.spread(NOISE_CHUNKS * rows)
    # In order of time neighbours, which are alike, would go to different chunks, and these agree.
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(subject.seed))
    objective = subject.objective(view.role, kept.rows(order.to(kept.device)))
    parameters = [part for _, part in view.parameters()]
    chunks = []
    for chunk in range(NOISE_CHUNKS):
        part = objective.of(slice(chunk, NOISE_CHUNKS * rows, NOISE_CHUNKS))
        with torch.enable_grad():
            loss = part.loss(view.module, *part.rows)
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        chunks.append(view.flat(found))
    scale = gradients.noise_scale(torch.stack(chunks), rows)
    facts: dict[str, Any] = {"metric": "noise_scale", "network": view.role}
    facts |= {"n": NOISE_CHUNKS * rows, "unit": "rows"}
    context.arrays[f"{view.role}/all/mean/noise_scale"] = torch.stack(scale).cpu()
    if bool((scale.signal_E <= 0).any()):
        yield undefined("the estimated signal is not positive: the batch is mostly noise", **facts)
        return
    yield from ensemble(scale.noise_E / scale.signal_E, **facts)


def bend(context: Context) -> Iterator[Reading]:
    """Extreme eigenvalues and trace of the loss's Hessian, and the limits they set."""
    subject, data = context.subject, context.data.current()
    for view in subject.learning_views():

        def measure(view: View = view) -> Iterator[Reading]:
            require_rows("curvature", len(data), CURVATURE_ROWS)
            kept = data.spread(CURVATURE_ROWS)
            point = curvature.hessian(view, subject.objective(view.role, kept))
            yield from _bend(context, view, point, len(kept))

        yield from attempt(measure, metric="hess_max", network=view.role)
        yield from attempt(partial(_newton, context, view), metric="ggn_max", network=view.role)


def _bend(context: Context, view: View, point: curvature.Curvature, rows: int) -> Iterator[Reading]:
    subject = context.subject
    moments = subject.moments(view.role)
    kinds: dict[str, Product] = {"plain": point.product}
    if subject.projected(view.role):
        kinds["tangent"] = curvature.on_spheres(view, point)
    facts: dict[str, Any] = {"network": view.role, "n": rows}
    largest_E = None
    for kind, product in kinds.items():
        start = _start(context, view, point.gradient_EP)
        found = lanczos(product, start, LANCZOS_STEPS)
        own = {**facts, "params": {"space": kind}, "reason": _doubt(found.residual_E)}
        yield from ensemble(found.high_E, metric="hess_max", unit=PER_SQUARE, **own)
        yield from ensemble(found.low_E, worst="low", metric="hess_min", unit=PER_SQUARE, **own)
        largest_E = found.high_E
    assert largest_E is not None
    random = subject.generator("trace")
    shape = point.gradient_EP.shape
    probes = hutchinson(kinds.popitem()[1], shape, generator=random, most=TRACE_PROBES)
    of_probes = {**facts, "n": probes.probes}
    yield from ensemble(probes.trace_E, metric="hess_trace", unit=PER_SQUARE, **of_probes)
    yield from ensemble(
        curvature.stability_of_descent(moments.step_size, largest_E), metric="stab_gd", **facts
    )
    yield from attempt(
        partial(stability, context, view, point, steps=LANCZOS_STEPS, rows=rows),
        metric="stab_adam",
        network=view.role,
    )
    for metric, size in (("stab_sgd_trace", 1), ("stab_sgd_B", subject.batch_size)):
        value_E = curvature.stability_of_sgd(
            moments.step_size, probes.trace_E, probes.square_E, size
        )
        yield from ensemble(value_E, metric=metric, **facts)


def stability(
    context: Context, view: View, point: curvature.Curvature, *, steps: int, rows: int
) -> Iterator[Reading]:
    """Adam's own limit, with its own second moments."""
    moments = context.subject.moments(view.role)
    require_rows("Adam's limit, in steps of the optimiser,", moments.steps, 1)
    square_EP = view.flat(moments.square)
    product = curvature.preconditioned(point.product, square_EP, moments.steps)
    found = lanczos(product, _start(context, view, point.gradient_EP), steps)
    value_E = curvature.stability_of_adam(moments.step_size, found.high_E)
    facts: dict[str, Any] = {"metric": "stab_adam", "network": view.role, "n": rows}
    yield from ensemble(value_E, reason=_doubt(found.residual_E), **facts)


def _start(context: Context, view: View, like_EP: Tensor) -> Tensor:
    random = context.subject.generator(f"start {view.role}")
    return torch.randn(like_EP.shape, generator=random, device=like_EP.device)


def _doubt(residual_E: Tensor) -> str:
    worst = float(residual_E.max())
    if worst < RELIABLE:
        return ""
    return f"not converged: the eigenvalue may be {100 * worst:.0f} % off"


def _newton(context: Context, view: View) -> Iterator[Reading]:
    data = context.data.current()
    require_rows("curvature", len(data), CURVATURE_ROWS)
    data = data.spread(CURVATURE_ROWS)
    predict, loss, rows = context.subject.regression(view.role, data)
    product = curvature.gauss_newton(view, predict, loss, rows)
    like_EP = view.flat([part.detach() for _, part in view.parameters()])
    found = lanczos(product, _start(context, view, like_EP), LANCZOS_STEPS)
    facts: dict[str, Any] = {"metric": "ggn_max", "network": view.role, "n": len(data)}
    yield from ensemble(found.high_E, reason=_doubt(found.residual_E), unit=PER_SQUARE, **facts)
