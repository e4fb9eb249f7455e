"""Saving the ring's rows as segments: immutable files by time index, so that saving is incremental.

A segment holds a fixed number of consecutive vector steps. Once full it is written once and never
again; only the newest, partial one is written at every save, under a name with its length. Each
carries its own rows' columns and the final observations of its own ended rows. What changes after
writing (validity, side-table bookkeeping, the cursor) is in ``Replay.state_dict``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from supple.checkpoint import plain_name
from supple.errors import InputError
from supple.files import replace_file
from supple.replay.buffer import Replay

SEGMENTS_PER_RING = 64
"""How finely a ring is cut; the newest segment is what each save writes again."""


class Segments:
    """Writes and reads one ring's rows in one folder.

    Args:
        replay: the ring.
        folder: where the files are; created when first written.
    """

    def __init__(self, replay: Replay, folder: Path) -> None:
        self._replay = replay
        self._folder = folder
        self._length = -(-replay.num_rows // SEGMENTS_PER_RING)
        self._known: dict[int, dict[str, Any]] = {}  # full segments on disk, by number

    def save(self) -> dict[str, Any]:
        """Write what is not on disk yet.

        Returns:
            JSON manifest: the files of this state, oldest first, with sizes and SHA-256.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        end = self._replay.vector_steps
        begin = max(0, end - self._replay.num_rows)
        entries = []
        for number in range(begin // self._length, -(-end // self._length)):
            first = number * self._length
            last = min(first + self._length, end)
            if last == end:
                # May still change: by growing, or by an episode cut at its newest row.
                entries.append(self._write(number, max(first, begin), last))
                continue
            if number not in self._known:
                self._known[number] = self._write(number, max(first, begin), last)
            entries.append(self._known[number])
        return {"segments": entries, "vector_steps": end}

    def load(self, manifest: Mapping[str, Any]) -> None:
        """Fill the ring's rows; its ``load_state_dict`` must have run.

        Raises:
            InputError: a file is missing, truncated or changed, named in one line.
        """
        for entry in manifest["segments"]:
            data = _read(self._folder, entry)
            self._restore(parse(data), entry["first"], entry["last"])
            if entry["last"] < manifest["vector_steps"]:
                self._known[entry["first"] // self._length] = dict(entry)

    def prune(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        """Delete the files no manifest names."""
        kept = {entry["name"] for manifest in manifests for entry in manifest["segments"]}
        for path in self._folder.iterdir():  # also what a killed process left half-written
            if path.name.startswith(("rows-", ".rows-")) and path.name not in kept:
                path.unlink()
        self._known = {k: entry for k, entry in self._known.items() if entry["name"] in kept}

    def _write(self, number: int, first: int, last: int) -> dict[str, Any]:
        replay = self._replay
        rows = self._ring_rows(first, last)
        tensors = {
            f"column/{key}": column[rows]
            for key, column in replay.columns.items()
            if key != "valid"
        }
        slots = tensors["column/final_slot"].view(-1)
        slots = slots[slots >= 0].long()
        for group in replay.storage:
            tensors[f"observation/{group}"] = replay.ring(group)[rows]
            tensors[f"final/{group}"] = replay.final_table(group)[slots]
        data = serialise({key: value.cpu().contiguous() for key, value in tensors.items()})
        digest = _digest(data)
        # The content is part of the name: another line of training, begun at an older checkpoint,
        # never writes over the rows of this one.
        name = f"rows-{number:06d}-{digest[:16]}.safetensors"
        path = self._folder / name
        if not path.is_file() or path.read_bytes() != data:
            replace_file(path, data)
        return {"name": name, "first": first, "last": last, "bytes": len(data), "sha256": digest}

    def _restore(self, tensors: Mapping[str, Tensor], first: int, last: int) -> None:
        replay = self._replay
        oldest = replay.vector_steps - replay.num_rows
        skip = max(0, oldest - first)  # rows the ring has overwritten since
        first += skip
        rows = self._ring_rows(first, last)
        loaded = {
            key: value[skip:].to(replay.device)
            for key, value in tensors.items()
            if not key.startswith("final/")
        }
        for key, column in replay.columns.items():
            if key != "valid":
                column[rows] = loaded[f"column/{key}"]
        slots = loaded["column/final_slot"].reshape(-1)
        slots = slots[slots >= 0].long()
        for group in replay.storage:
            ring, observation = replay.ring(group), loaded[f"observation/{group}"]
            if observation.dtype != ring.dtype:
                raise InputError(
                    f"the saved rows hold observations as {observation.dtype}, this ring as"
                    f" {ring.dtype}: keep --replay.obs-dtype of the run"
                )
            # The oldest row's observation is the newest next observation, already in place, unless
            # the write head is at 0.
            kept = 1 if first == oldest and oldest % replay.num_rows else 0
            ring[rows[kept:]] = observation[kept:]
            wrap = -(-first // replay.num_rows) * replay.num_rows
            if max(0, oldest) < wrap < last:
                # Row 0's observation is also what follows the ring's last row.
                ring[replay.num_rows] = observation[wrap - first]
            # Oldest first, so that a reused slot ends with its newest owner's observation.
            final = tensors[f"final/{group}"].to(replay.device)
            replay.final_table(group)[slots] = final[len(final) - len(slots) :]

    def _ring_rows(self, first: int, last: int) -> Tensor:
        steps = torch.arange(first, last, device=self._replay.device)
        return steps % self._replay.num_rows


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check that a manifest's files are there and unchanged, without loading them.

    Raises:
        InputError: a file is missing, truncated or changed, named in one line.
    """
    for entry in manifest["segments"]:
        _read(folder, entry)


def _read(folder: Path, entry: Mapping[str, Any]) -> bytes:
    path = folder / plain_name(entry["name"])
    if not path.is_file():
        raise InputError(f"{path} is missing: the replay rows of this checkpoint are incomplete")
    data = path.read_bytes()
    if len(data) != entry["bytes"] or _digest(data) != entry["sha256"]:
        raise InputError(
            f"{path} is damaged: expected {entry['bytes']} bytes with SHA-256"
            f" {entry['sha256'][:12]}, got {len(data)} with {_digest(data)[:12]}"
        )
    return data
