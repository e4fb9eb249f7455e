"""Velocity networks of flow critics: the published one, and one bounded by norms.

Both are an MLP whose first layer reads a condition, features of the flow state and features of
time; what follows is evaluated by ``kernels/critic_integration``. Parameters of equal layers are
stacked, so that it reads them as they lie.

Shapes: ``E`` members, ``B`` rows, ``M`` noise samples, ``K`` steps, ``D`` width of the condition,
``H`` hidden width, ``L`` hidden layers, ``Z`` features of the state, ``T`` features of time.
Source: floq, arXiv:2509.06863; CMU-AIRe/floq (utils/networks.py).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from supple.agents.nets import UnitLinear, UnitRMSNorm
from supple.kernels.critic_integration import (
    Field,
    Form,
    ValueEncoding,
    after_first_layer,
    hidden_layers,
    time_features,
)

USUAL_ENCODING = ValueEncoding(low=-1.0, high=1.0)
TYPICAL_NORM = 0.17
"""Of the usual encoding's features: 0.15 in the middle, 0.19 at the edges."""


def typical_norm(encoding: ValueEncoding) -> float:
    """Of the features of values on the support: ``TYPICAL_NORM`` where they are the usual ones.

    Mean norms are compared over one support, as what it is has no part in them.
    """
    if encoding.kind == "scalar":
        return 1.0
    z = torch.linspace(-1, 1, 65, dtype=torch.float64)
    on_one_support = dataclasses.replace(encoding, low=-1.0, high=1.0)
    own, usual = (float(each(z).norm(dim=-1).mean()) for each in (on_one_support, USUAL_ENCODING))
    return TYPICAL_NORM * (own / usual)


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPSize:
    """Sizes of E equal MLPs."""

    inputs: int
    """Width of what is read; for a velocity network that of the condition, D."""
    width: int
    """H."""
    depth: int
    """Hidden layers L."""
    members: int
    """E."""


class PublishedMLP(nn.Module):
    """Linear -> activation -> norm, L times, then a linear output; E of them.

    Args:
        size: of the networks.
        form: activation and norm, as published GELU (tanh form) and layer norm.
        generator: draws the initial weights, Glorot uniform; biases start at 0.
    """

    def __init__(self, size: MLPSize, *, form: Form, generator: torch.Generator) -> None:
        super().__init__()
        self.form = form
        members, width, depth = size.members, size.width, size.depth

        def glorot(*shape: int) -> nn.Parameter:
            weight = torch.rand(shape, generator=generator, device=generator.device)
            return nn.Parameter((2 * weight - 1) * math.sqrt(6 / (shape[-1] + shape[-2])))

        def constant(value: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, float(value), device=generator.device))

        self.first_EHD = glorot(members, width, size.inputs)
        self.first_bias_EH = constant(0, members, width)
        self.hidden_LEHH = glorot(depth - 1, members, width, width)
        self.bias_LEH = constant(0, depth - 1, members, width)
        self.gain_LEH = constant(1, depth, members, width)
        self.shift_LEH = constant(0, depth, members, width)
        self.out_E1H = glorot(members, 1, width)
        self.out_bias_E = constant(0, members)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, inputs) -> (E, B); (E, B, inputs) gives every member rows of its own."""
        return after_first_layer(self.field(), self.form, self._first(x_BD)).squeeze(2)

    def features(self, x_BD: Tensor) -> Tensor:
        """What the output reads, (E, B, H)."""
        return hidden_layers(self.field(), self.form, self._first(x_BD))[1].squeeze(2)

    def _first(self, x_BD: Tensor) -> Tensor:
        """The first layer's sums, (E, B, 1, H)."""
        rows = x_BD.expand(len(self.first_EHD), -1, -1)
        return torch.baddbmm(self.first_bias_EH[:, None], rows, self.first_EHD.mT).unsqueeze(2)

    def field(self) -> Field:
        """Every layer but the first."""
        return Field(
            value_EHZ=self.first_EHD,
            hidden_LEHH=self.hidden_LEHH,
            bias_LEH=self.bias_LEH,
            gain_LEH=self.gain_LEH,
            shift_LEH=self.shift_LEH,
            out_EH=self.out_E1H[:, 0],
            out_bias_E=self.out_bias_E,
        )


class FirstLayer(NamedTuple):
    """A velocity network's first layer, by what its columns read."""

    condition_EHD: Tensor
    state_EHZ: Tensor
    time_EHT: Tensor
    bias_EH: Tensor


