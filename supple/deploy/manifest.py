"""``manifest.json``: what a bundle is, signed by its own digest like a checkpoint's manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from supple.errors import InputError

FORMAT = "supple-bundle"
VERSION = 1
NAME = "manifest.json"
GROUPS = (
    *("origin", "timing", "joints", "gains", "action", "observation", "history", "commands"),
    *("normaliser", "state", "graph", "safety"),
)
"""Field groups of a contract."""
_UNSIGNED = "0" * 64


def canonical(record: Any) -> str:
    """One spelling for equal records."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def contract_digest(contract: Mapping[str, Any]) -> str:
    """What the generated C code carries of a contract."""
    return digest(canonical(contract).encode())


def sign(manifest: Mapping[str, Any]) -> bytes:
    """The file's content: ``sha256`` is that of the file with its own digits replaced by zeros."""
    record = {"format": FORMAT, "version": VERSION, "sha256": _UNSIGNED, **manifest}
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return text.replace(_UNSIGNED, digest(text.encode()), 1).encode()


def is_signed(data: bytes, manifest: Mapping[str, Any]) -> bool:
    """Whether the file is as it was written."""
    own = str(manifest["sha256"])
    return len(own) == 64 and own == digest(data.replace(own.encode(), _UNSIGNED.encode(), 1))


def parse(data: bytes) -> dict[str, Any]:
    """The manifest, its outline checked; its digest is not.

    Raises:
        InputError: no JSON, another format or version, or parts missing.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{NAME} is damaged: expected JSON, got {_short(error)}; export the bundle again"
        ) from error
    found = record.get("format") if isinstance(record, dict) else record
    if found != FORMAT:
        raise InputError(
            f"{NAME}: expected format {FORMAT}, got {_short(repr(found))}; name a bundle made by"
            " supple export"
        )
    if record.get("version") != VERSION:
        raise InputError(
            f"{NAME}: expected version {VERSION}, got {_short(repr(record.get('version')))};"
            " upgrade supple, or export the bundle again"
        )
    outline: dict[str, type] = {"sha256": str, "contract": dict, "files": dict, "evidence": dict}
    for key, kind in outline.items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{NAME}: {key} is missing or no {kind.__name__}; export again")
    for group in GROUPS:
        if not isinstance(record["contract"].get(group), dict):
            raise InputError(f"{NAME}: contract.{group} is missing or no object; export again")
    return dict(record)


def differences(left: Any, right: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Paths at which two records differ, with both values; a missing one is ``...``."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in dict.fromkeys((*left, *right)):
            path = f"{where}.{key}" if where else key
            yield from differences(left.get(key, ...), right.get(key, ...), path)
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from differences(one, other, f"{where}[{index}]")
    elif left != right or isinstance(left, bool) != isinstance(right, bool):
        yield where, left, right


def _short(text: object) -> str:
    return " ".join(str(text).split())[:100]
