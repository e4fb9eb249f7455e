"""Norm-bounded layers and the trunk that FlashSAC's actor and critics share.

Every linear row has Euclidean norm 1, every batch norm's (scale, shift) has joint norm sqrt(d) and
every RMS norm's gain has norm sqrt(d). ``project_`` restores that after each optimiser step, so the
learning rate is the true angular step size for the whole run and no feature or logit can grow.

Shapes: ``M`` rows, ``D`` features, ``H`` hidden width. Train or eval is an argument of each call,
never a flag of the module: one update calls the same network in both modes.

Source: FlashSAC, arXiv:2604.04539, and Holiday-Robot/FlashSAC@87edc90 (layer.py). The numbers agree
with recorded updates of that code (tests/parity).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_MOMENTUM = 0.01
BATCH_NORM_EPS = 1e-5
RMS_NORM_EPS = 1e-6
EXPANSION = 4


class UnitLinear(nn.Module):
    """Linear map whose weight rows have norm 1; hidden layers carry no bias, heads a free one.

    Args:
        inputs: features in.
        outputs: features out.
        generator: draws the orthogonal initial weight.
        bias: whether to add a learnable bias (starts at 0, never projected).
    """

    def __init__(
        self, inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = False
    ) -> None:
        super().__init__()
        device = generator.device
        weight = torch.empty(outputs, inputs, device=device)
        nn.init.orthogonal_(weight, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs, device=device)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(M, inputs) -> (M, outputs)."""
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def project_(self) -> None:
        """Scale each row to norm 1, in place."""
        norm = torch.linalg.vector_norm(self.weight, dim=-1, keepdim=True)
        self.weight.div_(norm.clamp_min_(1e-8))


class UnitBatchNorm(nn.Module):
    """Batch norm whose scale and shift keep the joint norm sqrt(d).

    Projecting the pair jointly makes the batch mean of the squared feature norm exactly ``d``,
    whatever was learned.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features, device=device))
        self.shift = nn.Parameter(torch.zeros(features, device=device))
        self.register_buffer("running_mean", torch.zeros(features, device=device))
        self.register_buffer("running_var", torch.ones(features, device=device))

    def forward(self, x: Tensor, *, train: bool) -> Tensor:
        """(M, D) -> (M, D); ``train`` uses and records batch statistics, M >= 2."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.scale,
            self.shift,
            training=train,
            momentum=BATCH_NORM_MOMENTUM,
            eps=BATCH_NORM_EPS,
        )

    @torch.no_grad()
    def project_(self) -> None:
        """Scale (scale, shift) to the joint norm sqrt(D), in place."""
        square = self.scale.square().sum() + self.shift.square().sum()
        factor = math.sqrt(self.scale.numel()) / torch.sqrt(square + 1e-8)
        self.scale.mul_(factor)
        self.shift.mul_(factor)


class UnitRMSNorm(nn.Module):
    """RMS norm whose gain keeps norm sqrt(d): bounds each single row, also unfamiliar ones."""

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> (M, D), the mean square taken in float32."""
        mean_square = x.float().square().mean(dim=-1, keepdim=True)
        return self.scale * (x * torch.rsqrt(mean_square + RMS_NORM_EPS))

    @torch.no_grad()
    def project_(self) -> None:
        """Scale the gain to norm sqrt(D), in place."""
        square = self.scale.square().sum()
        self.scale.mul_(math.sqrt(self.scale.numel()) / torch.sqrt(square + 1e-8))


class ResidualBlock(nn.Module):
    """Two linear layers, each followed by batch norm and ReLU, added to the stream."""

    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        device = generator.device
        self.linear1 = UnitLinear(hidden, EXPANSION * hidden, generator)
        self.norm1 = UnitBatchNorm(EXPANSION * hidden, device)
        self.linear2 = UnitLinear(EXPANSION * hidden, hidden, generator)
        self.norm2 = UnitBatchNorm(hidden, device)

    def forward(self, x: Tensor, *, train: bool) -> Tensor:
        """(M, H) -> (M, H)."""
        wide = torch.relu(self.norm1(self.linear1(x), train=train))
        # The second ReLU is the published design: each block adds a non-negative vector.
        return x + torch.relu(self.norm2(self.linear2(wide), train=train))


class Trunk(nn.Module):
    """Raw inputs -> features whose rows are RMS-normalised.

    The first batch norm is the only observation normaliser there is.

    Args:
        inputs: width of the raw input.
        hidden: feature width H.
        blocks: residual blocks.
        generator: draws the initial weights.
    """

    def __init__(self, inputs: int, hidden: int, blocks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.input_norm = UnitBatchNorm(inputs, generator.device)
        self.input_linear = UnitLinear(inputs, hidden, generator)
        self.block = nn.ModuleList(ResidualBlock(hidden, generator) for _ in range(blocks))
        self.output_norm = UnitRMSNorm(hidden, generator.device)

    def forward(self, x: Tensor, *, train: bool) -> Tensor:
        """(M, inputs) -> (M, H)."""
        x = self.input_linear(self.input_norm(x, train=train))
        for block in self.block:
            x = block(x, train=train)
        features: Tensor = self.output_norm(x)
        return features


def project_(network: nn.Module) -> None:
    """Restore every norm in ``network``, in place and without gradient."""
    for module in network.modules():
        if isinstance(module, UnitLinear | UnitBatchNorm | UnitRMSNorm):
            module.project_()


def norm_deviation(network: nn.Module) -> dict[str, Tensor]:
    """How far each kind of norm is from its target, as 0-d maxima on the device.

    Returns:
        ``row`` (unit rows), ``batch_norm`` and ``rms_norm`` (relative to sqrt(d)): the first three
        invariants of the method.
    """
    worst: dict[str, list[Tensor]] = {"row": [], "batch_norm": [], "rms_norm": []}
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, UnitLinear):
                rows = torch.linalg.vector_norm(module.weight, dim=-1)
                worst["row"].append((rows - 1).abs().max())
            elif isinstance(module, UnitBatchNorm):
                pair = torch.cat((module.scale, module.shift))
                relative = torch.linalg.vector_norm(pair) / math.sqrt(module.scale.numel())
                worst["batch_norm"].append((relative - 1).abs())
            elif isinstance(module, UnitRMSNorm):
                gain = torch.linalg.vector_norm(module.scale)
                worst["rms_norm"].append((gain / math.sqrt(module.scale.numel()) - 1).abs())
    return {kind: torch.stack(found).max() for kind, found in worst.items() if found}
