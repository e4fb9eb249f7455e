"""Velocity networks of flow critics: the published one, and one bounded by norms.

Both are an MLP whose first layer reads a condition, features of the flow state and features of
time; what follows is evaluated by ``kernels/critic_integration``. Parameters of equal layers are
stacked, so that it reads them as they lie.

Shapes: ``E`` members, ``B`` rows, ``M`` noise samples, ``K`` steps, ``D`` width of the condition,
``H`` hidden width, ``L`` hidden layers, ``Z`` features of the state, ``T`` features of time.
Source: floq, arXiv:2509.06863; CMU-AIRe/floq (utils/networks.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from supple.agents.nets import UnitLinear, UnitRMSNorm
from supple.kernels.critic_integration import (
    Field,
    Form,
    after_first_layer,
    time_features,
)

TYPICAL_HLGAUSS_NORM = 0.17
"""Of the hlgauss features with 50 bins and sigma 16: 0.15 in the middle, 0.19 at the edges."""


class PublishedMLP(nn.Module):
    """Linear -> GELU (tanh form) -> layer norm, L times, then a linear output; E of them.

    Args:
        inputs: width of the input.
        width: H.
        depth: L.
        members: E.
        form: encoding of the flow state; the layers are as published.
        generator: draws the initial weights, Glorot uniform; biases start at 0.
    """

    def __init__(
        self,
        inputs: int,
        *,
        width: int,
        depth: int,
        members: int,
        form: Form,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.form = form

        def glorot(*shape: int) -> nn.Parameter:
            weight = torch.rand(shape, generator=generator, device=generator.device)
            return nn.Parameter((2 * weight - 1) * math.sqrt(6 / (shape[-1] + shape[-2])))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=generator.device))

        self.first_EHD = glorot(members, width, inputs)
        self.first_bias_EH = zeros(members, width)
        self.hidden_LEHH = glorot(depth - 1, members, width, width)
        self.bias_LEH = zeros(depth - 1, members, width)
        self.gain_LEH = nn.Parameter(zeros(depth, members, width).detach() + 1)
        self.shift_LEH = zeros(depth, members, width)
        self.out_E1H = glorot(members, 1, width)
        self.out_bias_E = zeros(members)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, inputs) -> (E, B)."""
        rows = x_BD.expand(len(self.first_EHD), -1, -1)
        x_EBH = torch.baddbmm(self.first_bias_EH[:, None], rows, self.first_EHD.mT)
        return after_first_layer(self.field(), self.form, x_EBH.unsqueeze(2)).squeeze(2)

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


