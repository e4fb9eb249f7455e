"""Curvature of a network's own loss, and what it says of the step size.

The loss has fixed targets and noise (``views.Objective``) and networks are in evaluation mode:
whether the inner regression is stable. Whether bootstrapping is, ``values.self_excitation`` says.

Members share no parameter, so one product serves all: (E, P) -> (E, P).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jvp

from supple.agents.adam import BETA1, BETA2, EPS
from supple.agents.nets import UnitBatchNorm, UnitLinear, UnitRMSNorm
from supple.diagnostics.gradients import substituted
from supple.diagnostics.linalg import Product
from supple.diagnostics.views import Objective, View


class Curvature(NamedTuple):
    """A loss at one point."""

    product: Product
    """Its Hessian times a vector."""
    gradient_EP: Tensor


def hessian(view: View, objective: Objective) -> Curvature:
    """By double backward; the graph is kept as long as ``product`` is."""
    parameters = [part for _, part in view.parameters()]
    with torch.enable_grad():
        loss = objective.loss(view.module, *objective.rows)
        gradients = torch.autograd.grad(
            loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
    curved = [i for i, part in enumerate(gradients) if part.requires_grad]

    def product(v_EP: Tensor) -> Tensor:
        vectors = view.unflat(v_EP)
        found = torch.autograd.grad(
            [gradients[i] for i in curved],
            parameters,
            [vectors[i] for i in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return view.flat(found)

    return Curvature(product, view.flat([part.detach() for part in gradients]))


def gauss_newton(
    view: View, predict: Callable[..., Tensor], loss: Callable[..., Tensor], rows: Sequence[Tensor]
) -> Product:
    """J^T (second derivative of the loss by the prediction) J; no negative eigenvalue.

    Args:
        view: whose parameters.
        predict: (module, *rows) -> what the loss reads of the network.
        loss: (prediction, *rows) -> 0-d, convex in the prediction.
        rows: of the objective.
    """
    named = {name: part.detach() for name, part in view.parameters()}
    parameters = [part for _, part in view.parameters()]
    with torch.enable_grad():
        graph = predict(view.module, *rows)
        given = graph.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(given, *rows), given, create_graph=True)

    def product(v_EP: Tensor) -> Tensor:
        tangents = dict(zip(named, view.unflat(v_EP), strict=True))

        def of(values: dict[str, Tensor]) -> Tensor:
            found: Tensor = substituted(view.module, values, predict, *rows)
            return found

        moved = jvp(of, (named,), (tangents,))[1]
        (bent,) = torch.autograd.grad(slope, given, moved, retain_graph=True)
        found = torch.autograd.grad(
            graph, parameters, bent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return view.flat(found)

    return product


def spheres(module: nn.Module) -> list[tuple[str, ...]]:
    """Parameters that training keeps at a fixed norm along their last axis, side by side."""
    found: list[tuple[str, ...]] = []
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, UnitLinear):
            found.append((f"{prefix}weight",))
        elif isinstance(part, UnitBatchNorm):
            found.append((f"{prefix}scale", f"{prefix}shift"))
        elif isinstance(part, UnitRMSNorm):
            found.append((f"{prefix}scale",))
    return found


def on_spheres(view: View, curvature: Curvature) -> Product:
    """The Hessian as a projected network feels it: along the spheres, their own bend included."""
    names = [name for name, _ in view.parameters()]
    weights = {name: part.detach() for name, part in view.parameters()}
    gradients = dict(zip(names, view.unflat(curvature.gradient_EP), strict=True))
    groups = spheres(view.module)

    def along(values: dict[str, Tensor], group: tuple[str, ...]) -> Tensor:
        w, v = (torch.cat([each[name] for name in group], dim=-1) for each in (weights, values))
        share: Tensor = (v * w).sum(-1, keepdim=True) / w.square().sum(-1, keepdim=True)
        return share

    def project(v_EP: Tensor) -> Tensor:
        values = dict(zip(names, view.unflat(v_EP), strict=True))
        for group in groups:
            share = along(values, group)
            values |= {name: values[name] - share * weights[name] for name in group}
        return view.flat([values[name] for name in names])

    bend = {group: along(gradients, group) for group in groups}

    def product(v_EP: Tensor) -> Tensor:
        v_EP = project(v_EP)
        values = dict(zip(names, view.unflat(v_EP), strict=True))
        pull = {name: torch.zeros_like(part) for name, part in weights.items()}
        for group in groups:
            pull |= {name: bend[group] * values[name] for name in group}
        return project(curvature.product(v_EP) - view.flat([pull[name] for name in names]))

    return product


def preconditioned(product: Product, square_EP: Tensor, steps: int) -> Product:
    """D^-1/2 H D^-1/2 with Adam's own D = sqrt(second moment) + epsilon."""
    root_EP = ((square_EP / (1 - BETA2 ** max(steps, 1))).sqrt() + EPS).sqrt()
    return lambda v_EP: product(v_EP / root_EP) / root_EP


def stability_of_descent(rate: float, largest: Tensor) -> Tensor:
    """Above 1, full-batch gradient descent overshoots (Cohen et al., 2021)."""
    return rate * largest / 2


def stability_of_adam(rate: float, largest: Tensor, beta1: float = BETA1) -> Tensor:
    """Above 1, Adam overshoots: the limit is 38 / rate at beta1 = 0.9 (Cohen et al., 2022).

    Args:
        rate: the learning rate.
        largest: eigenvalue of the ``preconditioned`` Hessian.
        beta1: of the first moment.
    """
    return rate * largest * (1 - beta1) / (2 + 2 * beta1)


def stability_of_sgd(rate: float, trace: Tensor, square: Tensor, batch_size: int) -> Tensor:
    """Above 1, SGD leaves an interpolating minimum of a squared loss: necessary, not sufficient.

    With batch 1 that is rate * trace / 2 (Wu & Su, 2023); larger batches relax it.

    Args:
        rate: the learning rate.
        trace: of the Hessian.
        square: squared Frobenius norm of it.
        batch_size: rows drawn with replacement.
    """
    return rate / 2 * (trace / batch_size + (1 - 1 / batch_size) * square / trace)
