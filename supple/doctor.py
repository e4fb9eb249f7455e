"""``supple doctor`` and ``supple list``: what is installed, what works, what there is to train."""

from __future__ import annotations

import os

import torch

from supple import machine
from supple.cli import DONE
from supple.display import Display
from supple.envs import known_tasks


def check_machine() -> int:
    """Print versions, the machine's state and each simulator's; returns the exit status."""
    rows = machine.versions()
    rows["CUDA"] = "yes" if torch.cuda.is_available() else "no: training runs on the CPU"
    rows["bfloat16 matmul"] = "yes" if torch.backends.mkldnn.is_available() else "no"
    rows["keeps freed memory"] = "yes" if machine.keep_freed_memory() else "no: not glibc"
    rows["rendering"] = os.environ.get("MUJOCO_GL", "MUJOCO_GL not set: egl is tried")
    Display.print_table("this machine", rows)
    simulators = known_tasks()
    Display.print_table(
        "simulators",
        {name: simulator.status for name, simulator in simulators.items()},
    )
    return DONE
