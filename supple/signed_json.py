"""Manifests: JSON that names its format and version and holds its own SHA-256.

The digest is that of the file with the 64 digits of ``sha256`` replaced by zeros.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from supple.errors import InputError

KINDS = {"supple-bundle": "a bundle, for the robot", "supple-checkpoint": "a run's checkpoint"}
UNSIGNED = "0" * 64
"""What stands for the digest while it is computed."""


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sign(text: str) -> bytes:
    """The file's content for JSON in which ``UNSIGNED`` is still there; its first place counts."""
    return text.replace(UNSIGNED, sha256(text.encode()), 1).encode()


def own_digest(data: bytes, listed: object) -> str:
    """What ``sha256`` should be in a file that lists ``listed``."""
    return sha256(data.replace(str(listed).encode(), UNSIGNED.encode(), 1))


def parse(data: bytes, where: object, *, kind: str, version: int, remedy: str) -> dict[str, Any]:
    """The record, of this format and version; its digest is not looked at.

    Args:
        data: the file's content.
        where: what to call it.
        kind: its ``format``.
        version: its ``version``.
        remedy: what to do about another one.

    Raises:
        InputError: no plain JSON, or of another format or version; one line.
    """
    try:
        record = json.loads(
            data,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_without_repeats,
        )
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is damaged: expected JSON, got {short(error)}; {remedy}"
        ) from error
    found = record.get("format") if isinstance(record, dict) else record
    if found != kind and isinstance(found, str) and found in KINDS:
        raise InputError(f"{where} is that of {KINDS[found]}, not of {KINDS[kind]}; {remedy}")
    if found != kind:
        raise InputError(
            f"{where} is foreign or damaged: expected format {kind}, got {short(repr(found))};"
            f" {remedy}"
        )
    assert isinstance(record, dict)
    found = record.get("version")
    if found != version:
        cause = "damaged; "
        if type(found) is int:
            newer = found > version
            cause = f"of a{' newer' if newer else 'n older'} supple; "
            cause += "upgrade supple or " if newer else "use the supple that wrote it, or "
        raise InputError(
            f"{where}: expected format version {version}, got {short(repr(found))}, {cause}{remedy}"
        )
    return record


def short(text: object, most: int = 100) -> str:
    """One line of at most so many characters."""
    return " ".join(str(text).split())[:most]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}, which is beyond every float")
    return value


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ on which of two equal keys they take."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} twice in an object")
    return record
