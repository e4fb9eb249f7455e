"""Where the time of a compiled gradient step goes, kernel by kernel."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from supple.agents import FlashSACSettings
from supple.bench.table import Shape, compute_of, settle
from supple.bench.update import our_updates
from supple.region import Precision, has_bfloat16

PRODUCTS = ("aten::bmm", "aten::mm", "aten::addmm", "aten::baddbmm", "mkldnn")
GPU_PRODUCTS = ("gemm", "cutlass", "nvjet", "xmma")
"""What cuBLAS' kernels have in their names."""
CALLS = 5
SHOWN = 12
"""Kernels named; the rest is summed."""


def is_product(kernel: str) -> bool:
    """Whether a kernel of this name multiplies matrices."""
    return kernel.startswith(PRODUCTS) or any(part in kernel for part in GPU_PRODUCTS)


def bench_profile(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds per gradient step by kernel, in the precision this machine multiplies best."""
    precise: Precision = "bfloat16" if has_bfloat16(shape.device) else "float32"
    compute = compute_of("compiled", precise)
    settings = FlashSACSettings(batch_size=shape.batch_size, min_replay=1)
    # Compiled kernels then tell the profiler their names.
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        step = our_updates(shape, settings, compute)
        step()
    on_gpu = shape.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(CALLS):
            step()
        settle()
    spent: dict[str, float] = {}
    for event in found.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = "matrix products" if is_product(event.key) else event.key
        spent[name] = spent.get(name, 0.0) + own / (2e3 * CALLS)
    total = sum(spent.values())
    largest = sorted(spent, key=lambda name: -spent[name])[:SHOWN]
    shown = {name: spent[name] for name in largest}
    shown["everything smaller"] = total - sum(shown.values())
    return [
        {
            "kernel": name[:90],
            "precision": precise,
            "obs": shape.obs,
            "act": shape.act,
            "batch": shape.batch_size,
            "ms per update": f"{milliseconds:.3f}",
            "share": f"{milliseconds / total:.3f}",
        }
        for name, milliseconds in shown.items()
    ]
