"""Gradient steps beside their own matrix products, run alone in the same rounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from supple.agents import FlashSAC, FlashSACSettings
from supple.agents.nets import EXPANSION
from supple.bench.peers import update_peers
from supple.bench.reference import reference_updates
from supple.bench.table import (
    Shape,
    compute_of,
    filled_ring,
    interleaved,
    row,
)
from supple.region import Compute, Precision, capture, float32_products

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


def bench_update(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two gradient steps, one with an actor step, sampling included; the default networks."""
    settings = FlashSACSettings(batch_size=shape.batch_size, min_replay=1)
    products = matrix_products(settings, shape)
    flops = sum(2 * e * m * k * n for e, m, k, n in products)
    variants: dict[str, Callable[[], object]] = {}
    ceiling: dict[str, str] = {}
    for precision in options.precisions:
        for mode in options.modes:
            step = our_updates(shape, settings, compute_of(mode, precision))
            variants[f"supple {mode} {precision}"] = _switched(step, precision)
        ceiling[precision] = f"matrix products {precision}"
        alone = _products(products, DTYPES[precision], shape.device)
        variants[ceiling[precision]] = _replayed(_switched(alone, precision), shape.device)
    if options.reference:
        mode = options.reference_compile
        variants |= reference_updates(options.reference, shape, compiled=mode)
    peers = update_peers(shape) if options.peers else {}
    # Of one call, which is two updates of ours and of the official code, one of a peer.
    work = dict.fromkeys(variants, float(flops)) | {n: counted_flops(p) for n, p in peers.items()}
    seconds = interleaved(variants | peers, options.rounds)
    rate = {name: work[name] / float(np.median(values)) for name, values in seconds.items()}
    compared = ("float32", "float16") if options.device.type == "cuda" else ("float32",)
    official = {name.split()[-1]: rate[name] for name in rate if name.startswith("official")}
    rows = []
    for name, values in seconds.items():
        updates = 1 if name in peers else 2
        found = row(shape, name, [value / updates for value in values], updates=1)
        found["GFLOP/s"] = f"{rate[name] / 1e9:.0f}"
        limit = ceiling.get(name.split()[-1])
        found["of ceiling"] = f"{rate[name] / rate[limit]:.2f}" if limit else ""
        for theirs in compared:
            same_work = theirs in official and name not in peers
            ratio = f"{rate[name] / official[theirs]:.2f}" if same_work else ""
            found[f"x official {theirs}"] = ratio
        rows.append(found)
    return rows


def _switched(step: Callable[[], object], precision: Precision) -> Callable[[], object]:
    def switched() -> None:
        with float32_products("tf32"):
            step()

    return switched if precision == "tf32" else step


def _replayed(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """As a CUDA graph: launched one by one, products would be no ceiling of a step that is one."""
    return capture(step).replay if device.type == "cuda" else step


class _FlopCounter(TorchDispatchMode):
    """Floating-point operations of matrix products. torch's own counter refuses some modules."""

    total: float = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def counted_flops(step: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products in one call."""
    with _FlopCounter() as counter:
        step()
    return float(counter.total)


def our_updates(shape: Shape, settings: FlashSACSettings, compute: Compute) -> Callable[[], object]:
    """Two gradient steps of a new agent, on a full ring."""
    spec = shape.spec()
    agent = FlashSAC(spec, settings, total_env_steps=10**6, compute=compute)
    replay = filled_ring(spec, compute)

    def step() -> None:
        agent.update(replay)
        agent.update(replay)

    return step


def matrix_products(settings: FlashSACSettings, shape: Shape) -> list[tuple[int, int, int, int]]:
    """Every matrix product of two gradient steps, one of them with an actor step: (E, M, K, N)."""
    rows, both = shape.batch_size, 2 * shape.batch_size

    def trunk(inputs: int, hidden: int, blocks: int) -> list[tuple[int, int]]:
        wide = EXPANSION * hidden
        return [(inputs, hidden)] + [(hidden, wide), (wide, hidden)] * blocks

    def forward(e: int, m: int, layers: Sequence[tuple[int, int]]) -> list[Any]:
        return [(e, m, k, n) for k, n in layers]

    def to_weights(e: int, m: int, layers: Sequence[tuple[int, int]]) -> list[Any]:
        return [(e, k, m, n) for k, n in layers]

    def to_inputs(e: int, m: int, layers: Sequence[tuple[int, int]]) -> list[Any]:
        return [(e, m, n, k) for k, n in layers]

    members, outputs = settings.num_critics, settings.num_atoms
    critic = trunk(shape.obs + shape.act, settings.critic_hidden, settings.critic_blocks)
    head = [(settings.critic_hidden, outputs)]
    actor = trunk(shape.obs, settings.actor_hidden, settings.actor_blocks)
    heads = [(settings.actor_hidden, shape.act)] * 2
    critic_step = (
        forward(1, rows, actor)
        + forward(1, rows, heads)
        + 2 * (forward(members, both, critic) + forward(members, rows, head))
        + to_weights(members, rows, head)
        + to_inputs(members, rows, head)
        + to_weights(members, both, critic)
        + to_inputs(members, both, critic[1:])
    )
    actor_step = (
        forward(1, both, actor)
        + forward(1, rows, heads)
        + forward(members, rows, critic + head)
        + to_inputs(members, rows, critic + head)
        + to_weights(1, rows, heads)
        + to_inputs(1, rows, heads)
        + to_weights(1, both, actor)
        + to_inputs(1, both, actor[1:])
    )
    return 2 * critic_step + actor_step


def _products(
    shapes: Sequence[tuple[int, int, int, int]], dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    def factors(e: int, m: int, k: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        left, right = torch.randn(e, m, k), torch.randn(e, k, n)
        out = torch.empty(e, m, n, dtype=dtype, device=device)
        return left.to(device, dtype), right.to(device, dtype), out

    known = {shape: factors(*shape) for shape in shapes}

    def run() -> None:
        for shape in shapes:
            left, right, out = known[shape]
            torch.bmm(left, right, out=out)

    return run
