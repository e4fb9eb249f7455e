"""What safety costs: the guard of gradient steps, the quarantine of rows, a checkpoint's stall.

``python benchmarks/safety.py update|rows|save [ROUNDS] [MODE...]`` appends rows to
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

from supple import launch, machine
from supple.agents import FlashSAC, FlashSACSettings
from supple.agents.adam import Adam
from supple.bench.table import Shape, append, filled_ring, interleaved
from supple.configs import default_settings
from supple.envs.base import step_result
from supple.region import Compute
from supple.replay import Replay, ReplaySettings, Segments
from supple.run import Run
from supple.train import train

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


def bench_rows(rounds: int, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What looking at a step takes, beside a whole vector step of the laptop's loop."""
    for task in ("gym/Pendulum-v1", "gym/HalfCheetah-v5"):
        settings = default_settings(task, agent="flashsac", preset="laptop")
        settings.device, settings.compute.compile = "cpu", "off"
        settings.env_steps, settings.eval.video = 40 * settings.env.num_envs * rounds, False
        settings.agent.min_replay = settings.agent.batch_size
        settings.eval.episodes = 1
        with tempfile.TemporaryDirectory() as folder:
            settings.run_dir = str(Path(folder) / "run")
            step, own = _timed(launch.new_run(settings))
        usual = np.median(own)
        yield row(f"vector step, {task}, laptop preset, eager, processor time", step - usual, step)


def _timed(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every vector step of a whole run, and of looking at what each returned."""
    admit, begin = run._quarantine.admit, run.begin_step
    begun, own = [], []

    def timed(*given: Any) -> Any:
        start = time.process_time()
        found = admit(*given)
        own.append(time.process_time() - start)
        return found

    def noted(action: torch.Tensor) -> None:
        begun.append(time.process_time())
        begin(action)

    run._quarantine.admit = timed  # type: ignore[method-assign]
    run.begin_step = noted  # type: ignore[method-assign]
    with run.display, run:
        train(run)
    return np.diff(begun), np.array(own)


def bench_save(rounds: int, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The stall of a save after a million new rows of 376 numbers, and of any step before it."""
    envs, rows = 64, 1_000_000
    shape = Shape(376, 17, 0)
    spec = dataclasses.replace(shape.spec(), num_envs=envs)
    obs = {"policy": torch.randn(envs, 376)}
    flag = torch.zeros(envs, dtype=torch.bool)
    step = step_result(
        observation=obs,
        reward=torch.randn(envs),
        terminated=flag,
        truncated=flag,
        final_observation=obs,
    ).to_dict()
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
    benches = {"update": bench_update, "rows": bench_rows, "save": bench_save}
    found = list(benches[what](rounds, modes))
    for each in found:
        print(each)
    append(found, RESULTS, f"python benchmarks/safety.py {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
