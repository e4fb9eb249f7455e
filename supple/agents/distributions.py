"""What a policy network's numbers mean: distributions over actions.

Shapes: ``M`` rows, ``A`` actions or choices, ``W`` numbers of the network's head, ``P`` numbers
that describe a distribution. A distribution is one tensor ``params`` (M, P), so that a rollout can
store it in one column. Random numbers come from outside.

Source: proximal policy optimisation, arXiv:1707.06347; the squashed Gaussian's log-probability,
arXiv:1801.01290, appendix C.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_STD_LOW, LOG_STD_HIGH = math.log(1e-3), math.log(10.0)
"""A standard deviation never leaves 0.001 to 10, so it cannot become negative or vanish."""


class _Bounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        x, *ctx.bounds = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high), (gradient,) = ctx.saved_tensors, ctx.bounds, gradients
        outward = ((x > high) & (gradient < 0)) | ((x < low) & (gradient > 0))
        return torch.where(outward, 0.0, gradient), None, None


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """``x.clamp(low, high)`` out of which descent finds back.

    clamp has no gradient beyond its bounds: what once left them would stay there for good. This
    one keeps the part that leads back, and drops the part that leads further out.
    """
    bound: Tensor = _Bounded.apply(x, low, high)
    return bound


class Distribution(nn.Module, ABC):
    """A family of distributions over actions."""

    head_width: int
    """W."""
    width: int
    """P."""
    draw_width: int
    """Numbers of a draw."""
    keeps_draw: bool = False
    """Whether a draw cannot be told from its action and is stored beside it."""
    uniform: bool = False
    """Whether draws begin with uniform random numbers; normal ones otherwise."""
    estimates_entropy: bool = False
    """Whether ``entropy`` reads its random numbers."""

    @abstractmethod
    def params(self, head_MW: Tensor) -> Tensor:
        """Distributions (M, P) from the network's numbers."""

    @abstractmethod
    def sample(self, params_MP: Tensor, noise_MA: Tensor) -> Tensor:
        """A draw of each, (M, draw_width).

        Args:
            params_MP: the distributions.
            noise_MA: standard-normal numbers, or uniform ones in [0, 1).
        """

    @abstractmethod
    def action(self, draw: Tensor) -> Tensor:
        """What the environment takes for a draw: (M, A) floats or (M,) int64."""

    @abstractmethod
    def draw_of(self, action: Tensor) -> Tensor:
        """The draw that an action came from, (M, draw_width); unless ``keeps_draw``."""

    @abstractmethod
    def mode(self, head_MW: Tensor) -> Tensor:
        """The deterministic action, as ``action`` gives it."""

    @abstractmethod
    def log_prob(self, params_MP: Tensor, draw: Tensor) -> Tensor:
        """Log-probability of draws, (M,). Terms that do not depend on ``params`` may be left out.

        Only differences between distributions of one family are ever used.
        """

    @abstractmethod
    def entropy(self, params_MP: Tensor, noise_MA: Tensor) -> Tensor:
        """Entropy [nats], (M,), or an unbiased estimate of it from ``noise_MA``."""

    @abstractmethod
    def divergence(self, old_MP: Tensor, new_MP: Tensor) -> Tensor:
        """KL(old || new) [nats], (M,)."""

    def spread(self, params_MP: Tensor) -> Tensor:
        """Mean standard deviation, 0-d; of choices, the mean probability of the likeliest."""
        return params_MP.chunk(2, dim=-1)[1].exp().mean()


