"""Norm-bounded layers and the trunk that FlashSAC's actor and critics share.

Every linear row has Euclidean norm 1, every batch norm's (scale, shift) has joint norm sqrt(d) and
every RMS norm's gain has norm sqrt(d). ``project_`` restores that after each optimiser step, so the
learning rate is the true angular step size for the whole run and no feature or logit can grow.

Shapes: ``M`` rows, ``E`` ensemble members, ``D`` features, ``H`` hidden width. Every parameter has
a leading member axis, so an ensemble costs as many operations as one network. Train or eval is an
argument of each call, never a flag of the module: one update calls the same network in both modes.

Source: FlashSAC, arXiv:2604.04539, and Holiday-Robot/FlashSAC@87edc90 (layer.py). The numbers agree
with recorded updates of that code (tests/parity).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple import distributed
from supple.agents.joint_norm import standardised

BATCH_NORM_MOMENTUM = 0.01
BATCH_NORM_EPS = 1e-5
RMS_NORM_EPS = 1e-6
EXPANSION = 4


class UnitLinear(nn.Module):
    """Linear maps whose weight rows have norm 1; hidden layers carry no bias, heads a free one.

    Args:
        inputs: features in.
        outputs: features out.
        generator: draws the orthogonal initial weights.
        members: E, independent maps side by side.
        bias: whether to add a learnable bias (starts at 0, never projected).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        generator: torch.Generator,
        *,
        members: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        device = generator.device
        weight = torch.empty(members, outputs, inputs, device=device)
        for member in weight:
            nn.init.orthogonal_(member, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(members, outputs, device=device)) if bias else None

    def forward(self, x_MED: Tensor) -> Tensor:
        """(M, E, inputs) -> (M, E, outputs)."""
        if self.bias is None:
            return self._product(x_MED)
        # Heads stay float32: logits and means rounded to eight bits cost return, not time.
        with torch.autocast(x_MED.device.type, enabled=False):
            return self._product(x_MED) + self.bias

    def _product(self, x_MED: Tensor) -> Tensor:
        # One batched product reads and writes strided members: no copy on the way in.
        return torch.bmm(x_MED.transpose(0, 1), self.weight.mT).transpose(0, 1)

    @torch.no_grad()
    def project_(self) -> None:
        """Scale each row to norm 1, in place."""
        norm = torch.linalg.vector_norm(self.weight, dim=-1, keepdim=True)
        self.weight.div_(norm.clamp_min_(1e-8))


class UnitBatchNorm(nn.Module):
    """Batch norm whose scale and shift keep the joint norm sqrt(d), per member.

    Projecting the pair jointly makes the batch mean of the squared feature norm exactly ``d``,
    whatever was learned.

    Args:
        features: D.
        device: where the parameters live.
        members: E.
        shared_input: all members read the same (M, 1, D): its statistics are taken once.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        features: int,
        device: torch.device,
        *,
        members: int = 1,
        shared_input: bool = False,
    ) -> None:
        super().__init__()
        self.momentum = BATCH_NORM_MOMENTUM
        self.scale = nn.Parameter(torch.ones(members, features, device=device))
        self.shift = nn.Parameter(torch.zeros(members, features, device=device))
        statistics = (1 if shared_input else members, features)
        self.register_buffer("running_mean", torch.zeros(statistics, device=device))
        self.register_buffer("running_var", torch.ones(statistics, device=device))

    def forward(self, x_MED: Tensor, *, train: bool) -> Tensor:
        """(M, E, D) -> (M, E, D); ``train`` uses and records batch statistics, M >= 2.

        Within ``distributed.together`` the batch is that of all processes.
        """
        if train and distributed.is_together():
            return self._joint(x_MED)
        own_affine = self.running_mean.shape == self.scale.shape
        # Members lie side by side as features, so that the native fused batch norm serves all.
        out: Tensor = F.batch_norm(
            x_MED.flatten(1),
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.scale.view(-1) if own_affine else None,
            self.shift.view(-1) if own_affine else None,
            training=train,
            momentum=self.momentum,
            eps=BATCH_NORM_EPS,
        ).unflatten(1, self.running_mean.shape)
        return out if own_affine else torch.addcmul(self.shift, out, self.scale)

    def _joint(self, x_MED: Tensor) -> Tensor:
        """The same in train mode, with the statistics of every process's rows."""
        x_MF = x_MED.flatten(1).float()
        normal_MF, mean, var = standardised(x_MF, eps=BATCH_NORM_EPS)
        rows = len(x_MF) * distributed.world().size
        with torch.no_grad():
            self.running_mean.view(-1).lerp_(mean, self.momentum)
            self.running_var.view(-1).lerp_(var * rows / (rows - 1), self.momentum)
        normal_MED = normal_MF.unflatten(1, self.running_mean.shape)
        return torch.addcmul(self.shift, normal_MED, self.scale).to(x_MED.dtype)

    @torch.no_grad()
    def project_(self) -> None:
        """Scale (scale, shift) to the joint norm sqrt(D), in place."""
        square = self.scale.square().sum(-1, True) + self.shift.square().sum(-1, True)
        factor = math.sqrt(self.scale.shape[-1]) / torch.sqrt(square + 1e-8)
        self.scale.mul_(factor)
        self.shift.mul_(factor)


