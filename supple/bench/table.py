"""What all benchmarks share: sizes, interleaved timing, tables and rows."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supple import machine
from supple.display import Display
from supple.envs.base import Box, EnvSpec
from supple.errors import InputError
from supple.files import replace_file
from supple.region import Compute, Precision, has_bfloat16
from supple.replay import Replay, ReplaySettings

CPU = torch.device("cpu")
RING_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one table."""

    obs: int
    act: int
    batch_size: int
    device: torch.device = CPU

    def __str__(self) -> str:
        return f"{self.obs}x{self.act}, batch {self.batch_size}"

    def spec(self) -> EnvSpec:
        """An environment of these sizes."""
        return EnvSpec(
            task_id=f"bench/{self.obs}x{self.act}",
            num_envs=1,
            observation={"policy": self.obs},
            action=Box(low=(-1.0,) * self.act, high=(1.0,) * self.act),
            device=self.device,
        )


MODES = ("eager", "compiled", "graphs")
"""How steps run: the last is compiled and replayed as CUDA graphs."""


def compute_of(mode: str, precision: Precision = "float32") -> Compute:
    """What a mode of a benchmark means."""
    return Compute(precision=precision, compile=mode != "eager", cuda_graphs=mode == "graphs")


def precisions(device: torch.device) -> list[Precision]:
    """Of matrix products, those that the device has in hardware."""
    found: list[Precision] = ["float32"]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        found.append("tf32")
    return [*found, "bfloat16"] if has_bfloat16(device) else found


def parse_size(text: str) -> tuple[int, int]:
    """Observation and action width from ``376x17``."""
    obs, cross, act = text.partition("x")
    if not (cross and obs.isdigit() and act.isdigit() and int(obs) and int(act)):
        raise InputError(f"--sizes must look like 376x17, got {text}")
    return int(obs), int(act)


def interleaved(
    variants: dict[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every variant in every round; each round starts with another one.

    Raises:
        InputError: a variant cannot run as its name says.
    """
    names = list(variants)
    for name in names:
        with warnings.catch_warnings():
            # A run goes on in eager; the row would say otherwise.
            warnings.filterwarnings("error", "compilation failed|capturing failed")
            try:
                for _ in range(warm_up):
                    variants[name]()
            except UserWarning as warning:
                raise InputError(f"{name}: {warning}; leave its mode out (--modes)") from warning
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            settle()
            begin = clock()
            variants[name]()
            settle()
            found[name].append(clock() - begin)
    return found


def settle() -> None:
    """Wait for the GPU, where this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def filled_ring(spec: EnvSpec, compute: Compute, settings: ReplaySettings | None = None) -> Replay:
    """A full ring of random transitions of one endless episode."""
    replay = Replay(spec, settings or ReplaySettings(capacity=RING_ROWS), compute=compute)
    random = torch.Generator().manual_seed(0)
    for storage in replay.storage.values():
        storage.copy_(torch.randn(storage.shape, generator=random))
    action, reward = replay.columns["action"], replay.columns["reward"]
    action.copy_(2 * torch.rand(action.shape, generator=random) - 1)
    reward.copy_(torch.randn(reward.shape, generator=random))
    replay.columns["valid"].fill_(True)
    replay.adopt_prefilled(replay.num_rows, torch.zeros(0, dtype=torch.int64))
    return replay


def row(shape: Shape, name: str, seconds: Sequence[float], *, updates: int) -> dict[str, Any]:
    """Quantiles of one variant's timings, and how many ``updates`` a second that is."""
    return {
        "variant": name,
        "obs": shape.obs,
        "act": shape.act,
        "batch": shape.batch_size,
        **quantiles(seconds),
        "per second": f"{updates / np.median(seconds):.1f}",
    }


def quantiles(seconds: Sequence[float]) -> dict[str, str]:
    """The columns that say how long something took."""
    found = np.percentile(seconds, [20, 50, 80]) * 1e3
    names = ("p20 ms", "p50 ms", "p80 ms")
    return {name: f"{value:.3f}" for name, value in zip(names, found, strict=True)}


def report(title: str, rows: list[dict[str, Any]], path: Path, command: str) -> None:
    """Print a table, and append its rows with where and how they were measured."""
    hidden = ("obs", "act", "batch", "size", "device")
    shown = [{k: str(v) for k, v in row.items() if k not in hidden} for row in rows]
    Display.print_rows(title, shown)
    append(rows, path, command)


def append(
    rows: Sequence[Mapping[str, Any]], path: Path, command: str, *, key: Sequence[str] = ()
) -> None:
    """Add rows to a file of results, with where and how they were measured.

    Args:
        rows: alike; what a row says itself of the machine, as ``origin`` does, counts.
        path: the file.
        command: that made them.
        key: as of ``add``.

    Raises:
        InputError: the file has other columns.
    """
    # Asking for a GPU's name initialises it: only one that holds something was used.
    used = torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > 0
    where: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",
        **origin(machine.versions(), gpu=used),
        "command": command,
    }
    measured = [{name: row[name] for name in row if name not in where} for row in rows]
    full = [{**own, **where, **row} for own, row in zip(measured, rows, strict=True)]
    add(full, path, key=key)


def add(rows: Sequence[Mapping[str, Any]], path: Path, *, key: Sequence[str] = ()) -> None:
    """Add rows to a file as they are, all or none; of several processes each waits for its turn.

    Args:
        rows: alike.
        path: the file.
        key: columns that say together what a row is about: what the file has already is left out.

    Raises:
        InputError: the file has other columns.
    """
    columns = list(rows[0])
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        known = read(path)
        if known and list(known[0]) != columns:
            raise InputError(
                f"{path} has other columns than this table: expected {', '.join(columns)}; write"
                " to another folder with --out"
            )
        there = {tuple(row[name] for name in key) for row in known if key}
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=columns)
        if not known:
            writer.writeheader()
        writer.writerows(row for row in rows if tuple(str(row[name]) for name in key) not in there)
        # All or nothing: half of a run's rows would be taken for the whole of it.
        replace_file(path, (path.read_bytes() if known else b"") + text.getvalue().encode())


def origin(found: Mapping[str, str], *, gpu: bool) -> dict[str, str]:
    """Columns for what ``machine.versions`` found, now or in a run's ``versions.json``.

    Args:
        found: as that function returns it.
        gpu: whether a GPU that is there was used, too.
    """
    return {
        "machine": "; ".join(found[part] for part in (*["gpu"] * gpu, "processor")),
        "versions": f"supple {found['supple']}, torch {found['torch']}",
        "commit": found["commit"],
    }


def read(path: Path) -> list[dict[str, str]]:
    """The rows ``append`` wrote; none without a file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
