"""A network as diagnostics read it, whatever agent it belongs to.

A view works on a *twin*: the same layers around the same tensors, so that nothing done to it (taps,
substituted parameters) is seen by training, and always in evaluation mode, in which samples do not
touch each other and no statistic moves.

Shapes: ``E`` members, ``N`` rows, ``D`` input width, ``H`` units, ``W`` outputs, ``P`` parameters
of one member, ``K`` Euler steps or atoms, ``M`` noise samples.
"""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from supple.agents.actor import Actor
from supple.agents.critics import CategoricalCritic, Critic, HeadCritic, project_to_atoms
from supple.agents.flow_critics import BoundedFlowCritic, FlowCritic, FlowPrediction
from supple.agents.mlp import Network
from supple.agents.nets import Trunk, UnitBatchNorm
from supple.agents.velocity import UnitVelocityNet
from supple.diagnostics.features import Features, flow_features, trunk_features
from supple.diagnostics.recovery import fixed_noise
from supple.kernels.critic_integration import integrate

NONLINEARITIES = frozenset(
    {torch.relu, F.relu, F.gelu, F.elu, torch.tanh, Tensor.relu, Tensor.tanh}
)
"""What ``tapped`` records."""


EMPTY_MEMORY = "empty memory"
"""Remark on a recurrent network: stored rows have lost what it remembered when it met them."""


class Objective(NamedTuple):
    """A loss whose targets and random numbers are fixed: a function of the parameters alone."""

    rows: tuple[Tensor, ...]
    """What it reads of each sample, (N, ...) each."""
    loss: Callable[..., Tensor]
    """(module, *rows) -> mean over rows, summed over members, 0-d."""

    def of(self, index: Tensor | slice) -> Objective:
        """On some of the rows."""
        return Objective(tuple(part[index] for part in self.rows), self.loss)


class View(ABC):
    """One network.

    Args:
        role: ``actor``, ``critic``, ``target_critic`` or ``value``.
        module: the network; the view keeps a twin of it.
        members: E.
    """

    def __init__(self, role: str, module: nn.Module, members: int) -> None:
        self.role = role
        self.module = twin(module)
        self.members = members

    saturating = False
    """Whether units are bounded on both sides, as tanh's are."""
    remark = ""
    """What readings of it have to say."""

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """Names of what non-linearities give, in the order of computation."""

    @abstractmethod
    def features(self, x_ND: Tensor) -> Features:
        """What the output layer reads, before and after its last norm, (E, N, H)."""

    @abstractmethod
    def outputs(self, module: nn.Module, x_ND: Tensor) -> Tensor:
        """Values, pre-squash means or logits, (E, N, W), differentiable in module and input."""

    def representation(self, x_ND: Tensor) -> Tensor:
        """One row per input of what the output layer reads, (E, N, ...)."""
        return self.features(x_ND).after_norm

    def fit_loss(
        self, module: nn.Module, x_BD: Tensor, goal_EBW: Tensor, noise_BR: Tensor
    ) -> Tensor:
        """The loss by which a copy learns new outputs, in training mode, 0-d."""
        return (self.outputs(module, x_BD) - goal_EBW).square().mean()

    def fit_noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Uniform random numbers that ``fit_loss`` reads of each row, (B, R)."""
        return torch.zeros(rows, 0, device=generator.device)

    @property
    def value_limit(self) -> float | None:
        """End of the range of outputs, where there is one."""
        return None

    @property
    def target_range(self) -> tuple[float, float] | None:
        """Ends of the range that targets lie in, or should, where there is one."""
        return None if self.value_limit is None else (-self.value_limit, self.value_limit)

    def probed(self, untrained: View) -> View:
        """What learns new targets in its place, to be compared with untrained networks: itself."""
        return self

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """By name."""
        return list(self.module.named_parameters())

    def split(self, name: str, value: Tensor) -> Tensor:
        """A parameter, or its gradient, by member: (E, ...)."""
        return value.unsqueeze(0) if self.members == 1 else by_member(name, value, self.members)

    def flat(self, values: Sequence[Tensor]) -> Tensor:
        """Everything of the parameters' shapes, side by side, (E, P)."""
        named = zip(self.parameters(), values, strict=True)
        return torch.cat(
            [self.split(name, part).reshape(self.members, -1) for (name, _), part in named], dim=1
        )

    def unflat(self, flat_EP: Tensor) -> list[Tensor]:
        """The inverse of ``flat``."""
        found, place = [], 0
        for name, parameter in self.parameters():
            own = self.split(name, torch.empty_like(parameter, device="meta"))
            width = own.shape[1:].numel()
            part = flat_EP[:, place : place + width].reshape(own.shape)
            found.append(joined(name, part, parameter.shape))
            place += width
        return found

    @contextlib.contextmanager
    def tapped(self) -> Iterator[dict[str, Tensor]]:
        """Collects what the non-linearities of the block's first forward pass give, by layer.

        They are part of the graph: losses can be differentiated with respect to them.
        """
        found: dict[str, Tensor] = {}
        with _Tap(self.layers, found):
            yield found

    def units(self, activation: Tensor) -> Tensor:
        """What ``tapped`` collected as (E, N, H), noise samples among the rows."""
        if activation.dim() == 4:  # of a flow: (E, B, M, H)
            return activation.flatten(1, 2)
        return activation.transpose(0, 1) if activation.dim() == 3 else activation.unsqueeze(0)


