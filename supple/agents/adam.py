"""Adam as a function of tensors, so that a step can be traced, compiled or captured.

Source: Adam, arXiv:1412.6980; the arithmetic is that of ``torch.optim.Adam``, with ``decay`` that
of AdamW (tests/agents/test_adam.py). Unlike them, what changes from step to step, learning rate and
bias corrections, is worked out on the host and put into tensors that the step reads: a compiler
would repeat such scalar arithmetic for every weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from supple.agents.care import is_readable

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Adam:
    """Steps of Adam over a list of tensors, in place. It keeps no count: its owner does.

    Args:
        params: what is optimised, one device.
        decay: ``decayed`` shrink by this times the learning rate at each step, apart from the
            gradient (AdamW, arXiv:1711.05101).
        decayed: some of the params.
    """

    def __init__(
        self, params: Sequence[Tensor], *, decay: float = 0.0, decayed: Sequence[Tensor] = ()
    ) -> None:
        self.params = list(params)
        self._decay = decay
        self._decayed = list(decayed) if decay else []
        device = self.params[0].device
        self.mean = [torch.zeros_like(param) for param in self.params]
        self.square = [torch.zeros_like(param) for param in self.params]
        # Learning rate and root of the mean square, corrected for the moments' start at 0.
        self._rate = torch.zeros((), device=device)
        self._root = torch.zeros((), device=device)
        self._keep = torch.ones((), device=device)

    @property
    def decays(self) -> list[float]:
        """By this times the learning rate each of ``params`` shrinks at a step."""
        shrunk = {id(part) for part in self._decayed}
        return [self._decay if id(part) in shrunk else 0.0 for part in self.params]

    def begin(self, rate: float, number: int | Tensor) -> None:
        """Say what the next step is.

        Args:
            rate: its learning rate.
            number: how many steps there are with it, from 1; a float64 tensor where only the
                device knows.
        """
        self._rate.fill_(rate / (1 - BETA1**number))
        self._root.fill_((1 - BETA2**number) ** -0.5)
        if self._decayed:
            self._keep.fill_(1 - rate * self._decay)

    @torch.no_grad()
    def step(
        self,
        gradients: tuple[Tensor, ...],
        *,
        factor: Tensor | None = None,
        enabled: Tensor | None = None,
    ) -> None:
        """Move every tensor against its gradient.

        Args:
            gradients: in the order of ``params``.
            factor: multiplies the learning rate, 0-d.
            enabled: False leaves everything as it is, whatever the gradients hold, 0-d bool.
        """
        if enabled is not None and is_readable(enabled):
            if not enabled:
                return
            enabled = None
        rate = self._rate if factor is None else self._rate * factor
        keep = self._keep if factor is None else 1 - factor * (1 - self._keep)
        towards = gradients
        beta2: float | Tensor = BETA2
        if enabled is not None:
            # A step of nothing: means move towards themselves, squares neither fade nor grow.
            pairs = list(zip(self.mean, gradients, strict=True))
            towards = tuple(torch.where(enabled, gradient, mean) for mean, gradient in pairs)
            gradients = tuple(torch.where(enabled, gradient, 0) for _, gradient in pairs)
            beta2, rate, keep = (
                torch.where(enabled, now, idle) for now, idle in ((BETA2, 1), (rate, 0), (keep, 1))
            )
        torch._foreach_lerp_(self.mean, towards, 1 - BETA1)
        torch._foreach_mul_(self.square, beta2)
        torch._foreach_addcmul_(self.square, gradients, gradients, value=1 - BETA2)
        spread = torch._foreach_sqrt(self.square)
        torch._foreach_mul_(spread, self._root)
        torch._foreach_add_(spread, EPS)
        move = torch._foreach_div(self.mean, spread)
        torch._foreach_mul_(move, rate)
        if self._decayed:
            torch._foreach_mul_(self._decayed, keep)
        torch._foreach_sub_(self.params, move)

    def tensors(self) -> list[Tensor]:
        """Every tensor a step changes."""
        return [*self.params, *self.mean, *self.square]

    def mean_gradient_norm(self, steps: int) -> Tensor:
        """Norm of the running mean of the gradients after so many steps, 0-d."""
        norm = torch.nn.utils.get_total_norm(self.mean)
        return norm / (1 - BETA1 ** max(steps, 1))

    def state_dict(self) -> dict[str, Any]:
        """Moments, in the order of ``params``."""
        return {"mean": self.mean, "square": self.square}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value, in place."""
        for own, recorded in zip(self.mean, state["mean"], strict=True):
            own.copy_(recorded)
        for own, recorded in zip(self.square, state["square"], strict=True):
            own.copy_(recorded)
