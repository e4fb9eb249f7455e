"""Euler integration of value flows: the definition, in plain PyTorch and any floating dtype.

A critic member carries noise to a value along dz/dt = v(t, z | c), by K forward steps of 1/K whose
velocities are taken at the left ends t = k/K. The velocity network reads a condition c (state and
action), features of z and features of t; its first layer is linear in the three, so the condition's
share is worked out once per (state, action) and the time's once per step.

Shapes: ``E`` members, ``B`` conditions, ``M`` noise samples, ``K`` steps, ``H`` width, ``L`` hidden
layers, ``Z`` features of z.
Source: floq, arXiv:2509.06863; CMU-AIRe/floq (utils/networks.py, agents/floq.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from supple.errors import InputError, require_values

LAYER_NORM_EPS = RMS_NORM_EPS = 1e-6
LEAST_SIGMA = 0.2
"""Of an encoding that flows read, relative to its bins: with less, and one width outside the
support, both tails of erf would be equal: 0 / 0."""
TIME_ENCODINGS = ("fourier", "cos_rep", "cos")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueEncoding:
    """Features of the flow state z.

    ``hlgauss``: the mass of a Gaussian around z in even bins on [low, high], normalised to sum to
    1; bounded and slowly varying however far z goes. ``scalar``: where z lies in [low, high].
    """

    low: float
    high: float
    kind: Literal["hlgauss", "scalar"] = "hlgauss"
    edges: int = 51
    """One more than bins."""
    sigma_bins: float = 16.0
    """Standard deviation of the Gaussian [bins]."""

    def __post_init__(self) -> None:
        """Refuse encodings that there are not.

        Raises:
            InputError: names the field.
        """
        require_values(self, "ValueEncoding.")
        if not self.low < self.high:
            raise InputError(f"ValueEncoding.low must be below high, got {self.low}, {self.high}")
        if self.kind == "hlgauss" and not (self.edges >= 2 and self.sigma_bins > 0):
            raise InputError(
                "ValueEncoding needs edges >= 2 and sigma_bins > 0,"
                f" got edges={self.edges}, sigma_bins={self.sigma_bins}"
            )

    @property
    def features(self) -> int:
        """Z."""
        return self.edges - 1 if self.kind == "hlgauss" else 1

    @property
    def reach(self) -> tuple[float, float]:
        """Where ``hlgauss`` features end to change: one width outside the support.

        There both tails of erf come close to equal; far outside they would give 0 / 0.
        """
        width = self.high - self.low
        return self.low - width, self.high + width

    def __call__(self, z: Tensor) -> Tensor:
        """(...) -> (..., Z), in float32 or wider: differences of erf mean nothing in less."""
        z = z.to(torch.promote_types(z.dtype, torch.float32)).unsqueeze(-1)
        width = self.high - self.low
        if self.kind == "scalar":
            return (z - self.low) / width
        z = z.clamp(*self.reach)
        edges = torch.linspace(self.low, self.high, self.edges, dtype=z.dtype, device=z.device)
        sigma = self.sigma_bins * width / (self.edges - 1)
        below = torch.erf((edges - z) / (math.sqrt(2) * sigma))
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

    def slope(self, z: Tensor) -> Tensor:
        """Derivative of the features in z, (...) -> (..., Z)."""
        z = z.to(torch.promote_types(z.dtype, torch.float32)).unsqueeze(-1)
        width = self.high - self.low
        if self.kind == "scalar":
            return torch.full_like(z, 1 / width)
        near = z.clamp(*self.reach)
        edges = torch.linspace(self.low, self.high, self.edges, dtype=z.dtype, device=z.device)
        per_unit = (self.edges - 1) / (math.sqrt(2) * self.sigma_bins * width)
        u = (edges - near) * per_unit
        below = torch.erf(u)
        rate = -per_unit * 2 / math.sqrt(math.pi) * torch.exp(-u * u)
        mass, mass_rate = below[..., -1:] - below[..., :1], rate[..., -1:] - rate[..., :1]
        slope = (rate.diff(dim=-1) - below.diff(dim=-1) / mass * mass_rate) / mass
        return slope * (near == z)


def time_features(t: Tensor, kind: str, count: int) -> Tensor:
    """Features of flow time, (...) -> (..., count), or (..., 1) for ``cos``.

    Args:
        t: in [0, 1].
        kind: ``fourier``: cos(pi i t), i = 1 ... count, as the paper describes; ``cos``: cos(t), of
            the released code; ``cos_rep``: the same number ``count`` times, of its first release.
        count: how many, >= 1.

    Raises:
        InputError: another kind or count.
    """
    if kind not in TIME_ENCODINGS or count < 1:
        raise InputError(
            f"time_features needs one of {', '.join(TIME_ENCODINGS)} and a count >= 1,"
            f" got {kind}, {count}"
        )
    t = t.unsqueeze(-1)
    if kind == "fourier":
        return torch.cos(math.pi * t * torch.arange(1, count + 1, dtype=t.dtype, device=t.device))
    return torch.cos(t).expand(*t.shape[:-1], count if kind == "cos_rep" else 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a velocity network is built: the published one, or the norm-bounded one."""

    encoding: ValueEncoding
    activation: Literal["gelu", "relu"] = "gelu"
    """gelu in its tanh approximation."""
    norm: Literal["layer", "rms"] = "layer"
    norm_first: bool = False
    """Norm, then activation, and one more norm before the output; else activation, then norm."""
    endpoint: bool = False
    """The network says where the flow ends instead of its velocity: the control."""

    def __post_init__(self) -> None:
        """Refuse networks that there are not.

        Raises:
            InputError: names the field.
        """
        require_values(self, "Form.")
        least = LEAST_SIGMA * (self.encoding.edges - 1)
        if self.encoding.kind == "hlgauss" and self.encoding.sigma_bins < least:
            raise InputError(
                f"Form.encoding.sigma_bins must be >= {least:g}, a fifth of the bins, for flows may"
                f" leave the support, got {self.encoding.sigma_bins}"
            )