class Gaussian(Distribution):
    """Independent normal distributions; ``params`` are mean and log standard deviation.

    Draws are unbounded: the environment clips.

    Args:
        actions: A.
        initial_std: standard deviation at the start.
        state_dependent: whether the network says it for each state, or one parameter for all.
        device: where the parameter lives.
    """

    def __init__(
        self,
        actions: int,
        *,
        initial_std: float,
        state_dependent: bool,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.draw_width = actions
        self.width = 2 * actions
        self.head_width = 2 * actions if state_dependent else actions
        initial = torch.full((actions,), math.log(initial_std), device=device)
        if state_dependent:
            self.register_buffer("log_std", initial)  # the head adds to it
        else:
            self.log_std = nn.Parameter(initial)
        self._state_dependent = state_dependent

    def params(self, head_MW: Tensor) -> Tensor:
        """Mean and clamped log standard deviation."""
        if self._state_dependent:
            mean, change = head_MW.chunk(2, dim=-1)
            log_std = self.log_std + change
        else:
            mean, log_std = head_MW, self.log_std.expand_as(head_MW)
        return torch.cat((mean, bounded(log_std, LOG_STD_LOW, LOG_STD_HIGH)), dim=-1)

    def sample(self, params_MP: Tensor, noise_MA: Tensor) -> Tensor:
        """Mean + std * noise."""
        mean, log_std = params_MP.chunk(2, dim=-1)
        return mean + log_std.exp() * noise_MA

    def action(self, draw: Tensor) -> Tensor:
        """The draw itself."""
        return draw

    def draw_of(self, action: Tensor) -> Tensor:
        """The action itself."""
        return action

    def mode(self, head_MW: Tensor) -> Tensor:
        """The mean."""
        return self.action(head_MW[..., : self.draw_width])

    def log_prob(self, params_MP: Tensor, draw: Tensor) -> Tensor:
        """Of the normal distributions."""
        mean, log_std = params_MP.chunk(2, dim=-1)
        score = (draw - mean) * (-log_std).exp()
        return (-0.5 * score.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params_MP: Tensor, noise_MA: Tensor) -> Tensor:
        """Exact; ``noise_MA`` is not used."""
        _, log_std = params_MP.chunk(2, dim=-1)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def divergence(self, old_MP: Tensor, new_MP: Tensor) -> Tensor:
        """Exact."""
        old_mean, old_log_std = old_MP.chunk(2, dim=-1)
        new_mean, new_log_std = new_MP.chunk(2, dim=-1)
        ratio = (2 * (old_log_std - new_log_std)).exp()
        shift = ((old_mean - new_mean) * (-new_log_std).exp()).square()
        return (new_log_std - old_log_std + 0.5 * (ratio + shift - 1)).sum(-1)


class SquashedGaussian(Gaussian):
    """A Gaussian through tanh: actions in (-1, 1).

    What is stored is the draw before tanh: recovering it from the action would lose it wherever
    tanh saturates. Its Jacobian cancels from every probability ratio and divergence, so only the
    entropy knows it.
    """

    keeps_draw = True
    estimates_entropy = True

    def action(self, draw: Tensor) -> Tensor:
        """tanh(draw)."""
        return torch.tanh(draw)

    def entropy(self, params_MP: Tensor, noise_MA: Tensor) -> Tensor:
        """Of the squashed distribution: the Gaussian's, and the Jacobian at one draw."""
        draw = self.sample(params_MP, noise_MA)
        # log(1 - tanh(u)^2) in the form that neither overflows nor cancels.
        jacobian = 2 * (math.log(2) - draw - F.softplus(-2 * draw))
        return super().entropy(params_MP, noise_MA) + jacobian.sum(-1)


class Categorical(Distribution):
    """One of ``choices``; ``params`` are log-probabilities."""

    uniform = True
    draw_width = 1

    def __init__(self, choices: int) -> None:
        super().__init__()
        self.head_width = self.width = choices

    def params(self, head_MW: Tensor) -> Tensor:
        """Normalised logits."""
        return F.log_softmax(head_MW, dim=-1)

    def sample(self, params_MP: Tensor, noise_MA: Tensor) -> Tensor:
        """The number of the choice, as a float, by the Gumbel-max rule."""
        tiny = torch.finfo(noise_MA.dtype).tiny
        gumbel = -(-noise_MA.clamp_min(tiny).log()).clamp_min(tiny).log()
        return (params_MP + gumbel).argmax(-1, keepdim=True).float()

    def action(self, draw: Tensor) -> Tensor:
        """The number of the choice."""
        return draw.squeeze(-1).long()

    def draw_of(self, action: Tensor) -> Tensor:
        """Its number as a float."""
        return action.float().unsqueeze(-1)

    def mode(self, head_MW: Tensor) -> Tensor:
        """The likeliest choice."""
        return head_MW.argmax(-1)

    def log_prob(self, params_MP: Tensor, draw: Tensor) -> Tensor:
        """Of the choices."""
        return params_MP.gather(-1, draw.long()).squeeze(-1)

    def entropy(self, params_MP: Tensor, noise_MA: Tensor) -> Tensor:
        """Exact; ``noise_MA`` is not used."""
        return -(params_MP.exp() * params_MP).sum(-1)

    def divergence(self, old_MP: Tensor, new_MP: Tensor) -> Tensor:
        """Exact."""
        return (old_MP.exp() * (old_MP - new_MP)).sum(-1)

    def spread(self, params_MP: Tensor) -> Tensor:
        """Mean probability of the likeliest choice."""
        return params_MP.amax(-1).exp().mean()
