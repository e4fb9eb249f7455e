"""Saving the ring's rows as segments: immutable files by time index, so that saving is incremental.

A segment holds a fixed number of consecutive vector steps. Once full it is written once and never
again; only the newest, partial one is written at every save, under a name with its length. Each
carries its own rows' columns and the final observations of its own ended rows. What changes after
writing (validity, side-table bookkeeping, the cursor) is in ``Replay.state_dict``.

Segments are written ahead: as soon as one is full it is copied, and a thread of its own brings the
copy to the disk while training goes on. A save then waits for at most a few and writes the partial
one. Where rows come faster than the disk takes them (a GPU's), the rest is written by the save.

A manifest without segments of a ring that had rows says that none were kept: its ring is loaded
empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from supple.checkpoint import plain_name, read_whole
from supple.errors import InputError
from supple.files import replace_file
from supple.replay.buffer import Replay
from supple.signed_json import sha256

SEGMENTS_PER_RING = 64
"""How finely a ring is cut, at least; the newest segment is what each save writes again."""
SEGMENT_BYTES = 32 * 2**20
"""Most that a segment holds, unless one vector step is more: a save writes one, and copies of two
may wait for the disk [bytes]."""
MOST_WAITING = 2


class Segments:
    """Writes and reads one ring's rows in one folder.

    Args:
        replay: the ring.
        folder: where the files are; created when first written.
        ahead: whether ``write_ahead`` does anything: not for rings that are emptied at each update.
        kept: whether rows are written at all.
    """

    def __init__(
        self, replay: Replay, folder: Path, *, ahead: bool = False, kept: bool = True
    ) -> None:
        self._replay = replay
        self._folder = folder
        self._kept = kept
        step_bytes = replay.plan.total_bytes // replay.num_rows + 1
        rows = replay.num_rows
        self._length = min(-(-rows // SEGMENTS_PER_RING), max(1, SEGMENT_BYTES // step_bytes))
        self._known: dict[int, dict[str, Any]] = {}  # full segments on disk, by number
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._writer = ThreadPoolExecutor(1, "replay-rows") if ahead and kept else None

    def write_ahead(self, until_save: int) -> None:
        """Begin to write the segment that was just filled, if one was.

        Args:
            until_save: vector steps until the next save: what the ring has overwritten by then is
                not written.

        Raises:
            OSError: an earlier one could not be written.
        """
        end = self._replay.vector_steps
        if self._writer is None or end % self._length:
            return
        number, first = end // self._length - 1, end - self._length
        self._collect()
        stays = first >= end + until_save - self._replay.num_rows
        if not stays or number < 0 or number in self._known or len(self._waiting) >= MOST_WAITING:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = self._copy(first, end)
        self._waiting[number] = self._writer.submit(self._write, tensors, number, first, end)

    def save(self) -> dict[str, Any]:
        """Write what is not on disk yet.

        Returns:
            JSON manifest: the files of this state, oldest first, with sizes and SHA-256.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        end = self._replay.vector_steps
        if not self._kept:
            return {"segments": [], "vector_steps": end}
        self._folder.mkdir(parents=True, exist_ok=True)
        self._collect(wait=True)
        begin = max(0, end - self._replay.num_rows)
        entries = []
        for number in range(begin // self._length, -(-end // self._length)):
            first = max(number * self._length, begin)
            last = min((number + 1) * self._length, end)
            entry = self._known.get(number)
            if entry is None:
                entry = self._write(self._copy(first, last), number, first, last)
                # The newest may still change: by growing, or by an episode cut at its last row.
                if last < end:
                    self._known[number] = entry
            entries.append(entry)
        return {"segments": entries, "vector_steps": end}

    def close(self) -> None:
        """Wait for the thread, whatever came of what it wrote. Safe to call twice."""
        if self._writer:
            self._writer.shutdown()

    def _collect(self, *, wait: bool = False) -> None:
        for number, future in list(self._waiting.items()):
            if wait or future.done():
                del self._waiting[number]
                self._known[number] = future.result()

    def load(self, manifest: Mapping[str, Any]) -> bool:
        """Fill the ring's rows; its ``load_state_dict`` must have run.

        Returns:
            Whether the ring is as it was; otherwise its rows were not kept, and it is empty.

        Raises:
            InputError: a file is missing, truncated or changed, named in one line.
        """
        if self._replay.vector_steps and not manifest["segments"]:
            self._replay.clear()
            return False
        for entry in manifest["segments"]:
            data = _read(self._folder, entry)
            self._restore(parse(data), entry["first"], entry["last"])
            number, before = divmod(entry["first"], self._length)
            # Of another length, as other versions may cut them, it counts as none.
            whole = not before and entry["last"] == entry["first"] + self._length
            if whole and entry["last"] < manifest["vector_steps"]:
                self._known[number] = dict(entry)
        self._replay.forget_lost_finals()
        return True

    def prune(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        """Delete the files no manifest names."""
        kept = {entry["name"] for manifest in manifests for entry in manifest["segments"]}
        # Also what a killed process left half-written.
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name.startswith(("rows-", ".rows-")) and path.name not in kept:
                path.unlink()
        self._known = {k: entry for k, entry in self._known.items() if entry["name"] in kept}

    def _copy(self, first: int, last: int) -> dict[str, Tensor]:
        """A segment's content, on the host and no longer part of the ring."""
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
        return {key: value.cpu().contiguous() for key, value in tensors.items()}

    def _write(
        self, tensors: Mapping[str, Tensor], number: int, first: int, last: int
    ) -> dict[str, Any]:
        """Bring a segment to the disk; returns its entry in a manifest."""
        data = serialise(dict(tensors))
        digest = sha256(data)
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
                _require_width(loaded[f"column/{key}"], column, key)
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
            _require_width(observation, ring, f"observation/{group}")
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


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check that a manifest's files are there and unchanged, without loading them.

    Raises:
        InputError: a file is missing, truncated or changed, named in one line.
    """
    for entry in manifest["segments"]:
        _read(folder, entry)


def _require_width(saved: Tensor, own: Tensor, name: str) -> None:
    if saved.shape[1:] != own.shape[1:]:
        raise InputError(
            f"the saved rows' {name} is {tuple(saved.shape[1:])} a step, this ring's"
            f" {tuple(own.shape[1:])}: load them for the task that they were saved of"
        )


def _read(folder: Path, entry: Mapping[str, Any]) -> bytes:
    return read_whole(folder / plain_name(entry["name"]), entry["bytes"], entry["sha256"])
