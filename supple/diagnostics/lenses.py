"""What each mode of instability looks at: the decision, its derivatives, and how far it moved.

Shapes: ``N`` states, ``D`` observation width, ``R`` rows of a factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from supple.diagnostics import sensitivity as se
from supple.diagnostics.perturbation import Respond
from supple.diagnostics.policies import Policy, candidates, preference_temperature
from supple.diagnostics.states import States

TOLERANCE = 0.1
"""Project default: a command that moves by this much of its half range is another decision."""
FLIPPED = 0.5
"""Between the same choice (0) and another one (1)."""


class Lens(NamedTuple):
    """What a mode looks at."""

    obs: Tensor
    held: tuple[Tensor, ...]
    decide: se.Function
    """(N, D) and what is held, to the numbers whose change is a change of the decision."""
    kind: str
    """``point``: distance between numbers; ``choice``: the largest; ``gaussian``: divergence."""
    rows: se.Function
    """(N, D) and what is held, to the factor (N, R, D)."""
    slopes: se.Function | None = None
    """Of a choice: to the derivatives of all choices, (N, C, D)."""

    @property
    def tolerance(self) -> float:
        """What response is another decision."""
        return FLIPPED if self.kind == "choice" else TOLERANCE

    def factor(self, obs_ND: Tensor) -> Tensor:
        """Of the states of the lens."""
        return self.rows(obs_ND, *self.held)

    def respond(self, obs_ND: Tensor, *held: Tensor) -> Respond:
        """How far the decision is from that at ``obs_ND``."""
        with torch.no_grad():
            before = self.decide(obs_ND, *held)
        if self.kind == "choice":
            best = before.argmax(-1)
            return lambda moved: (self.decide(moved, *held).argmax(-1) != best).double()
        if self.kind == "gaussian":
            return lambda moved: _divergence(before, self.decide(moved, *held)).mul(2).sqrt()
        return lambda moved: (self.decide(moved, *held) - before).double().norm(dim=-1)

    def distance(self, obs_ND: Tensor, scale_D: Tensor, strength_N: Tensor) -> Tensor:
        """To the decision boundary: of another choice, or of the tolerance."""
        if self.slopes is not None:
            with torch.no_grad():
                z_NC = self.decide(obs_ND, *self.held)
            return se.boundary_distance(z_NC, self.slopes(obs_ND, *self.held) * scale_D)
        return TOLERANCE / strength_N


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL between diagonal Gaussians, (N,) float64."""
    mean, log_std = before.double().chunk(2, -1)
    moved, moved_log_std = after.double().chunk(2, -1)
    ratio = (2 * (log_std - moved_log_std)).exp()
    shift = ((moved - mean) * (-moved_log_std).exp()).square()
    return (moved_log_std - log_std + 0.5 * (ratio + shift - 1)).sum(-1).clamp(min=0)


def observed(
    policy: Policy, mode: str, states: States, generator: torch.Generator
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What a lens of this mode reads of some states: observations, and what is held.

    Args:
        policy: frozen.
        mode: one of ``policy.modes``.
        states: which.
        generator: draws the candidates of the mode ``critic``.
    """
    if mode != "critic":
        return states.obs, (states.memory,)
    return states.critic_obs, (candidates(policy, states.obs, generator),)


def lens_of(policy: Policy, mode: str, states: States, generator: torch.Generator) -> Lens:
    """What a mode of this policy looks at.

    Args:
        policy: frozen.
        mode: one of ``policy.modes``.
        states: where.
        generator: draws the candidates of the mode ``critic``.
    """
    obs, held = observed(policy, mode, states, generator)
    if mode in ("choice", "information"):
        logits = policy.logits
        assert logits is not None
        factor = se.choice_factor if mode == "choice" else se.information_factor
        rows = lambda obs, *h: factor(logits, obs, *h)  # noqa: E731
        slopes = lambda obs, *h: se.jacobian(logits, obs, *h)  # noqa: E731
        return Lens(obs, held, logits, "choice", rows, slopes)
    if mode == "action":
        command = policy.command
        assert command is not None
        rows = lambda obs, *h: se.jacobian(command, obs, *h)  # noqa: E731
        return Lens(obs, held, command, "point", rows)
    if mode == "fisher":
        gaussian = policy.gaussian
        assert gaussian is not None
        se.require_reads_mean(se.fisher_factor)
        rows = lambda obs, *h: se.fisher_factor(gaussian, obs, *h)  # noqa: E731
        return Lens(obs, held, gaussian, "gaussian", rows)
    value = policy.value
    assert value is not None
    values = se.over_candidates(value)
    heat = preference_temperature(values, policy.alpha, obs, *held)
    rows = lambda obs, *h: se.choice_factor(values, obs, *h, temperature=heat)  # noqa: E731
    slopes = lambda obs, *h: se.candidate_slopes(value, obs, *h)  # noqa: E731
    return Lens(obs, held, values, "choice", rows, slopes)
