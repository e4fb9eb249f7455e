"""The tanh-Gaussian actor and the deterministic policy taken from it.

Shapes: ``M`` rows, ``D`` observation width, ``A`` actions.
Source: FlashSAC, arXiv:2604.04539; Holiday-Robot/FlashSAC@87edc90 (network.py).
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.agents.nets import (
    BATCH_NORM_EPS,
    RMS_NORM_EPS,
    ResidualBlock,
    Trunk,
    UnitBatchNorm,
    UnitLinear,
)

LOG_STD_LOW, LOG_STD_HIGH = -10.0, 2.0


class Actor(nn.Module):
    """Norm-bounded trunk with a mean and a log-standard-deviation head.

    Args:
        inputs: observation width D.
        actions: A.
        hidden: trunk width.
        blocks: residual blocks.
        generator: draws the initial weights.
    """

    def __init__(
        self, inputs: int, actions: int, *, hidden: int, blocks: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.trunk = Trunk(inputs, hidden, blocks, generator)
        self.mean = UnitLinear(hidden, actions, generator, bias=True)
        self.log_std = UnitLinear(hidden, actions, generator, bias=True)

    def forward(
        self, obs_MD: Tensor, *, train: bool, rows: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log std before tanh, (M, A) each, in float32.

        Args:
            obs_MD: observations.
            train: batch norm mode.
            rows: heads for the first ``rows`` rows only; batch statistics still see all M.
        """
        features = self.trunk(obs_MD, train=train)[:rows]
        mean: Tensor = self.mean(features).squeeze(1)
        raw: Tensor = self.log_std(features).squeeze(1)
        log_std = LOG_STD_LOW + 0.5 * (LOG_STD_HIGH - LOG_STD_LOW) * (1 + torch.tanh(raw))
        return mean, log_std


def squashed_sample(mean_MA: Tensor, log_std_MA: Tensor, noise_MA: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised action tanh(mean + std * noise) and its log-probability.

    Args:
        mean_MA: before tanh.
        log_std_MA: before tanh.
        noise_MA: standard-normal draws.

    Returns:
        Actions (M, A) in [-1, 1], and log-probability (M,) in that space; no Jacobian for the
        simulator's action scale is added.
    """
    before_MA = mean_MA + log_std_MA.exp() * noise_MA
    gaussian = -0.5 * noise_MA.square() - log_std_MA - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2) in the form that neither overflows nor cancels.
    jacobian = 2 * (math.log(2) - before_MA - F.softplus(-2 * before_MA))
    return torch.tanh(before_MA), (gaussian - jacobian).sum(-1)


class FoldedPolicy(nn.Module):
    """The deterministic policy of one moment in plain layers: (M, D) -> tanh(mean), (M, A).

    Batch norms with recorded statistics are affine maps: they, and the last norm's gain, are folded
    into the linear layers, in float64.

    Args:
        actor: read once, never changed.
    """

    @torch.no_grad()
    def __init__(self, actor: Actor) -> None:
        super().__init__()
        trunk = actor.trunk
        factor, shift = _affine(trunk.input_norm)
        weight = trunk.input_linear.weight[0].double()
        self.input = _linear(weight * factor, weight @ shift)
        self.block = nn.ModuleList()
        for block in cast("list[ResidualBlock]", list(trunk.block)):
            layers: list[nn.Module] = []
            for linear, norm in ((block.linear1, block.norm1), (block.linear2, block.norm2)):
                factor, shift = _affine(norm)
                weight = linear.weight[0].double() * factor[:, None]
                layers += [_linear(weight, shift), nn.ReLU()]
            self.block.append(nn.Sequential(*layers))
        weight = actor.mean.weight[0].double() * trunk.output_norm.scale[0].double()
        self.mean = _linear(weight, cast(Tensor, actor.mean.bias)[0])
        self._hidden = (weight.shape[1],)

    def forward(self, obs_MD: Tensor) -> Tensor:
        """Actions in [-1, 1]."""
        x_MH = self.input(obs_MD)
        for block in self.block:
            x_MH = x_MH + block(x_MH)
        return torch.tanh(self.mean(F.rms_norm(x_MH, self._hidden, eps=RMS_NORM_EPS)))


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Factor and shift, (D,) float64, of a batch norm with its recorded statistics."""
    assert type(norm) is UnitBatchNorm  # only that is an affine map
    factor = norm.scale[0].double() * torch.rsqrt(norm.running_var[0].double() + BATCH_NORM_EPS)
    return factor, norm.shift[0].double() - norm.running_mean[0].double() * factor


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer.requires_grad_(False)