class _Tap(TorchFunctionMode):
    def __init__(self, names: Sequence[str], found: dict[str, Tensor]) -> None:
        super().__init__()
        self._names = list(names)
        self._found = found

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in NONLINEARITIES and self._names:
            self._found[self._names.pop(0)] = out
        return out


class ActorView(View):
    """FlashSAC's actor; outputs are means before tanh, log standard deviations beside them."""

    def __init__(self, module: Actor) -> None:
        super().__init__("actor", module, 1)
        self._trunk = module.trunk

    @property
    def layers(self) -> tuple[str, ...]:
        """Two per block."""
        return trunk_layers(self._trunk)

    def features(self, x_ND: Tensor) -> Features:
        """Of the trunk."""
        return trunk_features(self._trunk, x_ND)

    def outputs(self, module: nn.Module, x_ND: Tensor) -> Tensor:
        """Means before tanh, (1, N, A)."""
        mean_NA: Tensor = module(x_ND, train=False)[0]
        return mean_NA.unsqueeze(0)

    def fit_loss(
        self, module: nn.Module, x_BD: Tensor, goal_EBW: Tensor, noise_BR: Tensor
    ) -> Tensor:
        """Squared error of the means."""
        mean_BA: Tensor = module(x_BD, train=True)[0]
        return (mean_BA - goal_EBW[0]).square().mean()


class CriticView(View):
    """A FlashSAC critic without a flow."""

    module: HeadCritic

    def __init__(self, role: str, module: HeadCritic) -> None:
        super().__init__(role, module, module.size.members)

    @property
    def layers(self) -> tuple[str, ...]:
        """Two per block."""
        return trunk_layers(self.module.trunk)

    def features(self, x_ND: Tensor) -> Features:
        """Of the trunk."""
        return trunk_features(self.module.trunk, x_ND)

    def outputs(self, module: nn.Module, x_ND: Tensor) -> Tensor:
        """Expected values, (E, N, 1)."""
        assert isinstance(module, HeadCritic)
        return module.value(module(x_ND, train=False)).unsqueeze(-1)

    def fit_loss(
        self, module: nn.Module, x_BD: Tensor, goal_EBW: Tensor, noise_BR: Tensor
    ) -> Tensor:
        """The critic's own, on the two atoms around each value where it has atoms."""
        assert isinstance(module, HeadCritic)
        goal = goal_EBW.squeeze(-1)
        if isinstance(module, CategoricalCritic):
            goal = two_hot(goal.flatten(), module).unflatten(0, goal.shape)
        return module.loss(module(x_BD, train=True), goal)

    @property
    def value_limit(self) -> float | None:
        """Of the atoms."""
        return self.module.value_max if isinstance(self.module, CategoricalCritic) else None

    def probed(self, untrained: View) -> View:
        """The trunk under an untrained head, where there are atoms.

        Labels on two atoms ask for sharp distributions, whatever values they mean. An untrained
        critic has to learn that first, a trained one has: on its own head it would seem better
        than new, and what it lost could hide behind that.
        """
        if not isinstance(self.module, CategoricalCritic):
            return self
        found = copy.copy(self)
        found.module = twin(self.module)
        found.module.head = untrained.module.head
        return found


