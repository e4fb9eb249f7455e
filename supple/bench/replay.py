"""Sampling beside a bare copy of as many rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from supple.bench.table import RING_ROWS, Shape, filled_ring, interleaved, row
from supple.region import Compute
from supple.replay import ReplaySettings


def bench_replay(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Sampling three-step windows, beside a bare copy of the same rows."""
    spec = shape.spec()
    variants: dict[str, Callable[[], object]] = {}
    for mode in options.modes:
        for dtype in ("float32", "bfloat16"):
            compute = Compute(compile=mode == "compiled")
            settings = ReplaySettings(capacity=RING_ROWS, obs_dtype=dtype)
            replay, random = filled_ring(spec, compute, settings), torch.Generator().manual_seed(0)
            variants[f"supple {mode} {dtype}"] = partial(
                replay.draw, shape.batch_size, generator=random, n_step=3
            )
    table = filled_ring(spec, Compute()).storage["policy"]
    index = torch.randint(len(table), (2 * shape.batch_size,))
    variants["index_select float32"] = lambda: table.index_select(0, index)
    seconds = interleaved(variants, options.rounds * 20)
    bare = float(np.median(seconds["index_select float32"]))
    rows = []
    for name, values in seconds.items():
        found = row(shape, name, values, updates=shape.batch_size)
        found["of index_select"] = f"{bare / float(np.median(values)):.2f}"
        rows.append(found)
    return rows
