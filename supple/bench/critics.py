"""What each critic costs: one gradient step of the laptop preset, everything else the same."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from supple.agents.flashsac_settings import CRITICS, FlashSACSettings
from supple.bench.table import MODES, Shape, compute_of, interleaved, row
from supple.bench.update import counted_flops, our_updates
from supple.configs import default_settings


def bench_critics(obs: int, act: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Float32 steps in the fastest of the modes, every second with an actor step, with sampling.

    Args:
        obs: observation width.
        act: action width.
        options: ``rounds``, ``modes``, ``device``.
    """
    variants, shapes, flops = {}, {}, {}
    for critic in CRITICS:
        agent = default_settings("toy/lqr", preset="laptop", critic=critic).agent
        assert isinstance(agent, FlashSACSettings)
        agent.min_replay = agent.update_every = 1
        shapes[critic] = Shape(obs, act, agent.batch_size, options.device)
        on_cpu = Shape(obs, act, agent.batch_size)
        flops[critic] = counted_flops(our_updates(on_cpu, agent, compute_of("eager"))) / 2
        compute = compute_of(max(options.modes, key=MODES.index))
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