class VelocityNet(ABC):
    """An ensemble of fields v(t, z | c), taken apart by what each step of a flow needs anew."""

    form: Form
    time_kind: str
    time_count: int

    @abstractmethod
    def first_layer(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Columns that read condition (E, H, D), state and time, and the bias (E, H)."""

    @abstractmethod
    def field(self) -> Field:
        """Every other weight, and the columns that read the state."""

    def condition(self, condition_EBD: Tensor) -> Tensor:
        """The first layer's share of each condition, (E, B, H); (1, B, D) serves all members."""
        columns_EHD, _, _, _ = self.first_layer()
        return torch.bmm(condition_EBD.expand(len(columns_EHD), -1, -1), columns_EHD.mT)

    def time(self, t_BM: Tensor) -> Tensor:
        """The first layer's share of time, with its bias, (E, B, M, H)."""
        _, _, columns_EHT, bias_EH = self.first_layer()
        features = time_features(t_BM, self.time_kind, self.time_count).flatten(0, 1)
        rows = features.expand(len(columns_EHT), -1, -1)
        share = torch.baddbmm(bias_EH[:, None], rows, columns_EHT.mT)
        shaped: Tensor = share.unflatten(1, t_BM.shape)
        return shaped

    def grid(self, steps: int) -> Tensor:
        """``time`` at the left ends k/K of K steps, (K, E, H)."""
        bias_EH = self.first_layer()[-1]
        t = torch.arange(steps, dtype=bias_EH.dtype, device=bias_EH.device) / steps
        return self.time(t[:, None])[:, :, 0].transpose(0, 1)


class PublishedVelocityNet(PublishedMLP, VelocityNet):
    """The network of CMU-AIRe/floq, which reads condition, state and time side by side.

    Args:
        inputs: observation and action width D.
        width: H.
        depth: L.
        members: E.
        form: encoding of the state.
        time_kind: how time is encoded, ``kernels.critic_integration.time_features``.
        time_count: T for the kinds that have a choice.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        *,
        width: int,
        depth: int,
        members: int,
        form: Form,
        time_kind: str,
        time_count: int,
        generator: torch.Generator,
    ) -> None:
        self.time_kind = time_kind
        self.time_count = 1 if time_kind == "cos" else time_count
        self._columns = (inputs, form.encoding.features, self.time_count)
        super().__init__(
            sum(self._columns),
            width=width,
            depth=depth,
            members=members,
            form=form,
            generator=generator,
        )

    def first_layer(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of one weight."""
        condition, state, time = self.first_EHD.split(self._columns, dim=-1)
        return condition, state, time, self.first_bias_EH

    def field(self) -> Field:
        """The stacked layers."""
        return super().field()._replace(value_EHZ=self.first_layer()[1])


class UnitVelocityNet(nn.Module, VelocityNet):
    """A velocity network whose rows and gains have fixed norms, so that |v| is bounded.

    Each layer is RMS norm -> ReLU -> linear, with one more RMS norm before the output; no batch
    norm, whose statistics would couple the trajectories of a batch.

    Args:
        inputs: width of the condition, features of norm sqrt(inputs).
        width: H.
        depth: L.
        members: E.
        form: encoding of the state.
        time_kind: how time is encoded.
        time_count: T for the kinds that have a choice.
        bound: largest |v| but for the output's bias [scaled reward].
        generator: draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        *,
        width: int,
        depth: int,
        members: int,
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
        self._depth, self._members = depth, members
        self._columns = (inputs, form.encoding.features, self.time_count)
        self.first = UnitLinear(sum(self._columns), width, generator, members=members)
        layers = (depth - 1) * members
        self.hidden = UnitLinear(width, width, generator, members=layers)
        self.norm = UnitRMSNorm(width, generator.device, members=(depth + 1) * members)
        self.out = UnitLinear(width, 1, generator, members=members, bias=True)

    def first_layer(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of one unit-row weight; state and time are scaled to the condition's size.

        Without that, features of the state, whose norm is a hundredth of the condition's, would
        be invisible to a row of norm 1.
        """
        condition, state, time = self.first.weight.split(self._columns, dim=-1)
        scale = math.sqrt(self._columns[0])
        if self.form.encoding.kind == "hlgauss":
            state = state * (scale / TYPICAL_HLGAUSS_NORM)
        else:
            state = state * scale
        time = time * (scale / math.sqrt(max(1.0, self.time_count / 2)))
        return condition, state, time, condition.new_zeros(condition.shape[:2])

    def field(self) -> Field:
        """The output scaled so that features of norm sqrt(H) give at most ``bound``."""
        width = self.first.weight.shape[1]
        hidden = self.hidden.weight.view(self._depth - 1, self._members, width, width)
        bias = self.out.bias
        assert bias is not None
        return Field(
            value_EHZ=self.first_layer()[1],
            hidden_LEHH=hidden,
            bias_LEH=hidden.new_zeros(hidden.shape[:3]),
            gain_LEH=self.norm.scale.view(self._depth + 1, self._members, width),
            shift_LEH=None,
            out_EH=self.out.weight[:, 0] * (self.bound / math.sqrt(width)),
            out_bias_E=bias[:, 0],
        )
