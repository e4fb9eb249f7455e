"""What this process runs on: threads, device, memory, versions."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from supple.errors import InputError
from supple.version import __version__
from supple.world import from_environment

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks instead of returning them to the kernel.

    Large CPU tensors are otherwise mapped and unmapped at every operation, and the page faults
    cost several times the arithmetic. Affects this process only; the price is that memory once
    used stays with it.

    Returns:
        Whether the allocator accepted it; False on systems without glibc's ``mallopt``.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, largest), (_M_TOP_PAD, 64 * 2**20))
    return all([mallopt(name, value) == 1 for name, value in settings])


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:<index>`` as a device that exists.

    Of several processes on a machine, each has the GPU of its own number.

    Raises:
        InputError: unknown name, or no such GPU here.
    """
    try:
        device = torch.device(_automatic() if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:<index>, got {name}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices;"
            " use --device cpu, or install a CUDA build of torch"
        )
    return _own_gpu(device) if device.type == "cuda" else device


def _automatic() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _own_gpu(device: torch.device) -> torch.device:
    here = from_environment()
    if here.size == 1:
        return device
    own, most = here.local_rank, torch.cuda.device_count()
    if own >= most:
        raise InputError(
            f"process {own} of this machine needs a GPU of its own, there are {most}: start"
            f" torchrun with --nproc-per-node={most}, or take --device cpu"
        )
    if device.index not in (None, own):
        raise InputError(
            f"--device {device}: each of {here.size} processes takes a GPU of its own, this one"
            f" cuda:{own}; use --device cuda"
        )
    return torch.device("cuda", own)


def use(device: torch.device) -> None:
    """Make a GPU this thread's own: streams and graphs are made there, not on the first one."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def model_name(device: torch.device) -> str:
    """What the device is called by its maker."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def memory_gib(device: torch.device) -> float:
    """Memory in use [GiB]: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**30
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")
    pages = int(statm.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def processor() -> str:
    """The CPU's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """What to know to reproduce a run: packages, machine, and the commit of this checkout.

    Args:
        packages: further ones, named where they are installed.
    """
    found = {"supple": __version__, "python": platform.python_version()}
    always = ("torch", "tensordict", "torchrl", "numpy", "gymnasium", "mujoco")
    found |= dict.fromkeys(always, "not installed") | installed((*always, *packages))
    found["platform"] = platform.platform()
    found["processor"] = f"{processor()}, {cores()} cores"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["commit"] = commit()
    return found


def commit() -> str:
    """The commit supple runs from, ``-dirty`` when changed; empty outside a checkout.

    New rows of results change nothing that runs.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    changes = ["status", "--porcelain", "-uno", "--", ":/", ":/!benchmarks/results"]
    try:
        found, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "--short=12", "HEAD"], changes)
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() + ("-dirty" if changed.stdout else "")
