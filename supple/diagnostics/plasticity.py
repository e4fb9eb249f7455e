"""Plasticity of critics: features taken, features frozen, gradients compared.

What can be said of features alone is in ``diagnostics/representation.py``, how well new targets are
learned in ``diagnostics/trainability.py``.

Shapes: ``E`` members, ``B`` or ``N`` rows, ``M`` noise samples, ``K`` steps or atoms, ``D`` input
width, ``H`` width, ``R`` uniform numbers per row. Values are in scaled reward units.
Source: the protocols follow arXiv:2603.04333 and CMU-AIRe/floq.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from supple.agents.critics import CategoricalCritic, Critic, HeadCritic, project_to_atoms
from supple.agents.flow_critics import BoundedFlowCritic, FlowCritic, PublishedFlowCritic
from supple.agents.nets import Trunk
from supple.agents.velocity import PublishedMLP, UnitVelocityNet, VelocityNet
from supple.errors import InputError
from supple.kernels.critic_integration import first_layer, hidden_layers, path

LAYERS = ("weight", "first_EHD", "hidden_LEHH", "out_E1H")
"""What the parameters of linear layers are called."""


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


def two_hot(value_B: Tensor, critic: CategoricalCritic) -> Tensor:
    """The distribution on the two atoms around each value whose mean it is, (B, K)."""
    position_BK = value_B[:, None].expand(-1, critic.num_atoms)
    even_BK = torch.full_like(position_BK, 1 / critic.num_atoms)
    return project_to_atoms(even_BK, position_BK, critic.value_max)


def in_time_bin(uniform_BR: Tensor, low: float, high: float) -> Tensor:
    """A flow loss's uniform numbers, their half that is flow times moved into [low, high)."""
    noise_BM, t_BM = uniform_BR.chunk(2, dim=-1)
    return torch.cat((noise_BM, low + (high - low) * t_BM), dim=-1)


def gradient_cosine(first: Tensor, second: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Between the gradients of two losses, of two time bins or two sets of targets, 0-d."""
    flat = []
    for loss in (first, second):
        gradients = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        flat.append(torch.cat([part.flatten() for part in gradients]).double())
    product = flat[0].norm() * flat[1].norm()
    if product == 0:
        raise InputError("the direction of a gradient that is 0 is undefined")
    cosine: Tensor = flat[0] @ flat[1] / product
    return cosine
