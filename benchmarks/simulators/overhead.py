"""What an adapter adds to a step: ``python overhead.py``, in the main environment.

The same stand-in (``tests/envs``) is stepped alone and adapted, 64 environments; the difference in
processor time is held against the cheapest step of a real simulator, ``STEP_MS``. Processor
time, so that other work on the machine counts for little.
Writes ``benchmarks/results/adapter_overhead.csv``.
"""

from __future__ import annotations

import csv
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from supple import machine
from supple.envs.base import Env
from supple.envs.isaac_gym import LeggedGym, VecTask
from supple.envs.isaaclab import IsaacLab
from supple.envs.rsl_rl import RslRl
from tests.envs import fake_isaac
from tests.envs.test_isaaclab import FakeIsaacLab

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results/adapter_overhead.csv"
NUM_ENVS = 64
CALLS, ROUNDS = 200, 9
STEP_MS = 12.3
"""A vector step of 64 Isaac-Cartpole-Direct on two quiet CPU cores: none of them takes less."""

ADAPTERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Env]]] = {
    "isaaclab": (lambda: FakeIsaacLab(NUM_ENVS), lambda env: IsaacLab(env, task_id="t")),
    "rsl_rl": (
        lambda: fake_isaac.VecEnv(num_envs=NUM_ENVS),
        lambda env: RslRl(env, task_id="t"),
    ),
    "vec_task": (
        lambda: fake_isaac.VecTask("A", NUM_ENVS),
        lambda env: VecTask(env, task_id="t"),
    ),
    "legged_gym": (
        lambda: fake_isaac.LeggedGym(NUM_ENVS),
        lambda env: LeggedGym(env, task_id="t"),
    ),
}


def added_ms(name: str) -> tuple[float, float]:
    """Median processor time of a step alone, and what the adapter adds [ms]; interleaved."""
    make, adapt = ADAPTERS[name]
    raw, adapted = make(), adapt(make())
    raw.reset()
    adapted.reset(0)
    action = torch.zeros(NUM_ENVS, fake_isaac.Cart.num_actions)
    times: dict[str, list[float]] = {"raw": [], "adapted": []}
    for _ in range(ROUNDS):
        for kind, step in (("raw", raw.step), ("adapted", adapted.step)):
            begin = time.process_time()
            for _ in range(CALLS):
                step(action)
            times[kind].append((time.process_time() - begin) / CALLS * 1e3)
    alone, both = (sorted(times[kind])[ROUNDS // 2] for kind in ("raw", "adapted"))
    return alone, both - alone


def main() -> None:
    """Measure each and write the table."""
    torch.set_num_threads(1)
    rows = []
    for name in ADAPTERS:
        alone, added = added_ms(name)
        rows.append(
            {
                "date": datetime.date.today().isoformat(),
                "adapter": name,
                "num_envs": NUM_ENVS,
                "stand-in ms": f"{alone:.4f}",
                "added ms": f"{added:.4f}",
                "step ms": STEP_MS,
                "share of the step": f"{added / (STEP_MS + added):.4f}",
                "machine": f"{machine.processor()}, {machine.cores()} shared cores",
                "versions": f"torch {torch.__version__}",
                "commit": machine.commit(),
                "command": "python benchmarks/simulators/overhead.py",
            }
        )
        print(rows[-1])
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
