"""The stopwatch of the learners beside us: it stands still while ten episodes are judged.

Only what a learner's own environment has is imported: gymnasium and NumPy.
"""

import argparse
import json
import time
from collections.abc import Callable
from importlib.metadata import version

import gymnasium
import numpy as np

EPISODES = 10
APART = 5.0
"""Seconds of the clock between evaluations at least: judging takes longer than fast learners do."""


class Clock:
    """Prints one JSON line per evaluation.

    Args:
        options: what ``options`` read: an evaluation at ``level`` ends the run, or ``limit`` [s].
        every: environment steps between evaluations.
    """

    def __init__(self, options: argparse.Namespace, every: int) -> None:
        self._every, self._level, self._limit = every, options.level, options.limit
        self._env = gymnasium.make(options.task)
        self._env.reset(seed=options.seed + 1000)
        self._judged, self._judged_at = 0, -APART  # environment steps, seconds
        self._ended = ""
        self._began = time.monotonic()

    def going(self, steps: int, act: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Judge where it is due; whether to go on.

        Args:
            steps: environment steps so far.
            act: the deterministic policy, (D,) to (A,).
        """
        seconds = time.monotonic() - self._began
        over, new = seconds >= self._limit, steps > self._judged
        due = steps // self._every > self._judged // self._every
        if new and (over or (due and seconds - self._judged_at >= APART)):
            if self._judge(steps, seconds, act) >= self._level:
                self._ended = "reached"
            self._judged, self._judged_at = steps, seconds
            self._began = time.monotonic() - seconds
        if over and not self._ended:
            self._ended = "limit"
        return not self._ended

    def _judge(self, steps: int, seconds: float, act: Callable[[np.ndarray], np.ndarray]) -> float:
        returns = [self._episode(act) for _ in range(EPISODES)]
        mean = float(np.mean(returns))
        row = {"seconds": seconds, "env_steps": steps, "return_mean": mean}
        print(json.dumps({**row, "return_std": float(np.std(returns, ddof=1))}), flush=True)
        return mean

    def _episode(self, act: Callable[[np.ndarray], np.ndarray]) -> float:
        (obs, _), total, over = self._env.reset(), 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = self._env.step(act(obs))
            total, over = total + float(reward), terminated or truncated
        return total

    def say(self, *packages: str) -> None:
        """The last line: how it ended, and which versions of these packages learned."""
        names = (*packages, "torch", "gymnasium", "mujoco")
        versions = ", ".join(f"{name} {version(name)}" for name in names)
        print(json.dumps({"ended": self._ended or "steps", "versions": versions}), flush=True)


def options() -> argparse.Namespace:
    """What every learner is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm")
    parser.add_argument("task")
    for name in ("seed", "threads"):
        parser.add_argument(name, type=int)
    for name in ("level", "limit"):
        parser.add_argument(name, type=float)
    return parser.parse_args()
