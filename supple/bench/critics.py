"""What each critic costs: one gradient step of the laptop preset, everything else the same."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from supple.agents.flashsac_settings import CRITICS, FlashSACSettings
from supple.bench.table import Shape, interleaved, row
from supple.bench.update import counted_flops, our_updates
from supple.configs import default_settings
from supple.region import Compute


def bench_critics(obs: int, act: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiled float32 steps, every second with an actor step, sampling included.

    Args:
        obs: observation width.
        act: action width.
        options: ``rounds``.
    """
    variants, shapes, flops = {}, {}, {}
    for critic in CRITICS:
        agent = default_settings("toy/lqr", preset="laptop", critic=critic).agent
        assert isinstance(agent, FlashSACSettings)
        agent.min_replay = agent.update_every = 1
        shapes[critic] = Shape(obs, act, agent.batch_size)
        eager = our_updates(shapes[critic], agent, Compute(precision="float32", compile=False))
        flops[critic] = counted_flops(eager) / 2
        compute = Compute(precision="float32", compile=True)
        variants[critic] = our_updates(shapes[critic], agent, compute)
    seconds = interleaved(variants, options.rounds)
    usual = float(np.median(seconds["categorical"]))
    rows = []
    for critic, values in seconds.items():
        found = row(shapes[critic], critic, [value / 2 for value in values], updates=1)
        found["MFLOP"] = f"{flops[critic] / 1e6:.0f}"
        found["x categorical's time"] = f"{np.median(values) / usual:.2f}"
        rows.append(found)
    return rows
