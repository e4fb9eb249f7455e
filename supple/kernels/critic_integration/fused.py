"""The integration as a compiler fuses it best: plain PyTorch, one pass over the numbers per layer.

Same result as ``reference.integrate``, with less work. Features of z go through the first layer
once per point of a grid, and each evaluation interpolates there; a norm's scale and mean are
applied behind the next product instead of in front of it, so that statistics and activation come
from one pass; products may run in bfloat16, everything else stays in float32 or wider.

Shapes: as in ``reference.py``; ``G`` grid points, ``N`` = B M rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from supple.kernels.critic_integration.reference import (
    LAYER_NORM_EPS,
    RMS_NORM_EPS,
    Field,
    Form,
    activate,
    carry,
    normalise,
    rows_of,
)

GELU_SLOPE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715
TABLE_POINTS = 257
"""Grid points over three value ranges: pre-activations are wrong by some 1e-5 of their size."""


def integrate_fused(
    field: Field,
    form: Form,
    start_EBM: Tensor,
    condition_EBH: Tensor,
    time_KEH: Tensor,
    *,
    table_points: int = TABLE_POINTS,
    products: torch.dtype | None = None,
) -> Tensor:
    """Where the flow carries its noise, (E, B, M); gradients reach noise and condition only.

    Args:
        field: weights, taken as constants.
        form: how they are used.
        start_EBM: noise z_0, or (1, B, M) where all members share it.
        condition_EBH: the first layer's share of each condition, or (E, B, M, H).
        time_KEH: that of the times k/K, with every bias.
        table_points: G; 0 encodes every z exactly.
        products: dtype of the hidden layers' products; that of the weights by default.
    """
    field = field.map(torch.Tensor.detach)
    condition = condition_EBH.unsqueeze(2) if condition_EBH.dim() == 3 else condition_EBH
    state = state_share(field, form, table_points)
    rest = _after_first_layer(field, form, products or field.hidden_LEHH.dtype)

    def at(k: int, z_EBM: Tensor) -> Tensor:
        return rest(condition + rows_of(time_KEH[k]) + state(z_EBM))

    return carry(at, form, start_EBM.expand(len(field.out_EH), -1, -1), len(time_KEH))[-1]


def state_table(field: Field, form: Form, points: int) -> Tensor:
    """The first layer's share of z on an even grid over ``ValueEncoding.reach``, (E, G, H)."""
    dtype, device = field.value_EHZ.dtype, field.value_EHZ.device
    grid_G = torch.linspace(*form.encoding.reach, points, dtype=dtype, device=device)
    return form.encoding(grid_G).to(dtype) @ field.value_EHZ.mT


def state_share(field: Field, form: Form, table_points: int) -> Callable[[Tensor], Tensor]:
    """The first layer's share of z, as a function (E, B, M) -> (E, B, M, H)."""
    if table_points == 0 or form.encoding.kind == "scalar":

        def exact(z_EBM: Tensor) -> Tensor:
            features = form.encoding(z_EBM).to(field.value_EHZ.dtype).flatten(1, 2)
            share: Tensor = torch.bmm(features, field.value_EHZ.mT).unflatten(1, z_EBM.shape[1:])
            return share

        return exact
    table_EGH = state_table(field, form, table_points)
    members = len(table_EGH)
    flat = table_EGH.flatten(0, 1)
    first = table_points * torch.arange(members, device=flat.device)[:, None, None]
    low, high = form.encoding.reach
    last = table_points - 1

    def interpolated(z_EBM: Tensor) -> Tensor:
        place = ((z_EBM - low) * (last / (high - low))).clamp(0, last)
        left = place.detach().floor().clamp(max=last - 1)
        index = left.long() + first
        return torch.lerp(flat[index], flat[index + 1], (place - left).unsqueeze(-1))

    return interpolated


