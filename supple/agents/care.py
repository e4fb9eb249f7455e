"""Gradient steps whose loss or gradient is not finite are left out, on the device.

NaN times 0 is NaN, so a bad step cannot be scaled away: what it would have changed is selected
against what was there before, or what leads there against what changes nothing (``Adam``). The
selection fuses into the compiled step. Run eagerly on the CPU, where reading a flag costs nothing,
a bad step simply ends early. Steps that are finite come to the same bits as without any of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from supple.errors import require_rules


@dataclass(kw_only=True, slots=True)
class CareSettings:
    """What to do about gradient steps that are not finite, and therefore left out."""

    patience: int = 10
    """So many in a row take the networks back to the newest checkpoint, >= 1."""
    lr_factor: float = 0.5
    """Multiplies the learning rates each time, in (0, 1]."""
    rollbacks: int = 3
    """After so many the run ends, >= 0."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        rules = (
            ("patience", self.patience >= 1, ">= 1"),
            ("lr_factor", 0 < self.lr_factor <= 1, "in (0, 1]"),
            ("rollbacks", self.rollbacks >= 0, ">= 0"),
        )
        require_rules(self, "--care.", rules)


def is_readable(flag: Tensor) -> bool:
    """Whether looking at a value here stops nothing: on the CPU, while nothing is traced."""
    return flag.device.type == "cpu" and get_proxy_mode() is None


def all_finite(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Whether a loss and every number of its gradients are finite, 0-d bool.

    Gradients so large that their squares leave float32 count as not finite.
    """
    if loss.is_cuda:
        norms = torch.stack(torch._foreach_norm(list(gradients)))
    else:  # compiled, a call of that operator would stand between other operations
        norms = torch.stack([torch.linalg.vector_norm(each) for each in gradients])
    return torch.isfinite(norms.sum() + loss.detach())


@torch.no_grad()
def undo_unless(good: Tensor, values: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Give every tensor its former values back, in place, unless ``good`` (0-d bool)."""
    if is_readable(good):
        if not good:
            for value, old in zip(values, before, strict=True):
                value.copy_(old)
        return
    for value, old in zip(values, before, strict=True):
        value.copy_(torch.where(good, value, old))


@dataclass(frozen=True, slots=True)
class Caught:
    """A gradient step that was left out, complete: enough to repeat it."""

    inputs: tuple[Tensor, ...]
    state: Mapping[str, Any]
    """The agent's, as the step met it."""


class Skips:
    """Counts, on the device, of the gradient steps that were left out.

    Args:
        names: the kinds of steps.
        device: where the counts live.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        def counts() -> dict[str, Tensor]:
            return {name: torch.zeros((), dtype=torch.int64, device=device) for name in names}

        self.total, self.in_a_row = counts(), counts()
        self.newest: tuple[Tensor, ...] = ()
        """What the newest step was given."""
        self._kinds: tuple[str, ...] = ()
        """Of the newest step."""
        self.caught: Caught | None = None

    def count(self, name: str, good: Tensor) -> None:
        """Note whether a step was taken; part of the step."""
        self.total[name].add_(~good)
        self.in_a_row[name].copy_(torch.where(good, 0, self.in_a_row[name] + 1))

    def note(
        self,
        kinds: tuple[str, ...],
        inputs: tuple[Tensor, ...],
        state: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Remember what a step was given, and all of it where that was left out.

        A GPU is not asked: there, ``catch`` finds the newest step, where that was left out, and no
        earlier one, whose inputs may have been written over since.

        Args:
            kinds: of the steps that were taken at once, all with these inputs.
            inputs: tensors.
            state: copies the agent's state.
        """
        self._kinds, self.newest = kinds, inputs
        if self.caught is None and is_readable(next(iter(self.total.values()))):
            self.catch(state)

    def catch(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Keep the newest step, if it was left out; copies to the host.

        A kind that it is not of may have been left out before: that says nothing of this step.
        """
        if self.caught is None and any(int(self.in_a_row[kind]) for kind in self._kinds):
            self.caught = Caught(tuple(value.clone() for value in self.newest), state())

    def longest(self) -> int:
        """Steps left out one after the other until now; copies to the host."""
        return max(int(count) for count in self.in_a_row.values())

    def skipped(self) -> int:
        """Steps left out so far; copies to the host."""
        return sum(int(count) for count in self.total.values())

    def forget(self) -> None:
        """The networks went back: nothing was left out in a row."""
        self.caught = None
        for count in self.in_a_row.values():
            count.zero_()

    def tensors(self) -> list[Tensor]:
        """What ``count`` changes."""
        return [*self.total.values(), *self.in_a_row.values()]

    def state_dict(self) -> dict[str, Any]:
        """Tensors only."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value."""
        for name, counts in (("total", self.total), ("in_a_row", self.in_a_row)):
            for key, own in counts.items():
                own.copy_(state[name][key])
