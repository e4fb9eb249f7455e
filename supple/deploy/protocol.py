"""Packets between runner and robot, as ``runtime/link.h``: a head, then numbers or text."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

_HEAD = struct.Struct("<4sHHIId")
_MAGIC, _VERSION = b"SUPL", 1
MAX_BYTES = 65_507
"""The largest UDP packet."""


class Kind(IntEnum):
    """What a packet is."""

    HELLO = 1
    DESCRIPTION = 2
    STATE = 3
    COMMAND = 4
    DAMP = 5


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that was read."""

    kind: Kind
    sequence: int
    numbers: np.ndarray
    """float32."""


def pack(kind: Kind, sequence: int, time: float, numbers: Sequence[float] | np.ndarray) -> bytes:
    """A packet of numbers; ``time`` is the sender's clock [s]."""
    values = np.asarray(numbers, "<f4")
    return _HEAD.pack(_MAGIC, _VERSION, kind, sequence, len(values), time) + values.tobytes()


def pack_description(record: Mapping[str, Any], hello: bytes = b"") -> bytes:
    """What a robot says of itself, with the number of the hello it answers: the way is timed."""
    text = json.dumps(record).encode()
    sequence = _HEAD.unpack_from(hello)[3] if hello else 0
    return _HEAD.pack(_MAGIC, _VERSION, Kind.DESCRIPTION, sequence, len(text), 0.0) + text


def unpack(data: bytes) -> Packet | None:
    """A packet of numbers; None for anything else, which a robot ignores."""
    if len(data) < _HEAD.size:
        return None
    magic, version, kind, sequence, count, _ = _HEAD.unpack_from(data)
    known = magic == _MAGIC and version == _VERSION and kind in set(Kind) - {Kind.DESCRIPTION}
    if not known or len(data) != _HEAD.size + 4 * count:
        return None
    return Packet(Kind(kind), sequence, np.frombuffer(data, "<f4", offset=_HEAD.size))


def is_hello(data: bytes) -> bool:
    """Whether a runner introduces itself; nothing else may claim a robot."""
    packet = unpack(data)
    return packet is not None and packet.kind is Kind.HELLO
