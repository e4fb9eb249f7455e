"""``supple::critic_integration``, the integration as an operator of torch, and its public function.

On CUDA the operator runs the Triton kernels; elsewhere the fused form. Its gradient recomputes each
step from the states it saved, K numbers per trajectory, and reaches noise and condition only.

Shapes: as in ``reference.py``; ``C`` is 1, or M where every sample has a condition of its own.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from supple.errors import InputError
from supple.kernels.critic_integration.checks import require_inputs, require_options
from supple.kernels.critic_integration.fused import (
    TABLE_POINTS,
    StateShare,
    Steps,
    integrate_fused,
)
from supple.kernels.critic_integration.pullback import pull_back
from supple.kernels.critic_integration.reference import (
    Field,
    Form,
    ValueEncoding,
    euler,
    rows_of,
)

OPERATOR_DEVICES = ("cuda",)
"""Elsewhere a compiler does better with the fused form."""
WIDEST = 512
"""Hidden units to which the kernels' tiles fit every GPU that they ship for (``aot.py``)."""


def critic_integration(
    field: Field,
    form: Form,
    start_EBM: Tensor,
    condition_EBH: Tensor,
    time_KEH: Tensor,
    *,
    table_points: int = TABLE_POINTS,
    products: torch.dtype | None = None,
) -> Tensor:
    """Values read from flows, (E, B, M); gradients reach noise and condition, never the weights.

    On the CPU this is plain PyTorch, which a surrounding ``torch.compile`` fuses with what is
    around it. On CUDA it is one operator, differentiable once and in reverse mode; endpoint
    networks, ``torch.func`` transforms, forward-mode derivatives and networks wider than ``WIDEST``
    take the plain form there, too.
    An autocast around it changes nothing.

    Args:
        field: weights, taken as constants; on CUDA float32.
        form: how they are used.
        start_EBM: noise z_0, or (1, B, M) where all members share it.
        condition_EBH: the first layer's share of each condition, or (E, B, M, H).
        time_KEH: that of the times k/K, with every bias.
        table_points: grid points of the tabulated features of z; 0 encodes every z exactly.
        products: dtype of the hidden layers' products, for example bfloat16; by default that of the
            weights. Sums, norms, z and what comes out keep the weights' dtype.

    Raises:
        InputError: shapes, dtypes or devices that do not belong together; also, at a double
            backward, that the operator has none.
    """
    require_inputs(field, form, start_EBM, condition_EBH, time_KEH)
    require_options(table_points, products)
    kind = start_EBM.device.type
    fits = field.hidden_LEHH.shape[-1] <= WIDEST
    by_operator = kind in OPERATOR_DEVICES and fits and not _unknown_to_operator(form)
    how = integrate_by_operator if by_operator else integrate_fused
    with torch.autocast(kind, enabled=False):
        return how(
            *(field, form, start_EBM, condition_EBH, time_KEH.detach()),
            table_points=table_points,
            products=products,
        )


def _unknown_to_operator(form: Form) -> str:
    """What is asked for that the operator does not know; empty where it will do.

    Nothing else would say so: forward mode would find a derivative of zero.
    """
    if form.endpoint:
        return "end points"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and no forward-mode derivatives"
    return ""


def integrate_by_operator(
    field: Field,
    form: Form,
    start_EBM: Tensor,
    condition_EBH: Tensor,
    time_KEH: Tensor,
    *,
    table_points: int,
    products: torch.dtype | None,
) -> Tensor:
    """``critic_integration`` through the operator, on any device.

    Raises:
        InputError: an endpoint network, or a derivative that it does not know.
    """
    if missing := _unknown_to_operator(form):
        raise InputError(f"the operator knows no {missing}: integrate_fused does")
    encoding = form.encoding
    condition = condition_EBH.unsqueeze(2) if condition_EBH.dim() == 3 else condition_EBH
    end_EBM: Tensor = _forward(
        start_EBM,
        condition,
        time_KEH,
        *field.map(torch.Tensor.detach),
        encoding.low,
        encoding.high,
        encoding.kind,
        encoding.edges,
        encoding.sigma_bins,
        form.activation,
        form.norm,
        form.norm_first,
        table_points,
        products or field.hidden_LEHH.dtype,
        torch.is_grad_enabled() and (start_EBM.requires_grad or condition.requires_grad),
    )[0]
    return end_EBM


