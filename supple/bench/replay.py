"""Sampling beside a bare copy of as many rows."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from supple.bench.peers import TORCHRL_BUFFER as PEER
from supple.bench.peers import replay_peers
from supple.bench.table import RING_ROWS, Shape, compute_of, filled_ring, interleaved, row
from supple.region import Compute
from supple.replay import ReplaySettings


def bench_replay(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Sampling three-step windows, beside a bare copy of the same rows."""
    spec, size = shape.spec(), shape.batch_size
    variants: dict[str, Callable[[], object]] = {}
    for mode in options.modes:
        for dtype in ("float32", "bfloat16"):
            compute = compute_of(mode)
            settings = ReplaySettings(capacity=RING_ROWS, obs_dtype=dtype)
            replay = filled_ring(spec, compute, settings)
            random = torch.Generator(shape.device).manual_seed(0)
            variants[f"supple {mode} {dtype}"] = partial(
                replay.draw, size, generator=random, n_step=3
            )
    table = filled_ring(spec, Compute()).storage["policy"]
    # Other rows every time, as sampling has: the same ones again would wait in the cache.
    rows_of = itertools.cycle(torch.randint(len(table), (50, 2 * size)).to(shape.device))
    bare, first = "index_select float32", table[: 2 * size]
    variants[bare] = lambda: table.index_select(0, next(rows_of))
    variants["copy of neighbouring rows float32"] = first.clone
    if options.peers:
        variants |= replay_peers(shape)
    seconds = interleaved(variants, options.rounds * 20)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        found = row(shape, name, values, updates=size)
        found["GB/s"] = f"{2 * size * shape.obs * 4 / median[name] / 1e9:.2f}"
        found["of index_select"] = f"{median[bare] / median[name]:.2f}"
        found["x torchrl"] = f"{median[PEER] / median[name]:.2f}" if PEER in median else ""
        rows.append(found)
    return rows
