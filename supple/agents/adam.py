"""Adam whose whole state lives on the device, so that a step can be traced, compiled or captured.

Source: Adam, arXiv:1412.6980; the arithmetic is that of ``torch.optim.Adam`` without weight decay
(tests/agents/test_adam.py). Unlike it, one step counter serves all tensors, and neither the counter
nor the learning rate is ever read by the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Adam:
    """Steps of Adam over a list of tensors, in place.

    Args:
        params: what is optimised, one device.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        device = self.params[0].device
        self.rate = torch.zeros((), device=device)
        """Learning rate of the next step; fill it, never replace it."""
        # float64: 1 - 0.999^count would lose four digits in float32 at the first steps.
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = [torch.zeros_like(param) for param in self.params]
        self.square = [torch.zeros_like(param) for param in self.params]

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...]) -> None:
        """Move every tensor against its gradient; gradients come in the order of ``params``."""
        self.count.add_(1)
        mean_share = (1 - BETA1**self.count).float()
        square_share = (1 - BETA2**self.count).float()
        torch._foreach_lerp_(self.mean, gradients, 1 - BETA1)
        torch._foreach_mul_(self.square, BETA2)
        torch._foreach_addcmul_(self.square, gradients, gradients, value=1 - BETA2)
        spread = torch._foreach_sqrt(self.square)
        torch._foreach_mul_(spread, square_share.rsqrt())
        torch._foreach_add_(spread, EPS)
        move = torch._foreach_div(self.mean, spread)
        torch._foreach_mul_(move, self.rate / mean_share)
        torch._foreach_sub_(self.params, move)

    def tensors(self) -> list[Tensor]:
        """Every tensor a step changes."""
        return [self.count, *self.params, *self.mean, *self.square]

    def mean_gradient_norm(self) -> Tensor:
        """Norm of the running mean of the gradients, corrected for its start, 0-d."""
        norm = torch.nn.utils.get_total_norm(self.mean)
        return norm / (1 - BETA1 ** self.count.clamp_min(1)).float()

    def state_dict(self) -> dict[str, Any]:
        """Counter and moments, in the order of ``params``."""
        return {"count": self.count, "mean": self.mean, "square": self.square}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value, in place."""
        self.count.copy_(state["count"])
        for own, recorded in zip(self.mean, state["mean"], strict=True):
            own.copy_(recorded)
        for own, recorded in zip(self.square, state["square"], strict=True):
            own.copy_(recorded)
