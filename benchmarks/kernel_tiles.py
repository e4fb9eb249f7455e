"""How long the flow kernels take with each way of cutting them, alone on a GPU.

    python -m benchmarks.kernel_tiles

Each candidate runs forward or backward at the sizes of ``supple bench kernels``; beside them stand
the hidden layers' products alone and the compiled definition, both as CUDA graphs. What a candidate
takes of registers is asked ahead of time and without a GPU:
``python -m supple.kernels.critic_integration.aot``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from supple.bench.kernels import SIZES, Size, fitted
from supple.bench.kernels import products as matrix_products
from supple.bench.table import report
from supple.kernels.critic_integration import gpu, integrate
from supple.kernels.critic_integration.fused import TABLE_POINTS
from supple.region import capture

ROWS = Path(__file__).parent / "results" / "gpu" / "kernel_tiles.csv"
COMMAND = "python -m benchmarks.kernel_tiles"
CUDA = torch.device("cuda")
NARROW = Size(2, 2048, 1, 8, 64, 2)
"""The ``laptop`` preset's width."""


def candidates(width: int) -> Iterator[gpu.Tile]:
    """Tiles that are worth a try at a width."""
    warps = (4, 8) if width < 512 else (8,)
    for rows, inner, w, stages in itertools.product((16, 32, 64), (16, 32, 64), warps, (2, 3)):
        yield gpu.Tile(rows=rows, inner=inner, warps=w, stages=stages)


def calls(
    size: Size, products: torch.dtype, device: torch.device = CUDA
) -> dict[str, Callable[..., Any]]:
    """Forward and backward at one size; they take ``tile``."""
    critic, x_BD, start_BM = fitted(size, device)
    net = critic.net
    given = start_BM[None], net.condition(x_BD[None]).unsqueeze(2), net.grid(size.K)
    rows = start_BM.numel()
    launch = gpu.Launch.of(
        net.field(), net.form, rows, table_points=TABLE_POINTS, products=products
    )
    end, states = gpu.forward(launch, net.form, *given, save=True)
    weight: Tensor = torch.ones_like(end)
    return {
        "forward": functools.partial(gpu.forward, launch, net.form, *given, save=False),
        "backward": functools.partial(gpu.backward, launch, net.form, weight, states, *given[1:]),
    }


def beside(size: Size, products: torch.dtype) -> Iterator[dict[str, Any]]:
    """Rows of what the kernels are compared with."""
    critic, x_BD, start_BM = fitted(size, CUDA)
    net = critic.net
    given = net.field(), net.form, start_BM[None], net.condition(x_BD[None]), net.grid(size.K)

    def definition() -> Tensor:
        half = products == torch.bfloat16
        with torch.autocast("cuda", torch.bfloat16, enabled=half, cache_enabled=False):
            return integrate(*given)

    runs = {"products alone": matrix_products(size, products, CUDA)}
    runs["compiled definition"] = torch.compile(definition, dynamic=False)
    for name, run in runs.items():
        with torch.no_grad():
            graph, _ = capture(run)
        yield row(size, products, name, graph.replay, tile=None)


def row(
    size: Size, products: torch.dtype, kernel: str, run: Callable[[], Any], *, tile: gpu.Tile | None
) -> dict[str, Any]:
    """One timing."""
    own = gpu.tile_for(size.H, products, backward=kernel == "backward")
    parts = ("rows", "inner", "warps", "stages")
    return {
        "size": str(size),
        "products": str(products).removeprefix("torch."),
        "kernel": kernel,
        **{part: getattr(tile, part) if tile else "" for part in parts},
        "split": "tf32x3" if tile and products == torch.float32 else "",
        "shipped": "yes" if tile == own else "",
        "p50 us": f"{1e3 * triton.testing.do_bench(run, rep=60, return_mode='median'):.1f}",
    }


def measured(size: Size, products: torch.dtype) -> Iterator[dict[str, Any]]:
    """A row per candidate and kernel."""
    for kernel, run in calls(size, products).items():
        own = gpu.tile_for(size.H, products, backward=kernel == "backward")
        for tile in dict.fromkeys((own, *candidates(size.H))):
            with contextlib.suppress(triton.runtime.errors.OutOfResources):
                # A block of this GPU has less shared memory than that.
                yield row(size, products, kernel, functools.partial(run, tile=tile), tile=tile)


def main() -> None:
    """Measure all and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 512])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("the kernels are timed on a GPU, torch sees none here")
    ROWS.parent.mkdir(exist_ok=True)
    for size, products in itertools.product((NARROW, *SIZES), (torch.float32, torch.bfloat16)):
        if size.H in options.widths:
            found = [*beside(size, products), *measured(size, products)]
            report(f"{size}, {products}", found, ROWS, COMMAND)


if __name__ == "__main__":
    main()
