"""The policy in its environment while its observations are disturbed: what it costs, what changes.

Disturbances are made in ``disturbances.py``, directions in ``instability.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from supple.diagnostics import disturbances
from supple.diagnostics.directions import compare_states
from supple.diagnostics.instability import Instability, analyse
from supple.diagnostics.policies import Policy
from supple.diagnostics.reading import Reading, reading, undefined
from supple.diagnostics.rollouts import Rollout, Sense
from supple.diagnostics.states import visited
from supple.errors import InputError

WORST = "worst direction at declared noise"
REVERSED = ", reversed"
"""The disturbances that a verdict of a fragile direction rests upon: this one, or its opposite."""


def plans(
    one: Instability, policy: Policy, clean: Rollout, generator: torch.Generator
) -> dict[str, Callable[[], Sense]]:
    """Disturbances by name, each made anew for every rollout.

    Args:
        one: the analysis whose directions are tried.
        policy: on the processor.
        clean: its undisturbed episodes.
        generator: draws noise.
    """
    scale, layout = visited(policy, clean).cpu().obs.std(0), one.layout
    declared = layout.noise
    noise = 0.01 * scale if declared is None else declared
    size, worst = one.noise_along(one.worst) or 0.1, "worst direction of 0.1 sd"
    worst_D, unit_D = size * one.worst, one.scale
    if one.noisy is not None:
        worst, worst_D, unit_D = WORST, one.noisy.worst, noise
    families = {
        name: torch.tensor([own == name for own in layout.families])
        for name in dict.fromkeys(layout.families)
    }
    return {
        # A direction has no sign of its own.
        worst: lambda: disturbances.along(worst_D, 1, unit_D),
        f"{worst}{REVERSED}": lambda: disturbances.along(-worst_D, 1, unit_D),
        worst.replace("worst", "least"): lambda: disturbances.along(one.least, size, one.scale),
        **disturbances.shifts(families, scale, noise, generator),
    }


def cost(
    clean: Rollout, moved: Rollout, chance: float, shift: str, generator: torch.Generator
) -> Reading:
    """What a disturbance costs, over what the policy earns above random actions."""
    facts: dict[str, Any] = {"metric": "ranld_drop", "network": "actor", "n": clean.episodes}
    facts["params"] = {"shift": shift}
    try:
        loss = disturbances.drop(clean, moved, chance, generator)
    except InputError as error:
        return undefined(str(error), **facts)
    return reading(loss.mean, ci95=(loss.low, loss.high), **facts)


def quotients(
    policy: Policy, one: Instability, moved: Rollout, shift: str, generator: torch.Generator
) -> list[Reading]:
    """Whether the policy is sensitive to the same inputs where a disturbance takes it.

    Args:
        policy: on the processor.
        one: the undisturbed analysis.
        moved: disturbed episodes.
        shift: the disturbance's name.
        generator: draws random directions.
    """
    states = visited(policy, moved).cpu()
    params: Mapping[str, str] = {"shift": shift}
    facts: dict[str, Any] = {"network": "actor", "params": params, "n": len(states.obs)}
    try:
        other = analyse(policy, one.mode, states, one.layout, generator, like=one)
    except InputError as error:
        return [undefined(str(error), metric="ranld_fcq", **facts)]
    found = compare_states(one.found, other.found)
    return [
        reading(found.quotient, metric="ranld_fcq", **facts),
        reading(found.swapped, metric="ranld_fcq_swapped", **facts),
        reading(found.cosine2, metric="ranld_shift_cosine2", **facts),
    ]
