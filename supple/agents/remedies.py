"""Remedies against lost plasticity, each off unless asked for.

They act between gradient steps, in place, on whatever network they are given. Random numbers come
from a generator of their own, so that a run without remedies draws what it always drew.

Shapes: ``E`` members, ``B`` rows, ``H`` features, ``W`` units inside a block.
Source: shrink and perturb, Ash & Adams, arXiv:1910.08475, towards fresh weights as in D'Oro et al.,
2023; reset of dormant units, Sokar et al., arXiv:2302.12902.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supple.agents.adam import Adam
from supple.agents.nets import ResidualBlock, Trunk, UnitBatchNorm, UnitLinear
from supple.agents.velocity import PublishedMLP
from supple.distributed import mean_over_ranks


@dataclass(kw_only=True, slots=True)
class RemedySettings:
    """What is done for a network's ability to learn; everything is off by default."""

    weight_decay: float = 0.0
    """Linear weights shrink by this times the learning rate at each step, as in AdamW. Projected
    rows have their length back at once: set --agent.no-project-critic and -actor with it."""
    shrink_every: int = 0
    """Gradient steps between two moves of all weights towards fresh ones; 0 never."""
    shrink: float = 0.8
    """Share of the trained weights that such a move keeps, in [0, 1)."""
    reset_dormant_every: int = 0
    """Gradient steps between two resets of dormant units inside the critic's blocks; 0 never."""
    dormant_threshold: float = 0.025
    """Mean |activation| relative to the layer's, at or below which a unit is dormant."""


def linear_weights(network: nn.Module) -> list[Tensor]:
    """What weight decay shrinks: of every linear map its weight, no bias, gain or shift."""
    found: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, UnitLinear | nn.Linear):  # the latter in a critic of one's own
            found.append(module.weight)
        elif isinstance(module, PublishedMLP):
            found += [module.first_EHD, module.hidden_LEHH, module.out_E1H]
    return found


@torch.no_grad()
def shrink_and_perturb_(network: nn.Module, fresh: nn.Module, keep: float) -> None:
    """Every parameter becomes ``keep`` of itself and the rest of a fresh network's."""
    for own, other in zip(network.parameters(), fresh.parameters(), strict=True):
        own.lerp_(other, 1 - keep)


@torch.no_grad()
def dormant_units(trunk: Trunk, x_BD: Tensor, threshold: float) -> list[Tensor]:
    """Which units inside each block hardly ever fire, (E, W) bool each."""
    found = []
    x_BEH = trunk.input_linear(trunk.input_norm(x_BD.unsqueeze(1), train=False))
    for block in trunk.block:
        assert isinstance(block, ResidualBlock)
        wide_BEW = torch.relu(block.norm1(block.linear1(x_BEH), train=False))
        mean_EW = mean_over_ranks(wide_BEW.abs().mean(0))
        found.append(mean_EW <= threshold * mean_EW.mean(-1, keepdim=True))
        x_BEH = block(x_BEH, train=False)
    return found


@torch.no_grad()
def reset_dormant_(
    trunk: Trunk, fresh: Trunk, x_BD: Tensor, threshold: float, adam: Adam
) -> Tensor:
    """Give dormant units fresh incoming weights and no outgoing ones, so that values hardly jump.

    They do where rows are projected, which become longer again, or where the norm of a layer sees
    the fresh units.

    Args:
        trunk: changed in place.
        fresh: of the same make, untrained.
        x_BD: what units are judged on.
        threshold: relative to the layer's mean.
        adam: its optimiser; the moments of what is reset become 0.

    Returns:
        How many units were reset, 0-d.
    """
    dormant = dormant_units(trunk, x_BD, threshold)
    for block, new, dead_EW in zip(trunk.block, fresh.block, dormant, strict=True):
        assert isinstance(block, ResidualBlock)
        assert isinstance(new, ResidualBlock)
        incoming, outgoing = dead_EW.unsqueeze(-1), dead_EW.unsqueeze(-2)
        _put_(block.linear1.weight, new.linear1.weight, incoming, adam)
        _put_(block.linear2.weight, torch.zeros_like(new.linear2.weight), outgoing, adam)
        if isinstance(block.norm1, UnitBatchNorm) and isinstance(new.norm1, UnitBatchNorm):
            _put_(block.norm1.scale, new.norm1.scale, dead_EW, adam)
            _put_(block.norm1.shift, new.norm1.shift, dead_EW, adam)
    return torch.stack([each.sum() for each in dormant]).sum()


def _put_(own: Tensor, new: Tensor, where: Tensor, adam: Adam) -> None:
    own.copy_(torch.where(where, new, own))
    place = next(i for i, part in enumerate(adam.params) if part is own)
    for moment in (adam.mean[place], adam.square[place]):
        moment.copy_(torch.where(where, 0.0, moment))
