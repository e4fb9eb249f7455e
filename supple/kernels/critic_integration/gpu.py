"""The integration as one Triton kernel, and its gradient as another.

A program carries a tile of R trajectories of one member through all K steps; the gradient, through
one. Activations of a layer go to a scratch row of the program, which stays in cache, so that the
next product can stream both its operands; sums, norms, z and gradients are float32 in registers.
The gradient recomputes each step from its saved state, in a launch of its own: in one launch for
all, addresses and sums that wait for the next step take registers that a step needs. No atomics:
the same bits in every run.

Shapes: as in ``reference.py``; ``N`` = B M trajectories, ``W`` = H padded to a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from supple.kernels.critic_integration.fused import GELU_CUBE, GELU_SLOPE, state_table
from supple.kernels.critic_integration.reference import (
    LAYER_NORM_EPS,
    RMS_NORM_EPS,
    Field,
    Form,
)

TWICE_SLOPE, CUBE = tl.constexpr(2 * GELU_SLOPE), tl.constexpr(GELU_CUBE)
FEATURES_AT_ONCE = tl.constexpr(16)
AT_A_STRETCH = tl.constexpr(128)


@triton.jit
def _inside(cols, H: tl.constexpr, W: tl.constexpr):
    """Which columns exist; said as a constant where all do, or every access would ask."""
    if H == W:
        return tl.full((W,), True, tl.int1)
    return cols < H


@triton.jit
def _at_least(x, low):
    """The larger, or NaN where x is NaN: a GPU's own maximum would hide it."""
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _at_most(x, high):
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _activate(x, GELU: tl.constexpr):
    if GELU:
        return x * tl.sigmoid((x + x * x * x * CUBE) * TWICE_SLOPE)
    return _at_least(x, 0.0)


@triton.jit
def _activation_slope(x, GELU: tl.constexpr):
    if GELU:
        share = tl.sigmoid((x + x * x * x * CUBE) * TWICE_SLOPE)
        return share + x * share * (1 - share) * (1 + x * x * 3 * CUBE) * TWICE_SLOPE
    return tl.where(x > 0, 1.0, 0.0)


