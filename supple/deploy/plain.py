"""The policy in the plain layers that every runtime has: what a bundle's graphs are written from.

Shapes: ``B`` rows, ``D`` observation width, ``H`` memory (0 without one), ``A`` actions or choices.

A row whose observation, memory or result is not finite gets the safe action; its memory stays as it
was, or becomes empty where it was not finite itself.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.agents.actor import FoldedPolicy
from supple.agents.base import Agent
from supple.agents.distributions import Categorical, SquashedGaussian
from supple.agents.flashsac import FlashSAC
from supple.agents.mlp import NORMALISER_EPS, Network
from supple.agents.nets import BATCH_NORM_EPS, RMS_NORM_EPS
from supple.agents.ppo import GreedyPolicy
from supple.deploy.joints import check_joints
from supple.envs.base import Box, Discrete, EnvSpec
from supple.errors import InputError


class Normaliser(nn.Module):
    """(x - mean) / denominator.

    Args:
        mean: (D,).
        std: (D,).
        epsilon: guards small deviations.
        inside: whether epsilon is added to the variance, sqrt(std^2 + epsilon), or to std.
        count: observations behind the statistics, where known.
    """

    mean: Tensor
    denominator: Tensor

    def __init__(
        self, mean: Tensor, std: Tensor, *, epsilon: float, inside: bool, count: int | None
    ) -> None:
        super().__init__()
        self.std, self.epsilon, self.inside, self.count = std.tolist(), epsilon, inside, count
        self.register_buffer("mean", mean.float().clone())
        self.register_buffer("denominator", denominator(std, epsilon, inside=inside))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Normalised observations."""
        normalised: Tensor = (x_BD - self.mean) / self.denominator
        return normalised


def denominator(std: Tensor, epsilon: float, *, inside: bool) -> Tensor:
    """What centred observations are divided by, float32."""
    return (std.double().square() + epsilon).sqrt().float() if inside else std + epsilon