class UnitLayerNorm(UnitBatchNorm):
    """Layer norm with the same scale and shift: no statistics, rows do not touch each other."""

    def forward(self, x_MED: Tensor, *, train: bool) -> Tensor:
        """(M, E, D) -> (M, E, D), the same in both modes."""
        normal = F.layer_norm(x_MED, x_MED.shape[-1:], eps=BATCH_NORM_EPS)
        return torch.addcmul(self.shift, normal, self.scale)


class NoNorm(nn.Module):
    """Nothing, called as a norm is: the control."""

    def __init__(self, features: int, device: torch.device, *, members: int = 1) -> None:
        super().__init__()

    def forward(self, x_MED: Tensor, *, train: bool) -> Tensor:
        """The same."""
        return x_MED


NORMS: dict[str, type[UnitBatchNorm | NoNorm]] = {
    "batch": UnitBatchNorm,
    "layer": UnitLayerNorm,
    "none": NoNorm,
}


class UnitRMSNorm(nn.Module):
    """RMS norm whose gain keeps norm sqrt(d): bounds each single row, also unfamiliar ones."""

    def __init__(self, features: int, device: torch.device, *, members: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(members, features, device=device))

    def forward(self, x_MED: Tensor) -> Tensor:
        """(M, E, D) -> (M, E, D), in float32."""
        x_MED = x_MED.float()
        mean_square = x_MED.square().mean(dim=-1, keepdim=True)
        return self.scale * (x_MED * torch.rsqrt(mean_square + RMS_NORM_EPS))

    @torch.no_grad()
    def project_(self) -> None:
        """Scale the gain to norm sqrt(D), in place."""
        square = self.scale.square().sum(-1, True)
        self.scale.mul_(math.sqrt(self.scale.shape[-1]) / torch.sqrt(square + 1e-8))


class ResidualBlock(nn.Module):
    """Two linear layers, each followed by batch norm and ReLU, added to the stream."""

    def __init__(
        self, hidden: int, generator: torch.Generator, *, members: int = 1, norm: str = "batch"
    ) -> None:
        super().__init__()
        device, wide = generator.device, EXPANSION * hidden
        self.linear1 = UnitLinear(hidden, wide, generator, members=members)
        self.norm1 = NORMS[norm](wide, device, members=members)
        self.linear2 = UnitLinear(wide, hidden, generator, members=members)
        self.norm2 = NORMS[norm](hidden, device, members=members)

    def forward(self, x_MEH: Tensor, *, train: bool) -> Tensor:
        """(M, E, H) -> (M, E, H)."""
        wide = torch.relu(self.norm1(self.linear1(x_MEH), train=train))
        # The second ReLU is the published design: each block adds a non-negative vector.
        return x_MEH + torch.relu(self.norm2(self.linear2(wide), train=train))


class Trunk(nn.Module):
    """Raw inputs -> features whose rows are RMS-normalised.

    The first batch norm is the only observation normaliser there is.

    Args:
        inputs: width of the raw input.
        hidden: feature width H.
        blocks: residual blocks.
        generator: draws the initial weights.
        members: E, independent trunks that read the same input.
        norm: of the blocks, a key of ``NORMS``.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        blocks: int,
        generator: torch.Generator,
        *,
        members: int = 1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        device = generator.device
        self.input_norm = UnitBatchNorm(inputs, device, members=members, shared_input=True)
        self.input_linear = UnitLinear(inputs, hidden, generator, members=members)
        self.block = nn.ModuleList(
            ResidualBlock(hidden, generator, members=members, norm=norm) for _ in range(blocks)
        )
        self.output_norm = UnitRMSNorm(hidden, device, members=members)

    def forward(self, x_MD: Tensor, *, train: bool) -> Tensor:
        """(M, inputs) -> (M, E, H)."""
        features: Tensor = self.output_norm(self.before_norm(x_MD, train=train))
        return features

    def before_norm(self, x_MD: Tensor, *, train: bool) -> Tensor:
        """What the output norm reads: unlike what it writes, its length may grow, (M, E, H)."""
        x_MEH: Tensor = self.input_linear(self.input_norm(x_MD.unsqueeze(1), train=train))
        for block in self.block:
            x_MEH = block(x_MEH, train=train)
        return x_MEH


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
                pair = torch.cat((module.scale, module.shift), dim=-1)
                worst["batch_norm"].append(_relative_deviation(pair, module.scale.shape[-1]))
            elif isinstance(module, UnitRMSNorm):
                gain = module.scale
                worst["rms_norm"].append(_relative_deviation(gain, gain.shape[-1]))
    return {kind: torch.stack(found).max() for kind, found in worst.items() if found}


def _relative_deviation(gain: Tensor, features: int) -> Tensor:
    norm = torch.linalg.vector_norm(gain, dim=-1)
    deviation: Tensor = (norm / math.sqrt(features) - 1).abs().max()
    return deviation