class VelocityNet(ABC):
    """An ensemble of fields v(t, z | c), taken apart by what each step of a flow needs anew."""

    form: Form
    time_kind: str
    time_count: int

    @abstractmethod
    def first_layer(self) -> FirstLayer:
        """The first layer, taken apart."""

    @abstractmethod
    def field(self) -> Field:
        """Every other weight, and the columns that read the state."""

    def condition(self, condition_EBD: Tensor) -> Tensor:
        """The first layer's share of each condition, (E, B, H); (1, B, D) serves all members."""
        columns_EHD = self.first_layer().condition_EHD
        return torch.bmm(condition_EBD.expand(len(columns_EHD), -1, -1), columns_EHD.mT)

    def time(self, t_BM: Tensor) -> Tensor:
        """The first layer's share of time, with its bias, (E, B, M, H)."""
        layer = self.first_layer()
        features = time_features(t_BM, self.time_kind, self.time_count).flatten(0, 1)
        rows = features.expand(len(layer.time_EHT), -1, -1)
        share = torch.baddbmm(layer.bias_EH[:, None], rows, layer.time_EHT.mT)
        shaped: Tensor = share.unflatten(1, t_BM.shape)
        return shaped

    def grid(self, steps: int) -> Tensor:
        """``time`` at the left ends k/K of K steps, (K, E, H)."""
        bias_EH = self.first_layer().bias_EH
        t = torch.arange(steps, dtype=bias_EH.dtype, device=bias_EH.device) / steps
        return self.time(t[:, None])[:, :, 0].transpose(0, 1)


class PublishedVelocityNet(PublishedMLP, VelocityNet):
    """The network of CMU-AIRe/floq, which reads condition, state and time side by side.

    Args:
        size: of the networks; ``inputs`` is observation and action width.
        form: encoding of the state.
        time_kind: how time is encoded, ``kernels.critic_integration.time_features``.
        time_count: T for the kinds that have a choice.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        size: MLPSize,
        *,
        form: Form,
        time_kind: str,
        time_count: int,
        generator: torch.Generator,
    ) -> None:
        self.time_kind = time_kind
        self.time_count = 1 if time_kind == "cos" else time_count
        self._columns = (size.inputs, form.encoding.features, self.time_count)
        whole = dataclasses.replace(size, inputs=sum(self._columns))
        super().__init__(whole, form=form, generator=generator)

    def first_layer(self) -> FirstLayer:
        """Views of one weight."""
        condition, state, time = self.first_EHD.split(self._columns, dim=-1)
        return FirstLayer(condition, state, time, self.first_bias_EH)

    def field(self) -> Field:
        """The stacked layers."""
        return super().field()._replace(value_EHZ=self.first_layer().state_EHZ)


class UnitVelocityNet(nn.Module, VelocityNet):
    """A velocity network whose rows and gains have fixed norms, so that |v| is bounded.

    Each layer is norm -> activation -> linear, with one more norm before the output; no batch
    norm, whose statistics would couple the trajectories of a batch.

    Args:
        size: of the networks; their condition consists of features of norm sqrt(``inputs``).
        form: encoding of the state.
        time_kind: how time is encoded.
        time_count: T for the kinds that have a choice.
        bound: largest |v| for even gains of the last norm, but for the output's bias [scaled
            reward].
        generator: draws the initial weights.
    """

    def __init__(
        self,
        size: MLPSize,
        *,
        form: Form,
        time_kind: str,
        time_count: int,
        bound: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.form = form
        self.time_kind = time_kind
        self.time_count = 1 if time_kind == "cos" else time_count
        self.bound = bound
        self._size = size
        self._state_norm = typical_norm(form.encoding)
        self._columns = (size.inputs, form.encoding.features, self.time_count)
        width, members = size.width, size.members
        self.first = UnitLinear(sum(self._columns), width, generator, members=members)
        self.hidden = UnitLinear(width, width, generator, members=(size.depth - 1) * members)
        self.norm = UnitRMSNorm(width, generator.device, members=(size.depth + 1) * members)
        self.out = UnitLinear(width, 1, generator, members=members, bias=True)

    def first_layer(self) -> FirstLayer:
        """Views of one unit-row weight; state and time are scaled to the condition's size.

        Without that, features of the state, whose norm is a hundredth of the condition's, would
        be invisible to a row of norm 1.
        """
        condition, state, time = self.first.weight.split(self._columns, dim=-1)
        scale = math.sqrt(self._size.inputs)
        time_norm = math.sqrt(max(1.0, self.time_count / 2))
        return FirstLayer(
            condition,
            state * (scale / self._state_norm),
            time * (scale / time_norm),
            condition.new_zeros(condition.shape[:2]),
        )

    def field(self) -> Field:
        """The output scaled so that features of norm sqrt(H) give at most ``bound``."""
        size = self._size
        layers = (size.members, size.width)
        hidden = self.hidden.weight.view(size.depth - 1, *layers, size.width)
        bias = self.out.bias
        assert bias is not None
        return Field(
            value_EHZ=self.first_layer().state_EHZ,
            hidden_LEHH=hidden,
            bias_LEH=hidden.new_zeros(hidden.shape[:3]),
            gain_LEH=self.norm.scale.view(size.depth + 1, *layers),
            shift_LEH=None,
            out_EH=self.out.weight[:, 0] * (self.bound / math.sqrt(size.width)),
            out_bias_E=bias[:, 0],
        )
