"""Compile the kernels ahead of time for GPUs that are not here, and report what they take.

    python -m supple.kernels.critic_integration.aot --widths 256 --archs 80 90

Prints a table: registers per thread, shared memory, spilled bytes. Fails (status 1) where a kernel
spills or takes more shared memory than a block of that GPU has. Needs Triton, and no GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from supple.kernels.critic_integration import Form, ValueEncoding, gpu
from supple.kernels.critic_integration.fused import TABLE_POINTS

SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}
"""Largest shared memory of a block (CUDA C++ programming guide, compute capabilities)."""
WIDTHS = (64, 256, 512)
PRODUCTS = ("bfloat16", "float32", "exact")
"""The last: float32 one by one and states encoded exactly; the others read a table."""
FORMS = {
    "flow": Form(
        encoding=ValueEncoding(low=-5.1, high=5.1), activation="relu", norm="rms", norm_first=True
    ),
    "flow_official": Form(encoding=ValueEncoding(low=-5.1, high=5.1)),
}
DEPTHS = {"flow": 2, "flow_official": 4}
"""Hidden layers that each ships with."""
FLOATS = ("low", "high")
INTEGERS = ("E", "N", "M", "start_stride", "value_stride", "steps", "k")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one compiled kernel takes."""

    arch: int
    width: int
    form: str
    kernel: str
    products: str
    tile: gpu.Tile
    registers: int
    shared: int
    """[bytes]"""
    spilled: int
    """Stores and loads [bytes]."""

    @property
    def fits(self) -> bool:
        """No spill, and a block's shared memory suffices."""
        return self.spilled == 0 and self.shared <= 1024 * SHARED_KIB[self.arch]


def compiled(
    arch: int, width: int, form: str, kernel: str, products: str
) -> tuple[CompiledKernel, gpu.Tile]:
    """One kernel with the tile that ships."""
    backward = kernel == "backward"
    function = gpu.backward_kernel if backward else gpu.forward_kernel
    exact = products == "exact"
    dtype = torch.float32 if exact else getattr(torch, products)
    tile = gpu.tile_for(width, dtype, exact=exact, backward=backward)
    shape = gpu.constants(
        FORMS[form], width, depth=DEPTHS[form], points=0 if exact else TABLE_POINTS
    )
    constexprs: dict[str, Any] = {
        **shape,
        "HAS_SHIFT": not FORMS[form].norm_first,
        "R": tile.rows,
        "BK": tile.inner,
    }
    if not backward:
        constexprs["SAVE"] = True
    half = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    signature = {}
    for name in function.arg_names:
        if name in constexprs:
            signature[name] = "constexpr"
        elif name in FLOATS:
            signature[name] = "fp32"
        elif name in INTEGERS:
            signature[name] = "i32"
        else:
            signature[name] = half if name in ("hidden", "scratch") else "*fp32"
    # Every buffer the allocator hands out is aligned to 16 bytes, and launches are specialised so.
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(function.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(function, signature, constexprs, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options), tile


def resources(arch: int, width: int, form: str, kernel: str, products: str) -> Row:
    """Compile one kernel and read its resources from the assembler's report."""
    found, tile = compiled(arch, width, form, kernel, products)
    registers, spilled = _assembled(found.asm["ptx"], arch)
    return Row(
        arch=arch,
        width=width,
        form=form,
        kernel=kernel,
        products=products,
        tile=tile,
        registers=registers,
        shared=found.metadata.shared,
        spilled=spilled,
    )


def _assembled(ptx: str, arch: int) -> tuple[int, int]:
    """Registers per thread and spilled bytes, as the assembler says."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    assembler = tools / ("ptxas-blackwell" if arch >= 100 else "ptxas")
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        said = subprocess.run(
            [assembler, "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", said)
    assert registers is not None, said
    spills = re.findall(r"(\d+) bytes spill", said)
    return int(registers[1]), sum(map(int, spills))


def report(archs: list[int], widths: list[int], products: list[str]) -> Iterator[Row]:
    """Every combination, one at a time."""
    for width in widths:
        for form in FORMS:
            for kernel in ("forward", "backward"):
                for dtype in products:
                    for arch in archs:
                        yield resources(arch, width, form, kernel, dtype)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--archs", type=int, nargs="+", default=[*SHARED_KIB], choices=SHARED_KIB)
    parser.add_argument("--widths", type=int, nargs="+", default=[*WIDTHS])
    parser.add_argument("--products", nargs="+", default=[*PRODUCTS], choices=PRODUCTS)
    options = parser.parse_args()
    print(f"triton {triton.__version__}, torch {torch.__version__}")
    print(
        "   arch width form          kernel    products  R  BK warps registers shared KiB spilled"
    )
    failed = False
    for row in report(options.archs, options.widths, options.products):
        failed |= not row.fits
        print(
            f"{'  ' if row.fits else '! '}sm_{row.arch:<4}{row.width:>4} {row.form:<13}"
            f" {row.kernel:<9} {row.products:<9} {row.tile.rows:>2} {row.tile.inner:>3}"
            f" {row.tile.warps:>5} {row.registers:>9} {row.shared / 1024:>10.1f} {row.spilled:>7}",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
