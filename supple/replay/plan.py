"""How much memory a ring takes, known before anything is allocated."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from supple.envs.base import Box, EnvSpec
from supple.errors import InputError, require_rules, require_values
from supple.replay import records
from supple.world import local_size

OBS_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FARTHEST = 1e15
"""Largest size of a number that counts as one; the squares of larger ones leave float32."""

GPU_RESERVE = 2 * 2**30
"""Kept free beside a ring on a GPU, for what is allocated after it: gradients and what compiled
steps and matrix products work in, and the environments that evaluate; of a small GPU a quarter of
what is free [bytes]."""


@dataclass(kw_only=True, slots=True)
class ReplaySettings:
    """Size and storage of the replay ring."""

    capacity: int = 1_000_000
    """Transitions over all environments; each environment keeps capacity // num_envs of them."""
    final_fraction: float = 0.05
    """Share of the rows that can hold an observation from before a reset, in (0, 1]. Beyond it the
    oldest truncated rows are no longer sampled; terminated ones need none."""
    obs_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How observations are stored; samples are float32. float16 ends at 65504."""
    spill: bool = False
    """Keep the ring in host memory and send minibatches to the GPU as it computes: for rings that
    the GPU's memory does not hold."""
    prefill: str = ""
    """A .safetensors file of recorded transitions to start from; empty starts empty."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_values(self, "--replay.")
        rules = (
            ("capacity", self.capacity >= 1, ">= 1"),
            ("final_fraction", 0 < self.final_fraction <= 1, "in (0, 1]"),
        )
        require_rules(self, "--replay.", rules)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayPlan:
    """Rows and bytes of a ring."""

    num_rows: int
    """T, vector steps."""
    num_envs: int
    final_rows: int
    """F, rows of the side table of final observations."""
    bytes_by_part: Mapping[str, int]
    halved: bool = False
    """Whether observations take 2 bytes already."""

    @property
    def total_bytes(self) -> int:
        """All parts."""
        return sum(self.bytes_by_part.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self.bytes_by_part.items())
        return (
            f"replay: {self.num_rows * self.num_envs:,} transitions ({self.num_rows:,} rows x"
            f" {self.num_envs:,} environments), {_size(self.total_bytes)}: {parts}"
        )

    def check(self, device: torch.device, remedy: str = "") -> None:
        """Refuse a ring that does not fit the device's free memory, with a reserve on a GPU.

        Args:
            device: where it is to live.
            remedy: what to do about it; by default, the settings of a ring of any size.

        Raises:
            InputError: names the settings to turn.
        """
        free = free_memory(device)
        kept = min(GPU_RESERVE, free // 4) if device.type == "cuda" else 0
        if self.total_bytes + kept <= free:
            return
        if not remedy:
            remedy = "lower --replay.capacity"
            if not self.halved:
                remedy += ", or store observations with --replay.obs-dtype bfloat16"
            if device.type == "cuda":
                remedy += ", or keep it in host memory with --replay.spill"
        many = local_size() if device.type != "cuda" else 1
        each = f" for each of {many} processes" if many > 1 else ""
        raise InputError(
            f"the replay ring needs {_size(self.total_bytes)}, {device} has {_size(free)} free"
            f"{each}{f', of which {_size(kept)} are kept for the rest' if kept else ''}: {remedy}"
        )


def plan_ring(
    spec: EnvSpec, settings: ReplaySettings, extra_spec: Mapping[str, tuple[int, ...]]
) -> ReplayPlan:
    """Rows and bytes for an environment.

    Raises:
        InputError: fewer than two transitions per environment.
    """
    envs = spec.num_envs
    rows = settings.capacity // envs
    if rows < 2:
        raise InputError(
            f"--replay.capacity={settings.capacity} holds fewer than 2 transitions for each of"
            f" {envs} environments: raise it to {2 * envs} or more, or lower --env.num-envs"
        )
    final_rows = max(2 * envs, math.ceil(settings.final_fraction * rows * envs))
    item = OBS_DTYPES[settings.obs_dtype].itemsize
    width = sum(spec.observation.values())
    action = 4 * spec.action.size if isinstance(spec.action, Box) else 8
    extra = sum(4 * math.prod(shape) for shape in extra_spec.values())
    cells = rows * envs
    parts = {
        "observations": (rows + 1) * envs * width * item,
        "actions and rewards": cells * (action + records.BYTES),
        "final observations": (final_rows + 1) * (width * item + 8),
    }
    if extra:
        parts["agent's columns"] = cells * extra
    return ReplayPlan(
        num_rows=rows,
        num_envs=envs,
        final_rows=final_rows,
        bytes_by_part=parts,
        halved=item == 2,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: on the GPU, or in RAM within container and user limits.

    Of RAM, this process's share: those that learn with it here allocate as much.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [2**62]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    limits += container_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    limits = [limit // local_size() for limit in limits]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits.append(soft - used)
    return max(0, min(limits))


def container_limits(mount: Path, membership: Path) -> list[int]:
    """Bytes left in each control group with a memory limit, from this process's own upwards.

    File cache the kernel gives back on demand does not count as used.

    Args:
        mount: where control groups are mounted, version 1 or 2.
        membership: this process's groups, one ``id:controllers:path`` a line.
    """
    left = []
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = mount / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            left += _left_in(group, *names)
            if group == top:
                break
    return left


def _left_in(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    # Inside a container the path may be the host's: then only the mount's top has these files.
    if not (group / limit).exists() or not (group / usage).exists():
        return []
    maximum = (group / limit).read_text().strip()
    if maximum == "max":
        return []
    stat = group / "memory.stat"
    counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
    return [int(maximum) - int((group / usage).read_text()) + int(counts.get(cache, 0))]


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
