"""Gradient of one velocity at its state and its first layer's sums, written out.

The same steps as the gradient kernel in ``gpu.py``, in plain PyTorch: an operator's gradient on the
CPU runs below autograd, which cannot be asked there.

Shapes: as in ``reference.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.kernels.critic_integration.fused import GELU_CUBE, GELU_SLOPE
from supple.kernels.critic_integration.reference import (
    LAYER_NORM_EPS,
    RMS_NORM_EPS,
    Field,
    Form,
    activate,
    rows_of,
)


def pull_back(
    field: Field, form: Form, first_EBMH: Tensor, grad_EBM: Tensor, products: torch.dtype
) -> Tensor:
    """Gradient at the first layer's sums, (E, B, M, H), from that at the velocity.

    Args:
        field: weights.
        form: how they are used.
        first_EBMH: the first layer's sums.
        grad_EBM: gradient at the velocity.
        products: dtype of the hidden layers' products.
    """
    depth = len(field.hidden_LEHH) + 1
    weight = field.hidden_LEHH.to(products)
    sums = [first_EBMH]
    for layer in range(depth - 1):
        y = _Layer(field, form, layer, sums[-1]).out
        sums.append(_times(y, weight[layer].mT) + rows_of(field.bias_LEH[layer]))
    grad = grad_EBM.unsqueeze(-1) * rows_of(field.out_EH)
    last = _Layer(field, form, depth - 1, sums[-1])
    if form.norm_first:
        normal, scale = _standardised(last.out, form)
        grad = _back_to_input(grad * rows_of(field.gain_LEH[depth]), normal, scale, form)
    grad = last.back(grad)
    for layer in reversed(range(depth - 1)):
        grad = _Layer(field, form, layer, sums[layer]).back(_times(grad, weight[layer]))
    return grad


class _Layer:
    """Norm and activation of one layer, in the network's order."""

    def __init__(self, field: Field, form: Form, layer: int, x: Tensor) -> None:
        self.form, self.x = form, x
        self.gain = rows_of(field.gain_LEH[layer])
        shift = 0 if field.shift_LEH is None else rows_of(field.shift_LEH[layer])
        self.normal, self.scale = _standardised(x if form.norm_first else activate(x, form), form)
        self.affine = self.gain * self.normal + shift
        self.out = activate(self.affine, form) if form.norm_first else self.affine

    def back(self, grad: Tensor) -> Tensor:
        """Gradient at the layer's sums from that behind it."""
        if self.form.norm_first:
            grad = grad * _slope(self.affine, self.form)
        grad = _back_to_input(grad * self.gain, self.normal, self.scale, self.form)
        return grad if self.form.norm_first else grad * _slope(self.x, self.form)


def _standardised(x: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Rows of unit size, centred by a layer norm, and what they were multiplied by."""
    layer = form.norm == "layer"
    if layer:
        x = x - x.mean(-1, keepdim=True)
    eps = LAYER_NORM_EPS if layer else RMS_NORM_EPS
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * scale, scale


def _back_to_input(grad: Tensor, normal: Tensor, scale: Tensor, form: Form) -> Tensor:
    grad = grad - normal * (grad * normal).mean(-1, keepdim=True)
    if form.norm == "layer":
        grad = grad - grad.mean(-1, keepdim=True)
    return grad * scale


def _slope(x: Tensor, form: Form) -> Tensor:
    if form.activation == "relu":
        return (x > 0).to(x.dtype)
    inner = 2 * GELU_SLOPE * (x + GELU_CUBE * x * x * x)
    share = torch.sigmoid(inner)
    return share + x * share * (1 - share) * 2 * GELU_SLOPE * (1 + 3 * GELU_CUBE * x * x)


def _times(x: Tensor, weight_EIO: Tensor) -> Tensor:
    rows = x.to(weight_EIO.dtype).flatten(1, 2)
    out: Tensor = torch.bmm(rows, weight_EIO).to(x.dtype).unflatten(1, x.shape[1:3])
    return out
