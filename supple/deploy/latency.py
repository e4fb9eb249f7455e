"""How long one policy step takes: percentiles over repeats, on one thread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from supple.deploy.runtimes import Runtime

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds of one step: each percentile's median over repeats."""

    p50: float
    p95: float
    p99: float
    steps: int
    repeats: int


def measure(runtime: Runtime, observation: np.ndarray, *, repeats: int) -> Latency:
    """Time single steps.

    Args:
        runtime: what to time.
        observation: (T, D), one step each.
        repeats: passes over them after one that warms up.
    """
    samples = runtime.latency(observation, repeats)
    p50, p95, p99 = np.median(np.percentile(samples, PERCENTILES, axis=1), axis=1).tolist()
    return Latency(p50, p95, p99, len(observation), repeats)