def two_hot(value_B: Tensor, critic: CategoricalCritic) -> Tensor:
    """The distribution on the two atoms around each value whose mean it is, (B, K)."""
    position_BK = value_B[:, None].expand(-1, critic.num_atoms)
    even_BK = torch.full_like(position_BK, 1 / critic.num_atoms)
    return project_to_atoms(even_BK, position_BK, critic.value_max)


class FlowView(View):
    """A flow critic; its features are averaged neither over time nor noise but listed side by side.

    The noise is ``recovery.fixed_noise``.
    """

    module: FlowCritic
    SAMPLES = 1
    VALUE_SAMPLES = 8
    TIMES = (0.0, 0.25, 0.5, 0.75)

    def __init__(self, role: str, module: FlowCritic) -> None:
        super().__init__(role, module, module.size.members)
        # The operator that training integrates with on GPUs has no second derivatives.
        self.module.integrated = MethodType(_integrated, self.module)  # type: ignore[method-assign]

    @property
    def layers(self) -> tuple[str, ...]:
        """Two per block of the trunk, where there is one, and the velocity network's."""
        trunk = self.module.trunk if isinstance(self.module, BoundedFlowCritic) else None
        depth = self.module.settings.depth
        own = () if trunk is None else trunk_layers(trunk)
        return (*own, *(f"flow{layer}" for layer in range(depth)))

    def features(self, x_ND: Tensor) -> Features:
        """Of the velocity network at four flow times side by side as rows, (E, 4 N M, H)."""
        start_BM = fixed_noise(self.module, len(x_ND), self.SAMPLES)[0]
        found = flow_features(self.module, x_ND, start_BM, len(self.TIMES))
        return Features(*(part.transpose(0, 1).flatten(1, 2) for part in found))

    def representation(self, x_ND: Tensor) -> Tensor:
        """All flow times side by side as features."""
        after = self.features(x_ND).after_norm
        shaped: Tensor = after.unflatten(1, (len(self.TIMES), len(x_ND), -1))
        return shaped.transpose(1, 2).flatten(2)

    def outputs(self, module: nn.Module, x_ND: Tensor) -> Tensor:
        """Integrated values, averaged over the fixed noise, (E, N, 1)."""
        assert isinstance(module, FlowCritic)
        prediction = module(x_ND, train=False)
        start_BM = fixed_noise(self.module, len(x_ND), self.VALUE_SAMPLES)[0]
        value_EBM = _integrated(module, prediction, start_BM, module.settings.target_steps)
        return value_EBM.mean(-1, keepdim=True)

    def fit_loss(
        self, module: nn.Module, x_BD: Tensor, goal_EBW: Tensor, noise_BR: Tensor
    ) -> Tensor:
        """Flow matching to one end point per row and member."""
        assert isinstance(module, FlowCritic)
        return module.loss(module(x_BD, train=True), goal_EBW, noise_BR)

    def fit_noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Of noise and flow times."""
        shape = (rows, self.module.draws.loss)
        return torch.rand(shape, generator=generator, device=generator.device)

    @property
    def value_limit(self) -> float | None:
        """Of its targets."""
        return self.module.clip if math.isfinite(self.module.clip) else None

    @property
    def target_range(self) -> tuple[float, float]:
        """Also where nothing is clipped: what its encoding of values tells apart."""
        return self.module.target_range

    def probed(self, untrained: View) -> View:
        """Under an untrained output layer, where norms are bounded.

        An untrained field carries its noise all over the value range, and has to learn to gather it
        first, as a critic with atoms has to learn sharp distributions.
        """
        if not isinstance(self.module, BoundedFlowCritic):
            return self
        found = copy.copy(self)
        found.module = twin(self.module)
        own, new = found.module.net, untrained.module.net
        assert isinstance(own, UnitVelocityNet)
        assert isinstance(new, UnitVelocityNet)
        own.out = new.out
        return found


class PerceptronView(View):
    """A network of PPO; a recurrent one is read with an empty memory.

    Args:
        role: ``actor`` or ``value``.
        module: the network; the view keeps a twin of it.
        width: how many of the head's numbers are outputs, from the first; all by default. The rest
            change standard deviations.
    """

    module: Network

    def __init__(self, role: str, module: Network, width: int | None = None) -> None:
        super().__init__(role, module, 1)
        self._width = width
        self.saturating = any(isinstance(layer, nn.Tanh) for layer in module.layers)
        self.remark = EMPTY_MEMORY if module.memory else ""

    @property
    def layers(self) -> tuple[str, ...]:
        """The memory's candidate state, where there is one, and the hidden layers."""
        hidden = sum(isinstance(layer, nn.Linear) for layer in self.module.layers) - 1
        own = ("memory",) if self.module.memory else ()
        return (*own, *(f"hidden{layer}" for layer in range(hidden)))

    @torch.no_grad()
    def features(self, x_ND: Tensor) -> Features:
        """What the last linear layer reads; there is no norm between."""
        caught: list[Tensor] = []
        probe = copy.copy(self.module)
        layers = list(self.module.layers)
        probe._modules = dict(self.module._modules)
        probe._modules["layers"] = nn.Sequential(*layers[:-1], _Catch(caught), layers[-1])
        self.head(probe, x_ND)
        return Features(caught[0][None], caught[0][None])

    def outputs(self, module: nn.Module, x_ND: Tensor) -> Tensor:
        """Values, means or logits, (1, N, W)."""
        return self.head(module, x_ND)[None, :, : self._width]

    def head(self, module: nn.Module, x_ND: Tensor) -> Tensor:
        """All numbers of the network, (N, ...)."""
        assert isinstance(module, Network)
        head, _ = module.step(x_ND, x_ND.new_zeros(len(x_ND), module.memory))
        return head