class Field(NamedTuple):
    """Weights of a velocity network, without what its first layer makes of condition and time."""

    value_EHZ: Tensor
    """First layer, the columns that read the features of z."""
    hidden_LEHH: Tensor
    """Layers 2 ... L, (L - 1, E, H, H)."""
    bias_LEH: Tensor
    gain_LEH: Tensor
    """Of the norms, (L, E, H), or (L + 1, E, H) where the norm comes first."""
    shift_LEH: Tensor | None
    """Of the norms; None where they have none."""
    out_EH: Tensor
    out_bias_E: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Field:
        """Every weight changed."""
        parts = {name: None if x is None else change(x) for name, x in self._asdict().items()}
        return self._replace(**parts)  # type: ignore[arg-type]


def velocity(field: Field, form: Form, z_EBM: Tensor, condition: Tensor, time: Tensor) -> Tensor:
    """v(t, z | c), (E, B, M); what ``form.endpoint`` networks say instead.

    Args:
        field: weights.
        form: how they are used.
        z_EBM: flow states, or (1, B, M) where all members share them.
        condition: the first layer's share of the condition, (E, B, 1, H) or (E, B, M, H).
        time: that of the time, with every bias, (E, 1, 1, H) or (E, B, M, H).
    """
    return after_first_layer(field, form, first_layer(field, form, z_EBM, condition, time))


def first_layer(field: Field, form: Form, z_EBM: Tensor, condition: Tensor, time: Tensor) -> Tensor:
    """The first layer's sums, (E, B, M, H); arguments as ``velocity`` takes them."""
    encoded = form.encoding(z_EBM).to(field.value_EHZ.dtype)
    state = _product(encoded.expand(len(field.value_EHZ), -1, -1, -1), field.value_EHZ)
    return state + condition + time


def after_first_layer(field: Field, form: Form, x_EBMH: Tensor) -> Tensor:
    """The rest of the network, from the first layer's sums, (E, B, M, H) -> (E, B, M)."""
    read_EBMH = hidden_layers(field, form, x_EBMH)[1]
    return (read_EBMH * rows_of(field.out_EH)).sum(-1) + field.out_bias_E[:, None, None]


