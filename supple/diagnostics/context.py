"""What the groups of measurements share while one subject is measured.

Forward and backward passes are made once per network and data set, whoever asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from supple.diagnostics.data import DataSets, Transitions, generator_for
from supple.diagnostics.features import Features
from supple.diagnostics.reading import Reading, undefined
from supple.diagnostics.subject import Subject
from supple.errors import InputError

Suite = Literal["quick", "standard", "full"]
SUITES: tuple[Suite, ...] = ("quick", "standard", "full")


class Pass(NamedTuple):
    """One forward and backward pass of a network's loss."""

    loss: Tensor
    """Mean over rows, summed over members, 0-d."""
    units: dict[str, Tensor]
    """Activations by layer, (E, N, H)."""
    unit_gradients: dict[str, Tensor]
    """Of the sum over rows, (E, N, H)."""
    gradients: list[Tensor]
    """Of the mean over rows, in the order of the view's parameters."""


@dataclass(kw_only=True)
class Context:
    """One subject, its data, and what was already computed of them."""

    subject: Subject
    data: DataSets
    suite: Suite = "quick"
    arrays: dict[str, Tensor] = field(default_factory=dict)
    """What plots show; groups add to it."""
    _passes: dict[tuple[str, int], Pass] = field(default_factory=dict)
    _features: dict[tuple[str, int], Features] = field(default_factory=dict)

    def sets(self) -> Iterator[tuple[str, Transitions]]:
        """``recent`` and ``anchor``, as far as there are any, by name."""
        for name in ("recent", "anchor"):
            found: Transitions | None = getattr(self.data, name)
            if found is not None:
                yield name, found
        if not self.data.stored:
            yield "rollout", self.data.current()

    def twin_generator(self, number: int) -> torch.Generator:
        """For the number-th function that networks are fitted to: the same for all of them."""
        return generator_for(self.subject.agent.device, self.subject.seed, "fit", number)

    def run(self, role: str, data: Transitions) -> Pass:
        """The loss of a learning network with activations and gradients."""
        key = (role, id(data))
        if key not in self._passes:
            self._passes[key] = self._run(role, data)
        return self._passes[key]

    def _run(self, role: str, data: Transitions) -> Pass:
        view = self.subject.views[role]
        objective = self.subject.objective(role, data)
        with torch.enable_grad(), view.tapped() as tapped:
            loss = objective.loss(view.module, *objective.rows)
        parameters = [part for _, part in view.parameters()]
        wanted = [*tapped.values(), *parameters]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        rows = len(data)
        return Pass(
            loss.detach(),
            {name: view.units(part.detach()) for name, part in tapped.items()},
            {
                name: view.units(rows * part)
                for name, part in zip(tapped, found[: len(tapped)], strict=True)
            },
            list(found[len(tapped) :]),
        )

    @torch.no_grad()
    def features(self, role: str, data: Transitions) -> Features:
        """What a network's output layer reads, (E, N, H)."""
        key = (role, id(data))
        if key not in self._features:
            x_ND = self.subject.inputs(role, data)
            self._features[key] = self.subject.views[role].features(x_ND)
        return self._features[key]


def attempt(measure: Callable[[], Iterable[Reading]], **facts: Any) -> list[Reading]:
    """The readings, or one that says why there are none.

    Args:
        measure: gives them.
        facts: fields of that one ``Reading``.
    """
    try:
        return list(measure())
    except InputError as error:
        return [undefined(str(error), **facts)]
