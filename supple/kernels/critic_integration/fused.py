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
    condition = condition_EBH.unsqueeze(2) if condition_EBH.dim() == 3 else condition_EBH
    steps = Steps(field, form, table_points=table_points, products=products)

    def at(k: int, z_EBM: Tensor) -> Tensor:
        return steps.velocity(k, z_EBM, condition, time_KEH)

    return carry(at, form, start_EBM.expand(len(field.out_EH), -1, -1), len(time_KEH))[-1]


class Steps:
    """Velocities of one field, with all that its steps share worked out once.

    Args: as ``integrate_fused`` takes them.
    """

    def __init__(
        self, field: Field, form: Form, *, table_points: int, products: torch.dtype | None
    ) -> None:
        field = field.map(torch.Tensor.detach)
        self._state = StateShare(field, form, table_points)
        self._rest = _after_first_layer(field, form, products or field.hidden_LEHH.dtype)

    def velocity(self, k: int, z_EBM: Tensor, condition: Tensor, time_KEH: Tensor) -> Tensor:
        """v(k/K, z | c), (E, B, M), for a condition (E, B, 1 or M, H)."""
        return self._rest(condition + rows_of(time_KEH[k]) + self._state(z_EBM))


def state_table(field: Field, form: Form, points: int) -> Tensor:
    """The first layer's share of z on an even grid over ``ValueEncoding.reach``, (E, G, H)."""
    dtype, device = field.value_EHZ.dtype, field.value_EHZ.device
    grid_G = torch.linspace(*form.encoding.reach, points, dtype=dtype, device=device)
    return form.encoding(grid_G).to(dtype) @ field.value_EHZ.mT


class StateShare:
    """The first layer's share of z, (E, B, M) -> (E, B, M, H), exact or from a table.

    Args:
        field: weights.
        form: how they are used.
        table_points: G; 0 encodes every z exactly.
    """

    def __init__(self, field: Field, form: Form, table_points: int) -> None:
        self._encoding, self._value_EHZ = form.encoding, field.value_EHZ
        self._points = table_points if form.encoding.kind == "hlgauss" else 0
        if self._points:
            self._flat = state_table(field, form, table_points).flatten(0, 1)
            members = torch.arange(len(field.value_EHZ), device=self._flat.device)
            self._first_E11 = table_points * members[:, None, None]
            low, high = form.encoding.reach
            self._low, self._per_unit = low, (table_points - 1) / (high - low)

    def __call__(self, z_EBM: Tensor) -> Tensor:
        """The share."""
        if not self._points:
            return self._exact(self._encoding(z_EBM))
        left, right, place = self._ends(z_EBM)
        return torch.lerp(left, right, place.unsqueeze(-1))

    def slope(self, z_EBM: Tensor) -> Tensor:
        """Its derivative in z."""
        if not self._points:
            return self._exact(self._encoding.slope(z_EBM))
        left, right, _ = self._ends(z_EBM)
        low, high = self._encoding.reach
        inside = (z_EBM >= low) & (z_EBM <= high)
        return (right - left) * (self._per_unit * inside).unsqueeze(-1)

    def _ends(self, z_EBM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Table rows left and right of z, and where it lies between them."""
        place = ((z_EBM - self._low) * self._per_unit).clamp(0, self._points - 1)
        left = place.detach().floor().clamp(max=self._points - 2)
        index = left.nan_to_num(0).long() + self._first_E11  # NaN stays NaN by its place
        return self._flat[index], self._flat[index + 1], place - left

    def _exact(self, features_EBMZ: Tensor) -> Tensor:
        rows = features_EBMZ.to(self._value_EHZ.dtype).flatten(1, 2)
        share: Tensor = torch.bmm(rows, self._value_EHZ.mT).unflatten(1, features_EBMZ.shape[1:3])
        return share


def _after_first_layer(
    field: Field, form: Form, products: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """First layer's sums (E, B, M, H) -> velocity (E, B, M)."""
    scale_moves = (form.activation, form.norm) == ("relu", "rms") and field.shift_LEH is None
    if form.norm_first and not scale_moves:
        return _norm_first(field, form, products)
    return _relu_of_rms(field, products) if form.norm_first else _norm_last(field, form, products)


def _norm_last(field: Field, form: Form, products: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Activation, then norm: W (gain (x - mean) scale + shift) = scale (W' x) + offset.

    The rows of W' = W gain are centred for a layer norm, so that x need not be.
    """
    depth, width = field.gain_LEH.shape[0], field.out_EH.shape[-1]
    centred = form.norm == "layer"
    weight = field.hidden_LEHH * field.gain_LEH[:-1].unsqueeze(2)
    out, offset, out_offset = field.out_EH * field.gain_LEH[-1], field.bias_LEH, field.out_bias_E
    if centred:
        weight = weight - weight.mean(-1, keepdim=True)
        out = out - out.mean(-1, keepdim=True)
    if field.shift_LEH is not None:
        offset = offset + (field.hidden_LEHH @ field.shift_LEH[:-1].unsqueeze(-1)).squeeze(-1)
        out_offset = out_offset + (field.out_EH * field.shift_LEH[-1]).sum(-1)
    weight = weight.to(products)

    def velocity(x: Tensor) -> Tensor:
        for layer in range(depth):
            x = _gelu(x) if form.activation == "gelu" else torch.relu(x)
            square = x.square().sum(-1) / width
            if centred:
                mean = x.sum(-1) / width
                scale = torch.rsqrt((square - mean * mean).clamp_min(0) + LAYER_NORM_EPS)
            else:
                scale = torch.rsqrt(square + RMS_NORM_EPS)
            if layer + 1 == depth:
                return scale * (x * rows_of(out)).sum(-1) + out_offset[:, None, None]
            x = scale.unsqueeze(-1) * _product(x, weight[layer]) + rows_of(offset[layer])
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
