"""How long the flow kernels take with each way of cutting them, alone on a GPU.

    python -m benchmarks.kernel_tiles

Each candidate runs forward or backward at the sizes of ``supple bench kernels``, with the table of
encoded values; the exact kernels, which ``flow_official`` takes, with their shipped tile. Beside
them stand the hidden layers' products alone and the compiled definition, forward and with its
gradient. All are CUDA graphs: a gradient's launches, one per step, would wait for Python. What a
candidate takes of registers is asked ahead of time and without a GPU:
``python -m supple.kernels.critic_integration.aot``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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


class Call(NamedTuple):
    """A kernel at one size."""

    run: Callable[..., Any]
    """Takes ``tile``."""
    shipped: gpu.Tile
    exact: bool
    """Every z encoded, and float32 products one by one."""


def calls(size: Size, products: torch.dtype, device: torch.device = CUDA) -> dict[str, Call]:
    """Forward and backward at one size, with the table and exactly."""
    critic, x_BD, start_BM = fitted(size, device)
    net = critic.net
    given = start_BM[None], net.condition(x_BD[None]).unsqueeze(2), net.grid(size.K)
    rows = start_BM.numel()
    found = {}
    for suffix, points in (("", TABLE_POINTS), (", exact", 0)):
        launch = gpu.Launch.of(net.field(), net.form, rows, table_points=points, products=products)
        end, states = gpu.forward(launch, net.form, *given, save=True)
        there = functools.partial(gpu.forward, launch, net.form, *given, save=False)
        weight: Tensor = torch.ones_like(end)
        back = functools.partial(gpu.backward, launch, net.form, weight, states, *given[1:])
        for name, run in (("forward", there), ("backward", back)):
            shipped = launch.tile_of(backward=name == "backward")
            found[name + suffix] = Call(run, shipped, exact=not points)
    return found


def references(
    size: Size, products: torch.dtype, device: torch.device = CUDA
) -> dict[str, Callable[[], Any]]:
    """What the kernels are compared with: gradients are those at noise and condition, too."""
    critic, x_BD, start_BM = fitted(size, device)
    net = critic.net
    field, grid = net.field(), net.grid(size.K)

    def definition(start_1BM: Tensor, condition_EBH: Tensor) -> Tensor:
        half = products == torch.bfloat16
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            return integrate(field, net.form, start_1BM, condition_EBH, grid)

    compiled = torch.compile(definition, dynamic=False)
    given = start_BM[None], net.condition(x_BD[None])
    wanted = [part.clone().requires_grad_() for part in given]
    return {
        "products alone": matrix_products(size, products, device),
        "compiled definition": lambda: compiled(*given),
        "compiled definition, forward and backward": lambda: torch.autograd.grad(
            compiled(*wanted).sum(), wanted
        ),
    }


def beside(size: Size, products: torch.dtype) -> Iterator[dict[str, Any]]:
    """Rows of what the kernels are compared with."""
    for name, run in references(size, products).items():
        yield row(size, products, name, capture(run).replay)


def row(
    size: Size,
    products: torch.dtype,
    kernel: str,
    run: Callable[..., Any],
    *,
    tile: gpu.Tile | None = None,
    call: Call | None = None,
) -> dict[str, Any]:
    """One timing; of a kernel with its tile."""
    parts = ("rows", "inner", "warps", "stages")
    split = ("ieee" if call.exact else "tf32x3") if call and products == torch.float32 else ""
    return {
        "size": str(size),
        "products": str(products).removeprefix("torch."),
        "kernel": kernel,
        **{part: getattr(tile, part) if tile else "" for part in parts},
        "split": split,
        "shipped": "yes" if call and tile == call.shipped else "",
        "p50 us": f"{1e3 * triton.testing.do_bench(run, rep=60, return_mode='median'):.1f}",
    }


def measured(size: Size, products: torch.dtype) -> Iterator[dict[str, Any]]:
    """A row per kernel and candidate; of the exact ones, which take longest, the shipped alone."""
    for kernel, call in calls(size, products).items():
        others = () if call.exact else candidates(size.H)
        for tile in dict.fromkeys((call.shipped, *others)):
            run = functools.partial(call.run, tile=tile)
            with contextlib.suppress(triton.runtime.errors.OutOfResources):
                # A block of this GPU has less shared memory than that.
                replay = capture(run).replay
                yield row(size, products, kernel, replay, tile=tile, call=call)


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
