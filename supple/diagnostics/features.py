"""Features of critics: taken where the output layer reads them, and frozen.

What can be said of them is in ``diagnostics/representation.py``, how well new targets are learned
from them in ``diagnostics/trainability.py``.

Shapes: ``E`` members, ``B`` or ``N`` rows, ``M`` noise samples, ``K`` steps, ``D`` input width,
``H`` width.
Source: the protocols follow arXiv:2603.04333 and CMU-AIRe/floq.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from supple.agents.critics import Critic, HeadCritic
from supple.agents.flow_critics import BoundedFlowCritic, FlowCritic, PublishedFlowCritic
from supple.agents.nets import Trunk
from supple.agents.velocity import PublishedMLP, UnitVelocityNet, VelocityNet
from supple.errors import InputError
from supple.kernels.critic_integration import first_layer, hidden_layers, path


class Features(NamedTuple):
    """What the output layer reads, (..., N, H)."""

    before_norm: Tensor
    """The same before the last norm, which leaves no length to measure."""
    after_norm: Tensor


@torch.no_grad()
def trunk_features(trunk: Trunk, x_BD: Tensor) -> Features:
    """(E, B, H)."""
    before_BEH = trunk.before_norm(x_BD, train=False)
    return Features(before_BEH.transpose(0, 1), trunk.output_norm(before_BEH).transpose(0, 1))


@torch.no_grad()
def flow_features(critic: FlowCritic, x_BD: Tensor, start_BM: Tensor, steps: int) -> Features:
    """At every t = k/K, on the trajectory that the critic itself takes from the noise.

    Returns:
        (K, E, B M, H), the noise samples of a row side by side.
    """
    field, form, grid_KEH = critic.net.field(), critic.net.form, critic.net.grid(steps)
    condition_EBH = critic(x_BD, train=False).condition_EBH
    states = path(field, form, start_BM[None], condition_EBH, grid_KEH)[:-1]
    found = []
    for z_EBM, time_EH in zip(states, grid_KEH, strict=True):
        time_E11H = time_EH[:, None, None]
        x_EBMH = first_layer(field, form, z_EBM, condition_EBH.unsqueeze(2), time_E11H)
        found.append(hidden_layers(field, form, x_EBMH))
    return Features(*(torch.stack(layer).flatten(2, 3) for layer in zip(*found, strict=True)))


class FrozenFeatures:
    """Keeps a critic as it is now, but for the last hidden layer and the output.

    The target network takes over the online features. A flow critic's distilled network is frozen
    likewise; the last hidden layer of a trunk is the second half of its last block. Statistics of
    batch norms are kept too, but a critic that normalises by its batch sees other batches.
    Deviation: CMU-AIRe/floq stops gradients only, so that Adam's momentum moves what is frozen.

    Args:
        critic: the online network.
        target: of the same make.
    """

    def __init__(self, critic: Critic, target: Critic) -> None:
        online = _early_layers(critic)
        self._kept = [part.clone() for part in online]
        self._parts = (online, _early_layers(target))
        self.restore_()

    @torch.no_grad()
    def restore_(self) -> None:
        """Undo what a step of optimiser, projection and target did; call after each."""
        for parts in self._parts:
            torch._foreach_copy_(parts, self._kept)


def _early_layers(critic: Critic) -> list[Tensor]:
    """Writable views of everything that ``FrozenFeatures`` keeps."""
    if isinstance(critic, HeadCritic):
        last = len(critic.trunk.block) - 1
        if last < 0:
            raise InputError("a trunk without blocks has no features to freeze")
        free = (f"block.{last}.linear2", f"block.{last}.norm2", "output_norm")
        state = critic.trunk.state_dict()
        return [part for name, part in state.items() if not name.startswith(free)]
    assert isinstance(critic, FlowCritic)
    parts = _early_part(critic.net)
    if isinstance(critic, BoundedFlowCritic):
        parts += critic.trunk.state_dict().values()
    elif isinstance(critic, PublishedFlowCritic) and critic.settings.readout == "distilled":
        parts += _early_part(critic.distilled)
    return parts


def _early_part(net: VelocityNet | PublishedMLP) -> list[Tensor]:
    if isinstance(net, PublishedMLP):
        stacked = (net.hidden_LEHH, net.bias_LEH, net.gain_LEH, net.shift_LEH)
        views = [net.first_EHD, net.first_bias_EH, *(layers[:-1] for layers in stacked)]
    else:
        assert isinstance(net, UnitVelocityNet)
        field = net.field()
        # The last hidden layer has a norm before its activation, the output one of its own.
        views = [net.first.weight, field.hidden_LEHH[:-1], field.gain_LEH[:-2]]
    return [view.detach() for view in views]
