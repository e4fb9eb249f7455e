"""``manifest.json``: what a bundle is, signed by its own digest like a checkpoint's manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from supple import signed_json
from supple.errors import InputError
from supple.signed_json import UNSIGNED, own_digest, sha256

FORMAT = "supple-bundle"
VERSION = 1
NAME = "manifest.json"
GROUPS = (
    *("origin", "timing", "joints", "gains", "action", "observation", "history", "commands"),
    *("normaliser", "state", "graph", "safety"),
)
"""Field groups of a contract."""


def canonical(record: Any) -> str:
    """One spelling for equal records."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def contract_digest(contract: Mapping[str, Any]) -> str:
    """What the generated C code carries of a contract."""
    return sha256(canonical(contract).encode())


def sign(manifest: Mapping[str, Any]) -> bytes:
    """The file's content, with its own digest."""
    record = {"format": FORMAT, "version": VERSION, "sha256": UNSIGNED, **manifest}
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    return signed_json.sign(text + "\n")


def is_signed(data: bytes, manifest: Mapping[str, Any]) -> bool:
    """Whether the file is as it was written."""
    own: str = manifest["sha256"]
    return own == own_digest(data, own)


def parse(data: bytes) -> dict[str, Any]:
    """The manifest, its outline checked; its digest is not.

    Raises:
        InputError: no JSON, another format or version, or parts missing.
    """
    record = signed_json.parse(
        data, NAME, kind=FORMAT, version=VERSION, remedy="use a bundle made by supple export"
    )
    outline: dict[str, type] = {"sha256": str, "contract": dict, "files": dict, "evidence": dict}
    for key, kind in outline.items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{NAME}: {key} is missing or no {kind.__name__}; export again")
    for group in GROUPS:
        if not isinstance(record["contract"].get(group), dict):
            raise InputError(f"{NAME}: contract.{group} is missing or no object; export again")
    return record


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