class Memory(nn.Module):
    """One step of ``nn.GRUCell``, as ``agents/mlp.py`` computes it.

    Args:
        cell: its weights are copied.
    """

    def __init__(self, cell: nn.GRUCell) -> None:
        super().__init__()
        self.width = cell.hidden_size
        self.input = _linear(cell.weight_ih, cell.bias_ih)
        self.hidden = _linear(cell.weight_hh, cell.bias_hh)

    def forward(self, x_BD: Tensor, state_BH: Tensor) -> Tensor:
        """The memory afterwards."""
        gates, own = self.input(x_BD), self.hidden(state_BH)
        (ir, iz, inew), (hr, hz, hnew) = gates.chunk(3, dim=-1), own.chunk(3, dim=-1)
        update = torch.sigmoid(iz + hz)
        candidate = torch.tanh(inew + torch.sigmoid(ir + hr) * hnew)
        after: Tensor = candidate + update * (state_BH - candidate)
        return after


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BH: Tensor) -> Tensor:
        """(B, H) -> (B, H)."""
        summed: Tensor = x_BH + self.inner(x_BH)
        return summed


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps); the gain is in the layer after it."""

    eps = RMS_NORM_EPS

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x_BH: Tensor) -> Tensor:
        """(B, H) -> (B, H)."""
        return F.rms_norm(x_BH, (self.width,), eps=self.eps)


class PlainPolicy(nn.Module):
    """Observation to action and command, the same numbers as the agent's ``policy()``.

    Continuous: ``action = tanh(head)`` or ``head``, what the agent calls its action, and
    ``command = clamp(offset + scale * clamp(action, -1, 1), low, high)``, in the simulator's or
    robot's units; clamps only where the environment clips. Discrete: ``scores = head``,
    ``action = argmax``.

    Args:
        normaliser: of observations, or None.
        memory: in front of the body, or None.
        body: Linear, ReLU, Tanh, ELU, Residual and RmsNorm modules.
        squash: whether a tanh follows.
        spec: the environment's facts, which say how actions become commands.
    """

    scale: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        normaliser: Normaliser | None,
        memory: Memory | None,
        body: nn.Sequential,
        *,
        squash: bool,
        spec: EnvSpec,
    ) -> None:
        super().__init__()
        self.normaliser, self.memory, self.body, self.squash = normaliser, memory, body, squash
        self.choices = spec.action.n if isinstance(spec.action, Discrete) else 0
        self.actions = spec.action.size
        self.clip = isinstance(spec.action, Box) and spec.action.clip
        first = memory.input if memory else next(m for m in body.modules() if _is_linear(m))
        self.inputs = cast(nn.Linear, first).in_features
        self.memory_width = memory.width if memory else 0
        if isinstance(spec.action, Box):
            scale, offset = command_map(spec)
            # Whole numbers in a description stay floats in a graph.
            self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
            self.register_buffer("offset", torch.tensor(offset, dtype=torch.float32))
        limits = command_clip(spec)
        self.clips_commands = limits is not None
        for name, values in zip(("low", "high"), limits or (), strict=False):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.requires_grad_(False)

    def forward(self, obs_BD: Tensor, memory_BH: Tensor | None = None) -> tuple[Tensor, ...]:
        """(action (B, A), command (B, A)) or (action (B,) int64, scores (B, A)); then the memory.

        The memory after the step, (B, H), is given where the policy has one.
        """
        x = self.normaliser(obs_BD) if self.normaliser else obs_BD
        after = None
        if self.memory is not None:
            x = after = self.memory(x, memory_BH)
        head = self.body(x)
        fine = torch.isfinite(obs_BD).all(1, keepdim=True)
        fine = fine & torch.isfinite(head).all(1, keepdim=True)
        head = torch.where(fine, head, 0.0)
        if self.choices:
            outputs = (head.argmax(1), head)
        else:
            action = torch.tanh(head) if self.squash else head
            outputs = (action, self.command(action))
        if after is None:
            return outputs
        assert memory_BH is not None
        kept = torch.isfinite(memory_BH).all(1, keepdim=True)
        before = torch.where(kept, memory_BH, 0.0)
        return (*outputs, torch.where(fine, after, before))

    def command(self, action_BA: Tensor) -> Tensor:
        """What the robot is told where the policy acts so, (B, A)."""
        bounded = action_BA.clamp(-1.0, 1.0) if self.clip else action_BA
        command: Tensor = self.offset + self.scale * bounded
        return torch.clamp(command, self.low, self.high) if self.clips_commands else command


def command_map(spec: EnvSpec) -> tuple[list[float], list[float]]:
    """Scale and offset, (A,), from policy action to command: the robot's where it is described.

    In full precision; the graphs hold them in float32.
    """
    assert isinstance(spec.action, Box)
    robot = spec.deployment
    if robot and robot.action_scale is not None and robot.action_offset is not None:
        return [*map(float, robot.action_scale)], [*map(float, robot.action_offset)]
    pairs = list(zip(spec.action.low, spec.action.high, strict=True))
    return [(high - low) / 2 for low, high in pairs], [(high + low) / 2 for low, high in pairs]


def command_clip(spec: EnvSpec) -> tuple[list[float], list[float]] | None:
    """Lowest and highest command, (A,) each, where the simulator clips commands."""
    robot = spec.deployment
    if robot is None or not robot.action_clip_low or not robot.action_clip_high:
        return None
    return [*map(float, robot.action_clip_low)], [*map(float, robot.action_clip_high)]


def plain_policy(agent: Agent, spec: EnvSpec) -> PlainPolicy:
    """The agent's deterministic policy in plain layers, on the CPU.

    Raises:
        InputError: an agent whose policy is not built of known layers, or an environment that
            describes another robot than it drives.
    """
    check_joints(spec)
    policy = agent.policy()
    if isinstance(policy, FoldedPolicy) and isinstance(agent, FlashSAC):
        return _norm_bounded(policy, agent, spec).cpu()
    if isinstance(policy, GreedyPolicy):
        return _perceptron(policy, spec).cpu()
    raise InputError(
        f"cannot export {type(policy).__name__}: known are the policies of FlashSAC and PPO; add"
        " yours to supple/deploy/plain.py"
    )


def _norm_bounded(policy: FoldedPolicy, agent: FlashSAC, spec: EnvSpec) -> PlainPolicy:
    """FlashSAC's: its first batch norm is the normaliser and stays visible, the rest is folded."""
    norm = agent.actor.trunk.input_norm
    variance = norm.running_var[0]
    normaliser = Normaliser(
        norm.running_mean[0],
        variance.double().sqrt().float(),
        epsilon=BATCH_NORM_EPS,
        inside=True,
        count=None,
    )
    weight = agent.actor.trunk.input_linear.weight[0].double()
    first = _linear(weight * norm.scale[0].double(), weight @ norm.shift[0].double())
    blocks = [Residual(cast(nn.Sequential, block)) for block in policy.block]
    body = nn.Sequential(first, *blocks, RmsNorm(weight.shape[0]), policy.mean)
    return PlainPolicy(normaliser, None, body, squash=True, spec=spec)


def _perceptron(policy: GreedyPolicy, spec: EnvSpec) -> PlainPolicy:
    """PPO's; of a head that also tells its standard deviation only the means are kept."""
    actor: Network = policy.actor
    distribution, found = policy.distribution, actor.normaliser
    normaliser = None
    if found.enabled:
        count = int(found._count)
        normaliser = Normaliser(
            found.mean, found.std, epsilon=NORMALISER_EPS, inside=False, count=count
        )
    layers = list(actor.layers)
    if not isinstance(distribution, Categorical):
        last, size = cast(nn.Linear, layers[-1]), spec.action.size
        layers[-1] = _linear(last.weight[:size], last.bias[:size])
    return PlainPolicy(
        normaliser,
        Memory(actor.cell) if actor.cell is not None else None,
        nn.Sequential(*layers),
        squash=isinstance(distribution, SquashedGaussian),
        spec=spec,
    )


@torch.no_grad()
def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A float32 layer with these numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)