class _Catch(nn.Module):
    def __init__(self, caught: list[Tensor]) -> None:
        super().__init__()
        self._caught = caught

    def forward(self, x: Tensor) -> Tensor:
        self._caught.append(x)
        return x


def critic_view(role: str, module: Critic) -> View:
    """The view of a FlashSAC critic."""
    if isinstance(module, FlowCritic):
        return FlowView(role, module)
    assert isinstance(module, HeadCritic)
    return CriticView(role, module)


def trunk_layers(trunk: Trunk) -> tuple[str, ...]:
    """Names of a trunk's activations."""
    return tuple(f"block{i}.{side}" for i in range(len(trunk.block)) for side in ("inner", "outer"))


def twin(module: nn.Module) -> Any:
    """The same structure around the same tensors."""
    shared = {id(part): part for part in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


@torch.no_grad()
def calibrate(module: nn.Module, run: Callable[[], Any]) -> None:
    """Give a fresh network the batch norm statistics of some data.

    Args:
        module: with untouched statistics.
        run: passes the data through it in training mode.
    """
    norms = [part for part in module.modules() if isinstance(part, UnitBatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    run()
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def by_member(name: str, value: Tensor, members: int) -> Tensor:
    """A parameter of an ensemble with its members first, (E, ...).

    Layers of a velocity network are stacked: members lie on the second axis (``..._LEHH``), or on
    the first, behind the layers (``norm.scale`` of L E rows).
    """
    if name.rsplit("_", 1)[-1].startswith("LE"):
        return value.transpose(0, 1)
    if len(value) == members:
        return value
    layered: Tensor = value.unflatten(0, (-1, members))
    return layered.transpose(0, 1)


def joined(name: str, part: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of ``by_member``, and of the axis that a single member was given."""
    if part.shape[1:] == shape and len(part) == 1:
        return part[0]
    if name.rsplit("_", 1)[-1].startswith("LE"):
        return part.transpose(0, 1).reshape(shape)
    if part.shape == shape:
        return part
    return part.transpose(0, 1).reshape(shape)


def _integrated(
    critic: FlowCritic, prediction: FlowPrediction, start_BM: Tensor, steps: int
) -> Tensor:
    net = critic.net
    condition_EBH = prediction.condition_EBH
    return integrate(net.field(), net.form, start_BM[None], condition_EBH, net.grid(steps))