def hidden_layers(field: Field, form: Form, x_EBMH: Tensor) -> tuple[Tensor, Tensor]:
    """From the first layer's sums to what the output reads, before and after its last norm."""
    x = x_EBMH
    depth = len(field.hidden_LEHH) + 1
    for layer in range(depth):
        if form.norm_first:
            x = before = activate(normalise(x, field, form, layer), form)
        else:
            before = activate(x, form)
            x = normalise(before, field, form, layer)
        if layer + 1 < depth:
            x = _product(x, field.hidden_LEHH[layer]) + rows_of(field.bias_LEH[layer])
    if form.norm_first:
        x = normalise(x, field, form, depth)
    return before, x


def euler(
    step_velocity: Callable[[int, Tensor], Tensor], start: Tensor, steps: int
) -> list[Tensor]:
    """Forward-Euler states z_0 ... z_K of dz/dt = v, the velocity of step k taken at t = k/K.

    Args:
        step_velocity: (k, z_k) -> velocity, of z's shape.
        start: z_0.
        steps: K >= 1.
    """
    states = [start]
    for k in range(steps):
        states.append(states[-1] + step_velocity(k, states[-1]) / steps)
    return states


def carry(
    step_velocity: Callable[[int, Tensor], Tensor], form: Form, start: Tensor, steps: int
) -> list[Tensor]:
    """States z_0 ... z_K; of an endpoint network along the line from the noise to what it says."""
    if not form.endpoint:
        return euler(step_velocity, start, steps)
    states = [start]
    for k in range(steps):
        share = (k + 1) / steps
        states.append((1 - share) * start + share * step_velocity(k, states[-1]))
    return states


def on_grid(
    field: Field, form: Form, condition_EBH: Tensor, time_KEH: Tensor
) -> Callable[[int, Tensor], Tensor]:
    """``velocity`` as ``euler`` asks for it; arguments as ``integrate`` takes them."""
    condition = condition_EBH.unsqueeze(2) if condition_EBH.dim() == 3 else condition_EBH

    def at(k: int, z_EBM: Tensor) -> Tensor:
        return velocity(field, form, z_EBM, condition, rows_of(time_KEH[k]))

    return at


def integrate(
    field: Field, form: Form, start_EBM: Tensor, condition_EBH: Tensor, time_KEH: Tensor
) -> Tensor:
    """Where the flow carries its noise, z_K, (E, B, M); arguments as ``path`` takes them."""
    return path(field, form, start_EBM, condition_EBH, time_KEH)[-1]


def path(
    field: Field, form: Form, start_EBM: Tensor, condition_EBH: Tensor, time_KEH: Tensor
) -> list[Tensor]:
    """Where the flow takes its noise, z_0 ... z_K, (E, B, M) each.

    Args:
        field: weights.
        form: how they are used.
        start_EBM: noise z_0, or (1, B, M) where all members share it.
        condition_EBH: the first layer's share of each condition, or (E, B, M, H) where every sample
            has its own.
        time_KEH: that of the times k/K, with every bias; its length is K.
    """
    at = on_grid(field, form, condition_EBH, time_KEH)
    return carry(at, form, start_EBM.expand(len(field.out_EH), -1, -1), len(time_KEH))


def _product(x_EBMI: Tensor, weight_EOI: Tensor) -> Tensor:
    rows = x_EBMI.flatten(1, 2)
    out: Tensor = torch.bmm(rows, weight_EOI.mT).unflatten(1, x_EBMI.shape[1:3])
    return out


def rows_of(each_EH: Tensor) -> Tensor:
    """One per member, for every row: (E, H) -> (E, 1, 1, H)."""
    return each_EH[:, None, None]


def activate(x: Tensor, form: Form) -> Tensor:
    """The form's activation."""
    return F.gelu(x, approximate="tanh") if form.activation == "gelu" else torch.relu(x)


def normalise(x: Tensor, field: Field, form: Form, layer: int) -> Tensor:
    """The form's norm, with the gain and shift of a layer."""
    gain = rows_of(field.gain_LEH[layer])
    if form.norm == "rms":
        normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_NORM_EPS)
    else:
        normal = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
    if field.shift_LEH is None:
        return gain * normal
    return torch.addcmul(rows_of(field.shift_LEH[layer]), gain, normal)
