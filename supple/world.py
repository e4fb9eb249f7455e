"""Which of several processes this one is, as torchrun's environment variables say."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from supple.errors import InputError

VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in every process, besides WORLD_SIZE."""


@dataclass(frozen=True, slots=True)
class World:
    """One process's place among those that learn together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of this machine: also its GPU."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def seed_words(self) -> tuple[str | int, ...]:
        """What tells this process's random streams from the others'; the first has a lone run's."""
        return () if self.first else ("rank", self.rank)


def from_environment() -> World:
    """What the variables of torchrun say; alone where WORLD_SIZE is 1 or not set.

    Raises:
        InputError: one of them is missing or makes no sense.
    """
    size = _whole_number("WORLD_SIZE", 1, math.inf) if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        return World()
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} not set: start with torchrun"
            f" --nproc-per-node={size} -m supple train ..., or set WORLD_SIZE, RANK, LOCAL_RANK,"
            " MASTER_ADDR and MASTER_PORT for each process"
        )
    _whole_number("MASTER_PORT", 1, 65535)
    rank = _whole_number("RANK", 0, size - 1)
    return World(rank, size, _whole_number("LOCAL_RANK", 0, size - 1))


def local_size() -> int:
    """How many processes of a run share this machine's memory, as far as torchrun tells.

    Raises:
        InputError: a variable makes no sense.
    """
    name = "LOCAL_WORLD_SIZE"
    told = name in os.environ and from_environment().size > 1
    return _whole_number(name, 1, math.inf) if told else 1


def _whole_number(name: str, low: int, high: float) -> int:
    text = os.environ[name]
    if not text.isdecimal() or not low <= int(text) <= high:
        allowed = f"from {low} to {high}" if math.isfinite(high) else f">= {low}"
        raise InputError(f"the variable {name} must be a whole number {allowed}, got {text!r}")
    return int(text)


def restarted() -> bool:
    """Whether torchrun started this process again after another had failed.

    Raises:
        InputError: the variable it is told by makes no sense.
    """
    name = "TORCHELASTIC_RESTART_COUNT"
    return name in os.environ and _whole_number(name, 0, math.inf) > 0


def may_restart() -> bool:
    """Whether torchrun was told ``--max-restarts``."""
    name = "TORCHELASTIC_MAX_RESTARTS"
    return name in os.environ and _whole_number(name, 0, math.inf) > 0


def attempt() -> str:
    """Names this start of the processes where torchrun's store may remember an earlier one.

    On one machine it keeps its store, stale addresses included, when it restarts them. On several
    it makes a new one, and their counts of restarts may differ.
    """
    on_one = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if on_one else "0"