def _after_first_layer(
    field: Field, form: Form, products: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """First layer's sums (E, B, M, H) -> velocity (E, B, M)."""
    scale_moves = (form.activation, form.norm) == ("relu", "rms") and field.shift_LEH is None
    if form.norm_first and not scale_moves:
        return _norm_first(field, form, products)
    return _relu_of_rms(field, products) if form.norm_first else _norm_last(field, form, products)


def _norm_last(field: Field, form: Form, products: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Activation, then norm: W(gain (x - mean) scale + shift) = scale (W' x - mean W' 1) + c."""
    depth, width = field.gain_LEH.shape[0], field.out_EH.shape[-1]
    inner_gain = field.gain_LEH[:-1].unsqueeze(2)
    weight = (field.hidden_LEHH * inner_gain).to(products)
    row_sum = weight.to(field.out_EH.dtype).sum(-1)
    offset, out = field.bias_LEH, field.out_EH * field.gain_LEH[-1]
    out_offset = field.out_bias_E
    if field.shift_LEH is not None:
        offset = offset + (field.hidden_LEHH @ field.shift_LEH[:-1].unsqueeze(-1)).squeeze(-1)
        out_offset = out_offset + (field.out_EH * field.shift_LEH[-1]).sum(-1)
    out_sum = out.sum(-1)
    centred = form.norm == "layer"

    def velocity(x: Tensor) -> Tensor:
        for layer in range(depth):
            x = _gelu(x) if form.activation == "gelu" else torch.relu(x)
            square = x.square().sum(-1) / width
            if centred:
                mean = x.sum(-1) / width
                scale = torch.rsqrt((square - mean * mean).clamp_min(0) + LAYER_NORM_EPS)
            else:
                mean = torch.zeros_like(square)
                scale = torch.rsqrt(square + RMS_NORM_EPS)
            if layer + 1 == depth:
                dot = (x * rows_of(out)).sum(-1) - mean * out_sum[:, None, None]
                return scale * dot + out_offset[:, None, None]
            y = _product(x, weight[layer])
            shifted = y - mean.unsqueeze(-1) * rows_of(row_sum[layer])
            x = scale.unsqueeze(-1) * shifted + rows_of(offset[layer])
        raise AssertionError("a network has layers")

    return velocity


def _relu_of_rms(field: Field, products: torch.dtype) -> Callable[[Tensor], Tensor]:
    """RMS norm, then ReLU: relu(gain x scale) = scale relu(gain x), for a scale is positive."""
    depth, width = len(field.hidden_LEHH) + 1, field.out_EH.shape[-1]
    weight = field.hidden_LEHH.to(products)
    out = field.out_EH * field.gain_LEH[depth]

    def velocity(x: Tensor) -> Tensor:
        for layer in range(depth):
            square = x.square().sum(-1) / width
            scale = torch.rsqrt(square + RMS_NORM_EPS)
            x = torch.relu(x * rows_of(field.gain_LEH[layer]))
            if layer + 1 == depth:
                after = scale.square() * (x.square().sum(-1) / width)
                dot = (x * rows_of(out)).sum(-1)
                velocity = scale * torch.rsqrt(after + RMS_NORM_EPS) * dot
                return velocity + field.out_bias_E[:, None, None]
            y = _product(x, weight[layer])
            x = scale.unsqueeze(-1) * y + rows_of(field.bias_LEH[layer])
        raise AssertionError("a network has layers")

    return velocity


def _norm_first(field: Field, form: Form, products: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Where no scale can be moved: the layers as they are defined."""
    depth = len(field.hidden_LEHH) + 1
    weight = field.hidden_LEHH.to(products)

    def velocity(x: Tensor) -> Tensor:
        for layer in range(depth):
            x = activate(normalise(x, field, form, layer), form)
            if layer + 1 < depth:
                x = _product(x, weight[layer]) + rows_of(field.bias_LEH[layer])
        x = normalise(x, field, form, depth)
        return (x * rows_of(field.out_EH)).sum(-1) + field.out_bias_E[:, None, None]

    return velocity


def _gelu(x: Tensor) -> Tensor:
    """The tanh form by a sigmoid, the same function: one exponential is cheaper than a tanh."""
    return x * torch.sigmoid(x * (2 * GELU_SLOPE + 2 * GELU_SLOPE * GELU_CUBE * x * x))


def _product(x: Tensor, weight_EHH: Tensor) -> Tensor:
    rows = x.to(weight_EHH.dtype).flatten(1, 2)
    out: Tensor = torch.bmm(rows, weight_EHH.mT).to(x.dtype).unflatten(1, x.shape[1:3])
    return out
