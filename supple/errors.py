"""The kinds of failure a user can act on; the command line turns them into exit statuses.

And what a user is told where nothing failed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import typing
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

MOST_CHARACTERS = 1000
"""Of an error's line: a file made to harm may hold names without end."""
INTEGER = "an integer, in digits"
"""What a flag expects that was given text, or 1e6."""


def how_to_install(extra: str) -> str:
    """What an error says of an extra of ours; supple itself comes as a checkout."""
    return f'pip install -e ".[{extra}]" in supple\'s checkout'


def first_line(error: Exception) -> str:
    """What an error of any library says, in a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@functools.cache
def say_once(text: str) -> None:
    """Tell the user on the error stream, however often one command comes by here."""
    print(f"supple: {text}", file=sys.stderr)


class InputError(ValueError):
    """The request cannot be met as given: the text says expected, got, what to do. Status 2."""

    def __init__(self, text: str) -> None:
        half = MOST_CHARACTERS // 2
        super().__init__(text if len(text) <= 2 * half else f"{text[:half]} ... {text[-half:]}")


class SimulatorError(RuntimeError):
    """A simulator broke its contract while running: names the field and the step. Status 1."""


class DivergedError(RuntimeError):
    """Training came to nothing finite, and going back to a checkpoint did not help. Status 1."""


class NotFiniteError(SimulatorError):
    """A simulator gave NaN or infinity where a result was to be worked out."""


def require_values(settings: Any, prefix: str) -> None:
    """Refuse values that no setting takes, anywhere in a settings dataclass.

    NaN, infinity, fractions and integers of more than 64 bits where whole numbers are due, and what
    is none of a field's choices.

    Args:
        settings: a dataclass, possibly nested.
        prefix: of the flags' names, for example ``--agent.``

    Raises:
        InputError: names the flag.
    """
    kind: Any = type(settings)
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        flag = prefix + item.name.replace("_", "-")
        choices = _choices(kind).get(item.name, ())
        whole = value if isinstance(value, tuple) else (value,)
        if dataclasses.is_dataclass(value):
            require_values(value, flag + ".")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{flag} must be a finite number, got {value}")
        elif isinstance(value, float) and _hints(kind)[item.name] is int:
            raise InputError(f"{flag} must be a whole number, an int, got {value!r}")
        elif any(isinstance(each, int) and abs(each) >= 2**63 for each in whole):
            raise InputError(f"{flag} must lie within 64 bits, got {value}")
        elif choices and value not in choices:
            raise InputError(f"{flag} must be one of {', '.join(choices)}, got {value}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Of the fields."""
    return typing.get_type_hints(kind)


@functools.cache
def _choices(kind: Any) -> dict[str, tuple[Any, ...]]:
    """Of the fields that are a ``Literal``."""
    return {
        name: typing.get_args(hint)
        for name, hint in _hints(kind).items()
        if typing.get_origin(hint) is typing.Literal
    }


def require_rules(settings: Any, prefix: str, rules: Iterable[tuple[str, bool, str]]) -> None:
    """Refuse the first value that breaks its rule.

    Args:
        settings: a dataclass, possibly nested.
        prefix: of the flags' names, for example ``--agent.``
        rules: a field's name (dotted where nested), whether its value is good, what is expected.

    Raises:
        InputError: names the flag.
    """
    for name, holds, expected in rules:
        if not holds:
            flag = prefix + name.replace("_", "-")
            raise InputError(f"{flag} must be {expected}, got {attrgetter(name)(settings)}")