@torch.library.custom_op("supple::critic_integration", mutates_args=())
def _forward(
    start: Tensor,
    condition: Tensor,
    time: Tensor,
    value: Tensor,
    hidden: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor | None,
    out: Tensor,
    out_bias: Tensor,
    low: float,
    high: float,
    kind: str,
    edges: int,
    sigma_bins: float,
    activation: str,
    norm: str,
    norm_first: bool,
    table_points: int,
    products: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """z_K (E, B, M), and with ``save`` z_0 ... z_{K-1}, (K, E, B, M)."""
    field = Field(value, hidden, bias, gain, shift, out, out_bias)
    form = _form(low, high, kind, edges, sigma_bins, activation, norm, norm_first)
    if start.is_cuda:
        from supple.kernels.critic_integration import gpu  # Triton comes with CUDA builds of torch

        launch = gpu.Launch.of(
            field, form, start[0].numel(), table_points=table_points, products=products
        )
        return gpu.forward(launch, form, start, condition, time, save=save)
    at = Steps(field, form, table_points=table_points, products=products)
    states = euler(
        lambda k, z: at.velocity(k, z, condition, time), start.expand(len(out), -1, -1), len(time)
    )
    end = states[-1].clone(memory_format=torch.contiguous_format)
    return end, torch.stack(states[:-1]) if save else start.new_empty(0)


@_forward.register_fake
def _(
    start: Tensor, condition: Tensor, time: Tensor, *weights_and_form: Any
) -> tuple[Tensor, Tensor]:
    shape = (condition.shape[0], *start.shape[1:])
    saved = (time.shape[0], *shape) if weights_and_form[-1] else (0,)
    return start.new_empty(shape), start.new_empty(saved)


@torch.library.custom_op("supple::critic_integration_backward", mutates_args=())
def _backward(
    grad: Tensor,
    states: Tensor,
    condition: Tensor,
    time: Tensor,
    value: Tensor,
    hidden: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor | None,
    out: Tensor,
    out_bias: Tensor,
    low: float,
    high: float,
    kind: str,
    edges: int,
    sigma_bins: float,
    activation: str,
    norm: str,
    norm_first: bool,
    table_points: int,
    products: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Gradients at z_0 (E, B, M) and at the condition of every sample, (E, B, M, H)."""
    field = Field(value, hidden, bias, gain, shift, out, out_bias)
    form = _form(low, high, kind, edges, sigma_bins, activation, norm, norm_first)
    if grad.is_cuda:
        from supple.kernels.critic_integration import gpu

        launch = gpu.Launch.of(
            field, form, grad[0].numel(), table_points=table_points, products=products
        )
        return gpu.backward(launch, form, grad, states, condition, time)
    state = StateShare(field, form, table_points)
    total = grad.new_zeros((*grad.shape, condition.shape[-1]))
    grad = grad.clone()
    for k in reversed(range(len(states))):
        first = condition + rows_of(time[k]) + state(states[k])
        at_first = pull_back(field, form, first, grad / len(states), products)
        grad += (at_first * state.slope(states[k])).sum(-1)
        total += at_first
    return grad, total


@_backward.register_fake
def _(grad: Tensor, states: Tensor, condition: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), grad.new_empty((*grad.shape, condition.shape[-1]))


def _form(
    low: float,
    high: float,
    kind: Any,
    edges: int,
    sigma_bins: float,
    activation: Any,
    norm: Any,
    norm_first: bool,
) -> Form:
    encoding = ValueEncoding(low=low, high=high, kind=kind, edges=edges, sigma_bins=sigma_bins)
    return Form(encoding=encoding, activation=activation, norm=norm, norm_first=norm_first)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    start, condition, time, *rest = inputs
    ctx.shared_noise = start.shape[0] == 1
    ctx.tensors_of_rest = [isinstance(part, Tensor) for part in rest]
    ctx.rest = [None if isinstance(part, Tensor) else part for part in rest]
    weights = [part for part in rest if isinstance(part, Tensor)]
    ctx.save_for_backward(output[1], condition, time, *weights)


def _gradient(ctx: Any, grad: Tensor, _states: Tensor | None) -> tuple[Tensor | None, ...]:
    states, condition, time, *weights = ctx.saved_tensors
    left = iter(weights)
    rest = [
        next(left) if tensor else part
        for tensor, part in zip(ctx.tensors_of_rest, ctx.rest, strict=True)
    ]
    for_start, for_condition = _backward(grad, states, condition, time, *rest[:-1])
    if ctx.shared_noise:
        for_start = for_start.sum(0, keepdim=True)
    if condition.shape[2] == 1:
        for_condition = for_condition.sum(2, keepdim=True)
    return for_start, for_condition, *[None] * (1 + len(rest))


def _second_gradient(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    raise InputError(
        "critic_integration on CUDA is differentiated once: take integrate, the definition, for"
        " second derivatives"
    )


_forward.register_autograd(_gradient, setup_context=_keep)
_backward.register_autograd(_second_gradient)
