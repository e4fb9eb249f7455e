"""Plain networks, as PPO uses them: observation normaliser, optional GRU, multi-layer perceptron.

Shapes: ``M`` rows, ``D`` observation width, ``H`` width of the memory (0 without one), ``W``
outputs, ``L`` steps of a sequence, ``S`` sequences; rows of sequences are time-major, M = L S.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from supple.distributed import sum_over_ranks

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
NORMALISER_EPS = 1e-2
"""Added to a channel's standard deviation: one that hardly moves is not blown up by more than 100.
Source: leggedrobotics/rsl_rl@5.5.1, modules/normalization.py."""
SQRT2 = 2**0.5


class ObservationNormaliser(nn.Module):
    """(x - mean) / (std + eps) with the moments of everything observed so far.

    Args:
        width: D.
        enabled: False passes observations through.
        device: where the moments live.
    """

    mean: Tensor
    std: Tensor
    _count: Tensor
    _mean: Tensor
    _square: Tensor

    def __init__(self, width: int, *, enabled: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.enabled = enabled
        self.register_buffer("mean", torch.zeros(width, device=device))
        self.register_buffer("std", torch.ones(width, device=device))
        # float64: late in a long run one rollout is a small part of all rows.
        for name, shape in (("_count", ()), ("_mean", (width,)), ("_square", (width,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=device))

    def forward(self, x_MD: Tensor) -> Tensor:
        """Normalised observations, (M, D)."""
        if not self.enabled:
            return x_MD
        return (x_MD - self.mean) / (self.std + NORMALISER_EPS)

    @torch.no_grad()
    def observe(self, x_MD: Tensor, valid_M: Tensor) -> None:
        """Fold rows, those of all processes, into the moments; what is not valid changes nothing.

        Source: merging of moments, Chan, Golub and LeVeque 1983.
        """
        if not self.enabled:
            return
        valid = valid_M.unsqueeze(-1)
        x = torch.where(valid, x_MD, 0).double()
        rows = sum_over_ranks(valid.double().sum())
        mean = sum_over_ranks(x.sum(0)) / rows.clamp_min(1)
        square = sum_over_ranks(torch.where(valid, x - mean, 0).square().sum(0))
        total = self._count + rows
        share = rows / total.clamp_min(1)
        delta = mean - self._mean
        self._square.add_(square + delta.square() * self._count * share)
        self._mean.add_(delta * share)
        self._count.copy_(total)
        self.mean.copy_(self._mean)
        self.std.copy_((self._square / total.clamp_min(1)).sqrt())


class Network(nn.Module):
    """Normaliser, memory, perceptron.

    Args:
        inputs: D.
        outputs: W.
        hidden: widths of the perceptron's hidden layers.
        activation: a key of ``ACTIVATIONS``.
        memory: H, width of a GRU in front of the perceptron; 0 has none.
        normalise: whether observations are normalised.
        output_gain: scale of the last layer's orthogonal start; hidden layers have sqrt(2).
        generator: draws the weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: Sequence[int],
        activation: str,
        memory: int,
        normalise: bool,
        output_gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        device = generator.device
        self.memory = memory
        self.normaliser = ObservationNormaliser(inputs, enabled=normalise, device=device)
        self.cell = nn.GRUCell(inputs, memory, device=device) if memory else None
        if self.cell is not None:
            for weight in (self.cell.weight_ih, self.cell.weight_hh):
                for gate in weight.data.chunk(3):
                    nn.init.orthogonal_(gate, generator=generator)
            nn.init.zeros_(self.cell.bias_ih)
            nn.init.zeros_(self.cell.bias_hh)
        widths = [memory or inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [_linear(before, after, SQRT2, generator), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, _linear(widths[-1], outputs, output_gain, generator))

    def step(self, obs_MD: Tensor, state_MH: Tensor) -> tuple[Tensor, Tensor]:
        """One step of each row: outputs (M, W) and the memory after it, (M, H)."""
        x = self.normaliser(obs_MD)
        if self.cell is None:
            return self.layers(x), state_MH
        state_MH = self._advance(self._input_gates(x), state_MH)
        return self.layers(state_MH), state_MH

    def unroll(self, obs_MD: Tensor, state_SH: Tensor, fresh_M: Tensor) -> Tensor:
        """Outputs (M, W) of sequences.

        Args:
            obs_MD: observations, time-major.
            state_SH: memory before the first step of each sequence.
            fresh_M: 1.0 where a row is the first of its episode: it begins with an empty memory.
        """
        x = self.normaliser(obs_MD)
        if self.cell is None:
            found: Tensor = self.layers(x)
            return found
        sequences = len(state_SH)
        kept = (1 - fresh_M).view(-1, sequences, 1)
        gates = self._input_gates(x).view(-1, sequences, 3 * self.memory)
        states = []
        for t in range(len(gates)):
            state_SH = self._advance(gates[t], state_SH * kept[t])
            states.append(state_SH)
        found = self.layers(torch.cat(states))
        return found

    def _input_gates(self, x_MD: Tensor) -> Tensor:
        """What does not wait for the memory, (M, 3 H), of all steps at once."""
        assert self.cell is not None
        return nn.functional.linear(x_MD, self.cell.weight_ih, self.cell.bias_ih)

    def _advance(self, gates: Tensor, state: Tensor) -> Tensor:
        """One step of ``nn.GRUCell``."""
        assert self.cell is not None
        own = nn.functional.linear(state, self.cell.weight_hh, self.cell.bias_hh)
        (ir, iz, inew), (hr, hz, hnew) = gates.chunk(3, dim=-1), own.chunk(3, dim=-1)
        update = torch.sigmoid(iz + hz)
        candidate = torch.tanh(inew + torch.sigmoid(ir + hr) * hnew)
        return candidate + update * (state - candidate)


def _linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device=generator.device)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
