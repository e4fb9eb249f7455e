"""The two kinds of failure a user can act on; the command line turns them into exit statuses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from operator import attrgetter
from typing import Any


class InputError(ValueError):
    """The request cannot be met as given: the text says expected, got, what to do. Status 2."""


class SimulatorError(RuntimeError):
    """A simulator broke its contract while running: names the field and the step. Status 1."""


def require_finite(settings: Any, prefix: str) -> None:
    """Refuse NaN and infinity anywhere in a settings dataclass.

    Args:
        settings: a dataclass, possibly nested.
        prefix: of the flags' names, for example ``--agent.``

    Raises:
        InputError: names the flag.
    """
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        flag = prefix + item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            require_finite(value, flag + ".")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{flag} must be a finite number, got {value}")


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