@triton.jit
def _standardise(x, mask, H: tl.constexpr, LAYER: tl.constexpr, EPS: tl.constexpr):
    """Rows to zero mean (LAYER) and unit size; and what they were multiplied by, (R,)."""
    if LAYER:
        mean = tl.sum(x, axis=1) / H
        x = tl.where(mask, x - mean[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(x * x, axis=1) / H + EPS)
    return x * scale[:, None], scale


@triton.jit
def _standardise_back(grad, normal, scale, mask, H: tl.constexpr, LAYER: tl.constexpr):
    """Gradient at the input of ``_standardise`` from that at its output."""
    along = tl.sum(grad * normal, axis=1) / H
    grad = grad - normal * along[:, None]
    if LAYER:
        grad = grad - (tl.sum(grad, axis=1) / H)[:, None]
    return tl.where(mask, grad * scale[:, None], 0.0)


@triton.jit
def _affine(normal, gain, shift, cols, cmask, HAS_SHIFT: tl.constexpr):
    y = normal * tl.load(gain + cols, mask=cmask, other=0.0)[None, :]
    if HAS_SHIFT:
        y += tl.load(shift + cols, mask=cmask, other=0.0)[None, :]
    return y


@triton.jit
def _product(
    scratch, weight, row_stride, col_stride, cols, cmask, lanes,
    H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The scratch rows (R, H) times a weight read as (H in, H out), summed in float32.

    float32 factors are split in three for the tensor cores, or multiplied one by one if EXACT, in
    chains short enough that their rounding does not add up.
    """
    CHAIN: tl.constexpr = AT_A_STRETCH if EXACT and H > AT_A_STRETCH else H
    tl.static_assert(CHAIN == H or CHAIN % BK == 0)
    total = tl.zeros((R, W), tl.float32)
    if CHAIN == H:
        return _chain(
            total, 0, H, scratch, weight, row_stride, col_stride, cols, cmask, lanes,
            H, W, BK, EXACT,
        )  # fmt: skip
    for begin in range(0, H, CHAIN):
        total += _chain(
            tl.zeros((R, W), tl.float32), begin, min(begin + CHAIN, H),
            scratch, weight, row_stride, col_stride, cols, cmask, lanes, H, W, BK, EXACT,
        )  # fmt: skip
    return total


@triton.jit
def _chain(
    total, begin, end, scratch, weight, row_stride, col_stride, cols, cmask, lanes,
    H: tl.constexpr, W: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """``total`` (R, W) plus the product over these inner columns."""
    PRECISION: tl.constexpr = "ieee" if EXACT else "tf32x3"
    steps = tl.arange(0, BK)
    for first in range(begin, end, BK):
        inner = first + steps
        x = tl.load(scratch + lanes[:, None] * W + inner[None, :])
        place = weight + inner[:, None] * row_stride + cols[None, :] * col_stride
        if H == W and H % BK == 0:
            w = tl.load(place)
        else:
            w = tl.load(place, mask=(inner < H)[:, None] & cmask[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    return total


@triton.jit
def _state_share(
    z, value, cols, cmask, low, high,
    H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, POINTS: tl.constexpr, EDGES: tl.constexpr,
    SIGMA: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """The first layer's share of z (R, W), or with GRADIENT its slope in z.

    ``value`` is a table (POINTS, H), or without points columns (EDGES - 1, H), or with no edges
    the one column of the scalar encoding.
    """
    width = high - low
    if POINTS > 0:
        per_point = (POINTS - 1) / (3 * width)
        place = (z - (low - width)) * per_point
        inside = (place >= 0) & (place <= POINTS - 1)
        place = _at_most(_at_least(place, 0.0), POINTS - 1.0)
        left = _at_most(tl.floor(place), POINTS - 2.0)
        row = value + left.to(tl.int64)[:, None] * H + cols[None, :]
        mask = (left >= 0)[:, None] & cmask[None, :]
        a = tl.load(row, mask=mask, other=0.0)
        b = tl.load(row + H, mask=mask, other=0.0)
        if GRADIENT:
            return tl.where(inside[:, None], (b - a) * per_point, 0.0)
        return a + (place - left)[:, None] * (b - a)
    if EDGES == 0:
        column = tl.load(value + cols, mask=cmask, other=0.0)[None, :] / width
        if GRADIENT:
            return column + tl.zeros((R, W), tl.float32)
        return column * (z - low)[:, None]
    near = _at_most(_at_least(z, low - width), high + width)
    bin_width = width / (EDGES - 1)
    per_unit = 1 / (1.4142135623730951 * SIGMA * bin_width)
    first, last = (low - near) * per_unit, (high - near) * per_unit
    mass = tl.erf(last) - tl.erf(first)
    total = tl.zeros((R, W), tl.float32)
    # d erf(u) / dz = -per_unit 2 / sqrt(pi) exp(-u^2)
    rate = -per_unit * 1.1283791670955126
    mass_slope = rate * (tl.exp(-last * last) - tl.exp(-first * first))
    for begin in range(0, EDGES - 1, FEATURES_AT_ONCE):
        j = begin + tl.arange(0, FEATURES_AT_ONCE)
        below = (low + j * bin_width)[None, :] - near[:, None]
        u, above = below * per_unit, (below + bin_width) * per_unit
        share = (tl.erf(above) - tl.erf(u)) / mass[:, None]
        if GRADIENT:
            slope = rate * (tl.exp(-above * above) - tl.exp(-u * u))
            share = (slope - share * mass_slope[:, None]) / mass[:, None]
            share = tl.where((near == z)[:, None], share, 0.0)
        kept = j < EDGES - 1
        column = tl.load(
            value + j[:, None] * H + cols[None, :], mask=kept[:, None] & cmask[None, :], other=0.0
        )
        share = tl.where(kept[None, :], share, 0.0)
        total = tl.dot(share, column, total, input_precision="ieee")
    return total


@triton.jit
def _first_layer(
    z, k, condition, time, value, rows, rmask, cols, cmask, low, high, E, M, member,
    H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, POINTS: tl.constexpr, EDGES: tl.constexpr,
    SIGMA: tl.constexpr,
):  # fmt: skip
    """Sums of the first layer, (R, W)."""
    x = _state_share(z, value, cols, cmask, low, high, H, W, R, POINTS, EDGES, SIGMA, False)
    mask = rmask[:, None] & cmask[None, :]
    place = condition + (rows // M).to(tl.int64)[:, None] * H + cols[None, :]
    x += tl.load(place, mask=mask, other=0.0)
    x += tl.load(time + (k * E + member) * H + cols, mask=cmask, other=0.0)[None, :]
    return x


@triton.jit
def _layer(
    x, layer, gain, shift, cols, cmask, stride,
    H: tl.constexpr, GELU: tl.constexpr, LAYER: tl.constexpr, NORM_FIRST: tl.constexpr,
    HAS_SHIFT: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Norm and activation of one layer in the network's order, (R, W)."""
    g, s = gain + layer * stride, shift + layer * stride
    if NORM_FIRST:
        normal, _ = _standardise(x, cmask[None, :], H, LAYER, EPS)
        return _activate(_affine(normal, g, s, cols, cmask, HAS_SHIFT), GELU)
    normal, _ = _standardise(_activate(x, GELU), cmask[None, :], H, LAYER, EPS)
    return _affine(normal, g, s, cols, cmask, HAS_SHIFT)


@triton.jit
def _layer_back(
    grad, sums, layer, gain, shift, cols, cmask, stride,
    H: tl.constexpr, GELU: tl.constexpr, LAYER: tl.constexpr, NORM_FIRST: tl.constexpr,
    HAS_SHIFT: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Gradient at the sums of a layer, which lie at ``sums``, from that behind the layer."""
    g = gain + layer * stride
    x = tl.load(sums)
    if NORM_FIRST:
        normal, scale = _standardise(x, cmask[None, :], H, LAYER, EPS)
        y = _affine(normal, g, shift + layer * stride, cols, cmask, HAS_SHIFT)
        grad = grad * _activation_slope(y, GELU)
        grad = grad * tl.load(g + cols, mask=cmask, other=0.0)[None, :]
        return _standardise_back(grad, normal, scale, cmask[None, :], H, LAYER)
    normal, scale = _standardise(_activate(x, GELU), cmask[None, :], H, LAYER, EPS)
    grad = grad * tl.load(g + cols, mask=cmask, other=0.0)[None, :]
    grad = _standardise_back(grad, normal, scale, cmask[None, :], H, LAYER)
    tl.debug_barrier()  # read the sums again rather than hold them meanwhile
    return grad * _activation_slope(tl.load(sums), GELU)


VARY = ["E", "N", "M", "start_stride", "steps", "k"]
"""Integers for whose values no kernel of its own is compiled."""


@triton.jit(do_not_specialize=[name for name in VARY if name != "k"])
def forward_kernel(
    start, condition, time, value, hidden, bias, gain, shift, out, out_bias, end, states, scratch,
    low, high, E, N, M, start_stride, value_stride, steps,
    H: tl.constexpr, W: tl.constexpr, L: tl.constexpr, R: tl.constexpr, BK: tl.constexpr,
    POINTS: tl.constexpr, EDGES: tl.constexpr, SIGMA: tl.constexpr,
    GELU: tl.constexpr, LAYER: tl.constexpr, NORM_FIRST: tl.constexpr, HAS_SHIFT: tl.constexpr,
    EPS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """z_K of a tile, and with SAVE the states z_0 ... z_{K-1}.

    M is how many trajectories share a row of ``condition``; ``scratch`` holds R x W numbers per
    program in the products' dtype; other arguments as ``forward`` passes them.
    """
    member = tl.program_id(1).to(tl.int64)
    lanes, cols = tl.arange(0, R), tl.arange(0, W)
    rows = tl.program_id(0) * R + lanes
    rmask, cmask = rows < N, _inside(cols, H, W)
    scratch += (member * tl.num_programs(0) + tl.program_id(0)) * R * W
    condition += member * (N // M) * H
    value += member * value_stride
    hidden += member * H * H
    bias += member * H
    gain += member * H
    shift += member * H
    here = scratch + lanes[:, None] * W + cols[None, :]
    weight_out = tl.load(out + member * H + cols, mask=cmask, other=0.0)[None, :]
    bias_out = tl.load(out_bias + member)
    z = tl.load(start + member * start_stride + rows, mask=rmask, other=0.0)
    for k in range(steps):
        if SAVE:
            tl.store(states + (k * E + member) * N + rows, z, mask=rmask)
        x = _first_layer(
            z, k, condition, time, value, rows, rmask, cols, cmask, low, high, E, M, member,
            H, W, R, POINTS, EDGES, SIGMA,
        )  # fmt: skip
        for layer in range(L - 1):
            y = _layer(
                x, layer, gain, shift, cols, cmask, E * H,
                H, GELU, LAYER, NORM_FIRST, HAS_SHIFT, EPS,
            )  # fmt: skip
            # Before and after: nobody may still read the old rows, or read them half written.
            tl.debug_barrier()
            tl.store(here, y.to(scratch.dtype.element_ty))
            tl.debug_barrier()
            weight = hidden + layer * E * H * H
            x = _product(scratch, weight, 1, H, cols, cmask, lanes, H, W, R, BK, POINTS == 0)
            x += tl.load(bias + layer * E * H + cols, mask=cmask, other=0.0)[None, :]
        x = _layer(
            x, L - 1, gain, shift, cols, cmask, E * H, H, GELU, LAYER, NORM_FIRST, HAS_SHIFT, EPS
        )
        if NORM_FIRST:
            normal, _ = _standardise(x, cmask[None, :], H, LAYER, EPS)
            x = _affine(normal, gain + L * E * H, shift + L * E * H, cols, cmask, HAS_SHIFT)
        z += (tl.sum(x * weight_out, axis=1) + bias_out) / steps
    tl.store(end + member * N + rows, z, mask=rmask)


@triton.jit(do_not_specialize=[name for name in VARY if name != "start_stride"])
def backward_kernel(
    states, condition, time, value, hidden, bias, gain, shift, out,
    grad_state, grad_condition, scratch, sums,
    low, high, E, N, M, value_stride, steps, k,
    H: tl.constexpr, W: tl.constexpr, L: tl.constexpr, R: tl.constexpr, BK: tl.constexpr,
    POINTS: tl.constexpr, EDGES: tl.constexpr, SIGMA: tl.constexpr,
    GELU: tl.constexpr, LAYER: tl.constexpr, NORM_FIRST: tl.constexpr, HAS_SHIFT: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """From the gradient at z_{k+1} that at z_k, in place (E, N); adds to the condition's (E, N, H).

    The first launch, k = K - 1, writes the latter. ``sums`` holds L x R x W float32 per program:
    sums of the step, layer by layer.
    """
    SLICE: tl.constexpr = W if W < 128 else 128
    member = tl.program_id(1).to(tl.int64)
    lanes, cols = tl.arange(0, R), tl.arange(0, W)
    rows = tl.program_id(0) * R + lanes
    rmask, cmask = rows < N, _inside(cols, H, W)
    program = member * tl.num_programs(0) + tl.program_id(0)
    scratch += program * R * W
    sums += program * L * R * W
    condition += member * (N // M) * H
    value += member * value_stride
    hidden += member * H * H
    bias += member * H
    gain += member * H
    shift += member * H
    states += (k * E + member) * N
    grad_state += member * N
    grad_condition += (member * N + tl.program_id(0) * R) * H
    tile = lanes[:, None] * W + cols[None, :]
    z = tl.load(states + rows, mask=rmask, other=0.0)
    for begin in range(0, W, SLICE):
        some = begin + tl.arange(0, SLICE)
        part = _first_layer(
            z, k, condition, time, value, rows, rmask, some, some < H, low, high, E, M, member,
            H, SLICE, R, POINTS, EDGES, SIGMA,
        )  # fmt: skip
        tl.store(sums + lanes[:, None] * W + some[None, :], part)
    tl.debug_barrier()
    x = tl.load(sums + tile)
    for layer in range(L - 1):
        y = _layer(
            x, layer, gain, shift, cols, cmask, E * H,
            H, GELU, LAYER, NORM_FIRST, HAS_SHIFT, EPS,
        )  # fmt: skip
        tl.debug_barrier()
        tl.store(scratch + tile, y.to(scratch.dtype.element_ty))
        tl.debug_barrier()
        weight = hidden + layer * E * H * H
        x = _product(scratch, weight, 1, H, cols, cmask, lanes, H, W, R, BK, POINTS == 0)
        x += tl.load(bias + layer * E * H + cols, mask=cmask, other=0.0)[None, :]
        tl.store(sums + (layer + 1) * R * W + tile, x)
    weight_out = tl.load(out + member * H + cols, mask=cmask, other=0.0)[None, :]
    grad_z = tl.load(grad_state + rows, mask=rmask, other=0.0)
    grad = (grad_z / steps)[:, None] * weight_out
    if NORM_FIRST:
        y = _layer(
            x, L - 1, gain, shift, cols, cmask, E * H,
            H, GELU, LAYER, NORM_FIRST, HAS_SHIFT, EPS,
        )  # fmt: skip
        normal, scale = _standardise(y, cmask[None, :], H, LAYER, EPS)
        grad *= tl.load(gain + L * E * H + cols, mask=cmask, other=0.0)[None, :]
        grad = _standardise_back(grad, normal, scale, cmask[None, :], H, LAYER)
    tl.debug_barrier()  # other threads' part of the last layer's sums is read back next
    grad = _layer_back(
        grad, sums + (L - 1) * R * W + tile, L - 1, gain, shift, cols, cmask, E * H,
        H, GELU, LAYER, NORM_FIRST, HAS_SHIFT, EPS,
    )  # fmt: skip
    for below in range(L - 1):
        layer = L - 2 - below
        tl.debug_barrier()
        tl.store(scratch + tile, grad.to(scratch.dtype.element_ty))
        tl.debug_barrier()
        weight = hidden + layer * E * H * H
        grad = _product(scratch, weight, H, 1, cols, cmask, lanes, H, W, R, BK, POINTS == 0)
        grad = _layer_back(
            grad, sums + layer * R * W + tile, layer, gain, shift, cols, cmask, E * H,
            H, GELU, LAYER, NORM_FIRST, HAS_SHIFT, EPS,
        )  # fmt: skip
    # The rest in narrow slices of columns, which take few registers.
    tl.debug_barrier()
    tl.store(sums + tile, grad)
    tl.debug_barrier()
    z = tl.load(states + rows, mask=rmask, other=0.0)  # both again rather than held meanwhile
    grad_z = tl.load(grad_state + rows, mask=rmask, other=0.0)
    for begin in range(0, W, SLICE):
        some = begin + tl.arange(0, SLICE)
        inside = some < H
        part = tl.load(sums + lanes[:, None] * W + some[None, :])
        slope = _state_share(
            z, value, some, inside, low, high, H, SLICE, R, POINTS, EDGES, SIGMA, True
        )
        grad_z += tl.sum(part * slope, axis=1)
        place = grad_condition + lanes[:, None] * H + some[None, :]
        mask = rmask[:, None] & inside[None, :]
        if k < steps - 1:
            part += tl.load(place, mask=mask, other=0.0)
        tl.store(place, part, mask=mask)
    tl.store(grad_state + rows, grad_z, mask=rmask)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """How a program is cut."""

    rows: int
    """R, trajectories."""
    inner: int
    """Columns of a product's operands that are streamed at once."""
    warps: int
    stages: int
    """Slices in flight."""


# Products, forward or backward: rows, inner, warps and stages at widths to 128, to 256, and beyond.
TILES = {
    ("half", False): ((32, 32, 4, 3), (32, 32, 8, 2), (16, 64, 8, 2)),
    ("half", True): ((16, 32, 4, 3), (32, 64, 8, 2), (16, 64, 8, 2)),
    ("single", False): ((16, 32, 4, 3), (32, 16, 8, 3), (16, 16, 8, 3)),
    ("single", True): ((32, 32, 4, 3), (16, 32, 8, 2), (16, 16, 8, 2)),
    ("exact", False): ((32, 32, 4, 3), (32, 32, 8, 2), (16, 32, 8, 2)),
    ("exact", True): ((16, 32, 4, 3), (16, 16, 8, 4), (16, 16, 8, 1)),
}


def tile_for(width: int, products: torch.dtype, *, exact: bool, backward: bool) -> Tile:
    """The shipped tile for a padded width.

    No registers spill on sm_80 to sm_100 at the widths and depths of ``aot.py``.
    ``benchmarks/results/gpu/kernel_tiles.csv`` has times of these and others.

    Args:
        width: padded, W.
        products: of the hidden layers.
        exact: without a table; float32 products one by one.
        backward: the gradient's kernel.
    """
    kind = "exact" if exact else "single" if products == torch.float32 else "half"
    rows, inner, warps, stages = TILES[kind, backward][(width > 128) + (width > 256)]
    return Tile(rows=rows, inner=inner, warps=warps, stages=stages)


@dataclass(frozen=True, slots=True)
class Launch:
    """Weights as the kernels read them, and the constants they are compiled for."""

    members: int
    rows: int
    """N."""
    weights: tuple[Tensor, ...]
    """Value, hidden, bias, gain, shift, out, output's bias."""
    constants: dict[str, Any]

    @staticmethod
    def of(
        field: Field, form: Form, rows: int, *, table_points: int, products: torch.dtype
    ) -> Launch:
        """Pack a field of float32 weights."""
        encoding = form.encoding
        edges = encoding.edges if encoding.kind == "hlgauss" else 0
        points = table_points if edges else 0
        value = state_table(field, form, points) if points else field.value_EHZ.mT
        shift = field.gain_LEH if field.shift_LEH is None else field.shift_LEH
        width = field.out_EH.shape[-1]
        return Launch(
            len(field.out_EH),
            rows,
            tuple(
                part.contiguous()
                for part in (
                    *(value, field.hidden_LEHH.to(products), field.bias_LEH, field.gain_LEH),
                    *(shift, field.out_EH, field.out_bias_E),
                )
            ),
            constants(form, width, depth=len(field.hidden_LEHH) + 1, points=points)
            | {"HAS_SHIFT": field.shift_LEH is not None},
        )

    def tile_of(self, *, backward: bool) -> Tile:
        """That of the width and the products."""
        exact, dtype = self.constants["POINTS"] == 0, self.weights[1].dtype
        return tile_for(self.constants["W"], dtype, exact=exact, backward=backward)

    def scratch(self, tile: Tile) -> tuple[tuple[int, int], Tensor]:
        """Grid of programs, and their scratch rows."""
        grid = (triton.cdiv(self.rows, tile.rows), self.members)
        hidden = self.weights[1]
        return grid, hidden.new_empty(grid[0] * grid[1] * tile.rows * self.constants["W"])


def constants(form: Form, width: int, *, depth: int, points: int) -> dict[str, Any]:
    """What the kernels are compiled for, but for the tile."""
    encoding = form.encoding
    return {
        "H": width,
        # Products read ``Tile.inner`` columns at a time, 32 at narrow widths: no fewer lie there.
        "W": triton.next_power_of_2(max(width, 32)),
        "L": depth,
        "POINTS": points,
        "EDGES": encoding.edges if encoding.kind == "hlgauss" else 0,
        "SIGMA": encoding.sigma_bins,
        "GELU": form.activation == "gelu",
        "LAYER": form.norm == "layer",
        "NORM_FIRST": form.norm_first,
        "EPS": LAYER_NORM_EPS if form.norm == "layer" else RMS_NORM_EPS,
    }


def forward(
    launch: Launch,
    form: Form,
    start_EBM: Tensor,
    condition_EBCH: Tensor,
    time_KEH: Tensor,
    *,
    save: bool,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """z_K (E, B, M), and with ``save`` the states z_0 ... z_{K-1}, (K, E, B, M).

    Args:
        launch: packed weights.
        form: how they are used; not an endpoint network.
        start_EBM: noise, or (1, B, M).
        condition_EBCH: C is 1, or M where every sample has its own.
        time_KEH: the first layer's share of the times.
        save: whether a gradient will be asked for.
        tile: another than the shipped one.
    """
    steps, shape = len(time_KEH), (launch.members, *start_EBM.shape[1:])
    end = start_EBM.new_empty(shape)
    states = start_EBM.new_empty((steps, *shape) if save else (0,))
    tile = tile or launch.tile_of(backward=False)
    grid, scratch = launch.scratch(tile)
    start = start_EBM.contiguous()
    with torch.cuda.device_of(start):
        forward_kernel[grid](
            start,
            condition_EBCH.contiguous(),
            time_KEH.contiguous(),
            *launch.weights,
            end,
            states,
            scratch,
            form.encoding.low,
            form.encoding.high,
            launch.members,
            launch.rows,
            shape[2] // condition_EBCH.shape[2],
            launch.rows if len(start) > 1 else 0,
            launch.weights[0][0].numel(),
            steps,
            R=tile.rows,
            BK=tile.inner,
            SAVE=save,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **launch.constants,
        )
    return end, states


def backward(
    launch: Launch,
    form: Form,
    grad_EBM: Tensor,
    states_KEBM: Tensor,
    condition_EBCH: Tensor,
    time_KEH: Tensor,
    *,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients at the noise (E, B, M) and at every sample's condition (E, B, M, H)."""
    tile = tile or launch.tile_of(backward=True)
    grid, scratch = launch.scratch(tile)
    constants = launch.constants
    grad_state = grad_EBM.clone(memory_format=torch.contiguous_format)
    grad_condition = grad_EBM.new_empty((*grad_EBM.shape, constants["H"]))
    sums = grad_EBM.new_empty(scratch.numel() * constants["L"])
    condition, time = condition_EBCH.contiguous(), time_KEH.contiguous()
    steps = len(states_KEBM)
    with torch.cuda.device_of(grad_state):
        for k in reversed(range(steps)):
            backward_kernel[grid](
                states_KEBM,
                condition,
                time,
                *launch.weights[:-1],
                grad_state,
                grad_condition,
                scratch,
                sums,
                form.encoding.low,
                form.encoding.high,
                launch.members,
                launch.rows,
                grad_EBM.shape[2] // condition_EBCH.shape[2],
                launch.weights[0][0].numel(),
                steps,
                k,
                R=tile.rows,
                BK=tile.inner,
                num_warps=tile.warps,
                num_stages=tile.stages,
                **constants,
            )
    return grad_state, grad_condition
