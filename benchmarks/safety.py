"""What safety costs: the guard of gradient steps, the quarantine of rows, a checkpoint's stall.

``python benchmarks/safety.py update|guard|rows|save [ROUNDS] [MODE...]`` appends rows to
``results/safety.csv``. Variants take turns in one process, on one thread. ``update`` and ``rows``
count processor time, which neighbours on the machine hardly change; ``save`` counts wall-clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from supple import machine
from supple.agents import FlashSAC, FlashSACSettings
from supple.agents.adam import Adam
from supple.agents.care import all_finite, undo_unless
from supple.bench.table import Shape, append, filled_ring, interleaved
from supple.envs.base import Step, step_result
from supple.quarantine import Quarantine
from supple.region import Compute
from supple.replay import Replay, ReplaySettings, Segments

RESULTS = Path(__file__).parent / "results" / "safety.csv"


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Gradient steps as they were without the guard."""
    always = torch.ones((), dtype=torch.bool)
    step = Adam.step

    def plain(self: Adam, gradients: Any, *, factor: Any = None, enabled: Any = None) -> None:
        step(self, gradients, factor=factor)

    with (
        patch("supple.agents.flashsac.all_finite", lambda loss, gradients: always),
        patch("supple.agents.flashsac.undo_unless", lambda good, values, before: None),
        patch("supple.agents.care.Skips.count", lambda self, name, good: None),
        patch("supple.agents.care.Skips.note", lambda self, inputs, state: None),
        patch.object(Adam, "step", plain),
    ):
        yield


def bench_update(rounds: int, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Two gradient steps of the default networks, with and without the guard."""
    for obs, act, batch in ((17, 6, 512),):
        shape = Shape(obs, act, batch)
        spec = shape.spec()
        variants: dict[str, Callable[[], object]] = {}
        for mode in modes:
            compute = Compute(compile=mode == "compiled")
            replay = filled_ring(spec, compute)
            for kind in ("without", "with"):
                settings = FlashSACSettings(batch_size=batch, min_replay=1)
                agent = FlashSAC(spec, settings, total_env_steps=10**6, compute=compute)
                around = unguarded if kind == "without" else contextlib.nullcontext

                def steps(
                    agent: FlashSAC = agent, replay: Replay = replay, around: Any = around
                ) -> None:
                    with around():
                        agent.update(replay)
                        agent.update(replay)

                variants[f"{mode} {kind}"] = steps
        found = interleaved(variants, rounds, clock=time.process_time)
        for mode in modes:
            before, after = (np.array(found[f"{mode} {kind}"]) for kind in ("without", "with"))
            yield row(f"gradient step, {mode}, {shape}, processor time", before / 2, after / 2)


def bench_guard(rounds: int, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the guard adds to an eager critic step, by itself: compare with ``bench_update.csv``."""
    shape = Shape(17, 6, 512)
    agent = FlashSAC(shape.spec(), FlashSACSettings(), total_env_steps=10**6)
    gradients = [torch.randn_like(param) for param in agent._critic_params]
    statistics = [*agent.critic.buffers(), *agent.target_critic.buffers()]

    def guard() -> None:
        before = [value.clone() for value in statistics]
        good = all_finite(torch.ones(()), gradients)
        undo_unless(good, statistics, before)
        agent.skips.count("critic", good)
        agent.skips.note(("critic",), (), dict)

    found = interleaved({"guard": guard}, rounds, clock=time.process_time)
    weights = sum(value.numel() for value in gradients)
    what = f"guard of a critic step alone, eager, {weights:,} weights, processor time"
    yield row(what, np.zeros(rounds), np.array(found["guard"]))


def random_step(envs: int, width: int) -> Step:
    """A vector step in which nothing ends."""
    obs, flag = {"policy": torch.randn(envs, width)}, torch.zeros(envs, dtype=torch.bool)
    found: Step = step_result(
        observation=obs,
        reward=torch.randn(envs),
        terminated=flag,
        truncated=flag,
        final_observation=obs,
    ).to_dict()
    return found


def bench_rows(rounds: int, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What looking at a good step takes on the CPU: compare with ``bench_loop.csv``."""
    for envs, width in ((8, 17), (64, 376)):
        spec = dataclasses.replace(Shape(width, 6, 0).spec(), num_envs=envs)
        quarantine = Quarantine(spec, on_bad="quarantine", reward_limit=1e8, compute=Compute())
        step = random_step(envs, width)
        action = torch.rand(envs, 6)

        def hundred(quarantine: Any = quarantine, action: Any = action, step: Any = step) -> None:
            for _ in range(100):
                quarantine.admit(action, step)

        found = np.array(interleaved({"a": hundred}, rounds, clock=time.process_time)["a"]) / 100
        what = f"looking at a vector step, {envs} x {width}, processor time"
        yield row(what, np.zeros(rounds), found)


def bench_save(rounds: int, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The stall of a save after a million new rows of 376 numbers, and of any step before it."""
    envs, rows = 64, 1_000_000
    shape = Shape(376, 17, 0)
    spec = dataclasses.replace(shape.spec(), num_envs=envs)
    step = random_step(envs, 376)
    obs = step["observation"]
    found: dict[str, tuple[float, float]] = {}
    for kind in ("at once", "ahead"):
        replay = Replay(spec, ReplaySettings(capacity=rows))
        with (
            tempfile.TemporaryDirectory(dir=".") as folder,
            patch("supple.replay.segments.SEGMENT_BYTES", 2**25 if kind == "ahead" else 2**60),
        ):
            segments = Segments(replay, Path(folder), ahead=kind == "ahead")
            longest = 0.0
            steps = rows // envs + 40  # not at a segment's edge
            for number in range(steps):
                replay.add(obs, torch.zeros(envs, 17), step)
                start = time.perf_counter()
                segments.write_ahead((steps - number) if kind == "ahead" else 0)
                longest = max(longest, time.perf_counter() - start)
                time.sleep(0.002)  # learning from 64 transitions takes ten times as long
            start = time.perf_counter()
            segments.save()
            found[kind] = (time.perf_counter() - start, longest)
            segments.close()
    (before, _), (after, longest) = found["at once"], found["ahead"]
    yield row("stall of a save, 1,000,000 new rows of 376", np.array([before]), np.array([after]))
    yield row("longest stall of a vector step before it", np.zeros(1), np.array([longest]))


def row(what: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Medians of paired timings."""
    ratio = float(np.median(after / np.maximum(before, 1e-9))) if before.any() else float("nan")
    return {
        "what": what,
        "without ms": f"{1e3 * np.median(before):.3f}",
        "with ms": f"{1e3 * np.median(after):.3f}",
        "ratio": f"{ratio:.4f}",
        "timings": len(before),
    }


def main() -> None:
    """Measure, print and append."""
    what, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 25
    modes = sys.argv[3:] or ("eager", "compiled")
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    benches = {"update": bench_update, "guard": bench_guard, "rows": bench_rows, "save": bench_save}
    found = list(benches[what](rounds, modes))
    for each in found:
        print(each)
    append(found, RESULTS, f"python benchmarks/safety.py {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
