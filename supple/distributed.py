"""Processes that learn together: who they are, and the few sums they take over all of them.

``torchrun`` starts the same command several times and tells each process its rank. Each has its own
environments, replay ring and random numbers; gradients and statistics are averaged, so networks,
optimisers and learning rates stay the same bits in all. ``R`` processes are one process with
R times the environments and R times the minibatch.

Sums inside an update (``sum_over_ranks`` and what is built on it) are taken within ``together``
alone: what one process does by itself, evaluation or diagnostics, never waits for another. They are
operators that a compiler traces. Alone, all of them give back what they got.

Source: averaging of gradients as in torch's DistributedDataParallel.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from supple.errors import InputError, first_line
from supple.watch import Watch
from supple.world import World, attempt, from_environment

MEETING = timedelta(minutes=5)
"""How long the first process waits for the last one to start."""
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others in one sum: evaluation and compilation take their time.
One that has ended is noticed at once (``watch.py``)."""

SMALL = 20_000
"""Numbers up to which processes on CPUs send each other everything: gloo's sums take turns around a
ring, which costs twice the time for statistics."""

P = ParamSpec("P")
T = TypeVar("T")


_world = World()
_together = False
_watch: Watch | None = None


def world() -> World:
    """This process's place; alone before ``join`` and after ``leave``."""
    return _world


def join(device: torch.device) -> World:
    """Meet the other processes that the environment's variables tell of. Safe to call twice.

    Args:
        device: where this process learns; NCCL carries sums on GPUs, gloo those on CPUs.

    Raises:
        InputError: the variables make no sense, or the others did not come.
    """
    global _world, _watch
    found = from_environment()
    if found.size == 1 or _world.size > 1:
        return _world
    # Here, because torch is also built without it.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        # The meeting is short and the work long: two limits, so the store is made here.
        store, _, _ = next(iter(rendezvous("env://", timeout=MEETING)))
        store = PrefixStore(f"supple/{attempt()}", store)
        dist.init_process_group(
            backend, store=store, rank=found.rank, world_size=found.size, timeout=PATIENCE
        )
        _watch = Watch(found.rank, found.size, os.environ["MASTER_ADDR"], store)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"process {found.rank} of {found.size} did not meet the others at {address}:"
            f" {first_line(error)};"
            " check that all are started, and MASTER_ADDR and MASTER_PORT"
        ) from error
    _world = found
    return found


def leave(*, in_peace: bool) -> None:
    """Part from the others. Safe to call when alone.

    Args:
        in_peace: wait until all come here; else end, which ends the others too.
    """
    global _world, _watch
    watch, _watch = _watch, None
    if watch is None:
        return
    if in_peace:
        with contextlib.suppress(RuntimeError):  # the work is done, whoever is missing
            agreed([0.0])
        watch.stop()
        dist.destroy_process_group()
    else:
        watch.abandon()
    _world = World()


def lost_peer() -> str:
    """Which other process has ended before its time, in one line; empty if none has."""
    deadline = time.monotonic() + 1.0  # a sum fails a little before its cause is known
    while _watch and not _watch.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    return _watch.lost if _watch else ""


def on_loss(advice: str) -> None:
    """What to tell the user if another process ends before its time."""
    if _watch:
        _watch.advice = advice


# --- inside an update: traced, on the device -------------------------------------------------


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that every process goes through in step, with sums of the same shapes in it."""
    global _together
    before, _together = _together, _world.size > 1
    try:
        yield
    finally:
        _together = before


def in_step(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose whole body is ``together``."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with together():
            return function(*args, **kwargs)

    return run


def is_together() -> bool:
    """Whether sums reach over more than this process now."""
    return _together


def sum_over_ranks(x: Tensor) -> Tensor:
    """The elementwise sum of every process's ``x``; the same bits in all. No gradient."""
    return _reduced(x, "sum")


def max_over_ranks(x: Tensor) -> Tensor:
    """The elementwise maximum of every process's ``x``. No gradient."""
    return _reduced(x, "max")


def mean_over_ranks(x: Tensor) -> Tensor:
    """The elementwise mean of every process's ``x``, floating-point or not. No gradient."""
    return _reduced(x, "sum") / _world.size if _together else x


def average(gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the mean loss over the minibatches of all processes, in one exchange.

    Args:
        gradients: of this process's own minibatch, one dtype.
    """
    if not _together:
        return tuple(gradients)
    joined = mean_over_ranks(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    parts = joined.split([gradient.numel() for gradient in gradients])
    return tuple(part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True))


def _reduced(x: Tensor, how: str) -> Tensor:
    if not _together:
        return x
    collectives, group = torch.ops._c10d_functional, _group().group_name
    with torch.no_grad():
        own = x.detach().contiguous()
        if own.device.type == "cpu" and own.numel() <= SMALL:
            begun = collectives.all_gather_into_tensor(own.reshape(-1), _world.size, group)
            everyone = collectives.wait_tensor(begun).view(_world.size, *own.shape)
            return cast(Tensor, everyone.amax(0) if how == "max" else everyone.sum(0))
        return cast(Tensor, collectives.wait_tensor(collectives.all_reduce(own, how, group)))


def _group() -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.group.WORLD)


# --- between updates: on the host ------------------------------------------------------------


def agreed(values: Sequence[float]) -> list[float]:
    """The sums of every process's values. All processes wait here for each other."""
    if _world.size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def lowest(value: int) -> int:
    """The smallest of every process's values."""
    if _world.size == 1:
        return value
    least = torch.tensor(value)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def from_first(text: str) -> str:
    """The first process's text, in all of them."""
    if _world.size == 1:
        return text
    data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    length = torch.tensor(len(data))
    dist.broadcast(length, 0)
    buffer = data if _world.first else torch.zeros(int(length), dtype=torch.uint8)
    dist.broadcast(buffer, 0)
    return buffer.numpy().tobytes().decode().strip()


def broadcast(tree: Mapping[str, Any]) -> None:
    """Give every tensor of the tree the first process's values, in place."""
    if _world.size > 1:
        for tensor in _tensors(tree):
            dist.broadcast(tensor, 0)


def require_same(tree: Mapping[str, Any], what: str, remedy: str) -> None:
    """Refuse to go on where the processes hold different texts, numbers or tensors.

    Raises:
        InputError: ``tree`` is another one in another process.
    """
    if _world.size == 1:
        return
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(tree):
        is_tensor = isinstance(leaf, Tensor)
        digest.update(_bytes(leaf) if is_tensor else str(leaf).encode())
    own = torch.tensor(int.from_bytes(digest.digest()[:7], "big"))
    everyone = [torch.zeros_like(own) for _ in range(_world.size)]
    dist.all_gather(everyone, own)
    other = [rank for rank, value in enumerate(everyone) if int(value) != int(everyone[0])]
    if other:
        raise InputError(
            f"process {other[0]} of {_world.size} has other {what} than process 0: {remedy}"
        )


def _tensors(tree: Mapping[str, Any]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> bytes:
    found = tensor.detach().cpu().contiguous().reshape(-1)
    return found.view(torch.uint8).numpy().tobytes()
