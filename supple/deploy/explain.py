"""Says in one sentence what is wrong with a runtime that does not answer as it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from supple.deploy.golden import channel_of
from supple.deploy.runtimes import Outputs, Runtime

FACTOR_SPREAD = 1e-3
"""Ratios this close together are one factor."""


def relative_error(
    found: np.ndarray, expected: np.ndarray, unit: np.ndarray | float = 1.0
) -> np.ndarray:
    """|found - expected| / max(unit, |expected|); infinite where ``found`` is NaN."""
    wide = expected.astype(np.float64)
    error = np.abs(found.astype(np.float64) - wide) / np.maximum(unit, np.abs(wide))
    return np.where(np.isfinite(error), error, np.inf)


def command_unit(contract: Mapping[str, Any]) -> np.ndarray | float:
    """What a unit of action is in commands, at least 1: an error of the action grows with it."""
    for step in contract["action"]["pipeline"]:
        if step["step"] == "scale":
            unit: np.ndarray = np.maximum(1, np.abs(step["values"]))
            return unit
    return 1.0


def worst_error(
    found: Outputs, expected: Outputs, contract: Mapping[str, Any], tolerance: float
) -> float:
    """Largest relative error of actions, commands and memories.

    A choice that differs counts as infinite, unless the best two scores are as good as equal.
    """
    parts = [relative_error(found.command, expected.command, command_unit(contract))]
    if expected.memory.size:
        parts.append(relative_error(found.memory, expected.memory))
    if contract["action"]["kind"] == "discrete":
        ranked = np.sort(expected.command, axis=1)
        best, second = ranked[:, -1], ranked[:, -2:][:, 0]  # one and the same, of a single choice
        clear = best - second > 4 * tolerance * np.maximum(1, abs(best))
        differs = (found.action != expected.action)[:, 0] & clear
        parts.append(np.where(differs, np.inf, 0.0))
    else:
        parts.append(relative_error(found.action, expected.action))
    return max(float(part.max(initial=0.0)) for part in parts)


def explain(
    runtime: Runtime,
    found: Outputs,
    expected: Outputs,
    *,
    observation: np.ndarray,
    start: np.ndarray,
    contract: Mapping[str, Any],
    tolerance: float,
) -> str:
    """The likeliest single fault, or how large the difference is and where."""
    names = list(contract["action"]["names"])
    if contract["action"]["kind"] == "continuous":
        zero = np.array(contract["action"]["zero_action_command"])
        sentence = _swapped(found, expected, names, tolerance, command_unit(contract))
        sentence = sentence or _scaled(found, expected, names, zero)
        if sentence:
            return sentence
    reversed_obs = reverse_history(observation, contract["observation"]["terms"])
    if reversed_obs is not None:
        again = runtime.replay(reversed_obs, start)
        if worst_error(again, expected, contract, tolerance) <= tolerance:
            return "the history is reversed: it answers as golden when frames run the other way"
    return _where(found, expected, names, command_unit(contract))


def _swapped(
    found: Outputs,
    expected: Outputs,
    names: Sequence[str],
    tolerance: float,
    command: np.ndarray | float,
) -> str | None:
    for one, other in combinations(range(len(names)), 2):
        order = np.arange(len(names))
        order[[one, other]] = order[[other, one]]
        for kind, unit in (("action", 1.0), ("command", command)):
            given, wanted = getattr(found, kind), getattr(expected, kind)
            differs = relative_error(given, wanted, unit).max() > tolerance
            if differs and relative_error(given[:, order], wanted, unit).max() <= tolerance:
                return f"the joints {names[one]} and {names[other]} are swapped in its {kind}s"
    return None


def _scaled(
    found: Outputs, expected: Outputs, names: Sequence[str], zero: np.ndarray
) -> str | None:
    """A factor per joint between actions, or between commands less those of action 0."""
    for kind, centre in (("action", 0.0), ("command", zero)):
        given = getattr(found, kind).astype(np.float64) - centre
        wanted = getattr(expected, kind).astype(np.float64) - centre
        factors = (given * wanted).sum(0) / np.maximum((wanted * wanted).sum(0), 1e-30)
        odd = np.abs(factors - 1) > FACTOR_SPREAD
        fits = np.allclose(given, factors * wanted, rtol=1e-4, atol=1e-5)
        if fits and odd.any():
            which = ", ".join(names[i] for i in np.flatnonzero(odd).tolist())
            factor = float(np.median(factors[odd]))
            return f"the action scale differs: {kind}s of {which} are {factor:.4g} times golden"
    return None


def reverse_history(
    observation: np.ndarray, terms: Sequence[Mapping[str, Any]]
) -> np.ndarray | None:
    """Observations whose frames run the other way; None where there is one frame."""
    length = 1 + max((term.get("history") or 0) for term in terms)
    if length == 1:
        return None
    keys = [channel_of(term) for term in terms]
    place = {key: index for index, key in enumerate(keys)}
    order = [place.get((name, length - 1 - age), index) for index, (name, age) in enumerate(keys)]
    return observation[:, order]


def _where(
    found: Outputs, expected: Outputs, names: Sequence[str], unit: np.ndarray | float
) -> str:
    error = relative_error(found.command, expected.command, unit)
    if error.max(initial=0.0) == 0:
        return "choices or memories differ from golden while commands agree"
    row, column = divmod(int(error.argmax()), error.shape[1])
    name = names[column] if len(names) == error.shape[1] else f"score {column}"
    return (
        f"{name} at golden step {row}: expected {float(expected.command[row, column]):.6g},"
        f" got {float(found.command[row, column]):.6g}"
    )
