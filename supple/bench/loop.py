"""Where a training run's wall-clock goes: the product's own loop, with a stopwatch on each part."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from supple import launch
from supple.agents import base_of
from supple.bench.table import quantiles, settle
from supple.cli import train_settings
from supple.envs.base import Env
from supple.run import Run
from supple.train import train

EVALUATION, EVALUATION_STEP = "evaluation", "evaluation's simulator step"
FINAL = "final evaluation and video"
INSIDE = ("simulator step", "gradient step", "sampling", EVALUATION_STEP)
"""Parts that are the work itself: a gradient step includes drawing its minibatch."""
OWN_PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "flashsac": (("_sample", "sampling"), ("_draw_noise", "sampling"), ("learn", "gradient step")),
    "ppo": (("_pack", "sampling"), ("_learn_step", "gradient step")),
}
"""What each agent's ``update`` calls."""
EXCLUDED = (FINAL, "compiling")
"""Parts a short run would count too heavily: once per run, once per machine."""
OTHER = "everything else"
DIAGNOSTICS = "diagnostics"
MANY_CALLS, SURELY_COMPILING = 100, 0.5
"""A call of a part that is called often and takes this long [s] compiled something; diagnostics
are seldom due, and then take it."""


@dataclass
class _Frame:
    name: str
    inside: float = 0.0
    """Seconds of the parts inside this one."""


@dataclass
class Stopwatch:
    """Seconds spent in each part, without those of the parts inside it."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    _open: list[_Frame] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block. What an evaluation does is the evaluation's, but for the simulator.

        The final one is left out of the sums whole.
        """
        inside = self._open[-1].name if self._open else ""
        if inside == FINAL or (inside == EVALUATION and name != EVALUATION_STEP):
            yield
            return
        frame = _Frame(name)
        self._open.append(frame)
        settle()  # what a part asked of the GPU is that part's
        begin = time.perf_counter()
        try:
            yield
        finally:
            settle()
            spent = time.perf_counter() - begin
            self._open.pop()
            if self._open:
                self._open[-1].inside += spent
            self.seconds.setdefault(name, []).append(spent - frame.inside)

    def watch(self, owner: object, method: str, name: str | Callable[[], str]) -> None:
        """Time every call of a method of one object."""
        function = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(name if isinstance(name, str) else name()):
                return function(*arguments, **options)

        setattr(owner, method, timed)


def bench_loop(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train once in a temporary folder; one row per part of the loop, none if it was stopped."""
    settings = train_settings([options.task, "--device", str(options.device), *options.flags])
    watch = Stopwatch()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        settings.run_dir = str(Path(folder) / "run")
        run = launch.new_run(settings)
        _watch(watch, run)
        stack.enter_context(run.display)
        stack.enter_context(run)
        with watch.part(OTHER):
            train(run)
        if not run.complete:
            return []
        steps, updates = run.env_steps, run.agent.updates
    return rows(watch.seconds, env_steps=steps, updates=updates)


def _watch(watch: Stopwatch, run: Run) -> None:
    agent = run.agent

    def evaluation() -> str:
        return FINAL if run.complete else EVALUATION

    def make_eval_env() -> Env:
        env = made()
        watch.watch(env, "step", EVALUATION_STEP)
        return env

    made, run._make_eval_env = run._make_eval_env, make_eval_env  # type: ignore[method-assign]

    own = OWN_PARTS[base_of(run.settings.agent_name)]
    parts: tuple[tuple[object, str, str | Callable[[], str]], ...] = (
        (run, "end_step", "simulator step"),
        (agent, "act", "acting"),
        (agent, "update", "update budget"),
        *((agent, method, name) for method, name in own),
        (run, "record", "recording"),
        (run, "evaluate", evaluation),
        (run, "_film", evaluation),
        (run, "diagnose", DIAGNOSTICS),
        (run, "log", "metric rows"),
        (run, "save", "checkpoints"),
    )
    for owner, method, name in parts:
        watch.watch(owner, method, name)


def rows(seconds: dict[str, list[float]], *, env_steps: int, updates: int) -> list[dict[str, Any]]:
    """A row per part, the largest first, and two sums."""
    compiling: list[float] = []
    for name, calls in seconds.items():
        if name == DIAGNOSTICS or len(calls) <= MANY_CALLS:
            continue
        usual = float(np.median(calls))
        for at, spent in enumerate(calls):
            if spent > SURELY_COMPILING:
                compiling.append(spent - usual)
                calls[at] = usual
    seconds["compiling"] = compiling or [0.0]
    total = {name: sum(calls) for name, calls in seconds.items()}
    counted = sum(spent for name, spent in total.items() if name not in EXCLUDED)
    inside = sum(total.get(name, 0.0) for name in INSIDE)
    found = [
        _row(name, seconds[name], counted if name not in EXCLUDED else 0)
        for name in sorted(total, key=lambda name: -total[name])
    ]
    found.append(_row("outside simulator and gradient steps", [counted - inside], counted))
    found.append(_row("all but " + " and ".join(EXCLUDED), [counted], counted))
    for row in found:
        row |= {"env steps": env_steps, "updates": updates}
    return found


def _row(name: str, calls: list[float], counted: float) -> dict[str, Any]:
    return {
        "part": name,
        "calls": len(calls),
        "seconds": f"{sum(calls):.2f}",
        "share": f"{sum(calls) / counted:.3f}" if counted else "",
        **quantiles(calls),
    }
