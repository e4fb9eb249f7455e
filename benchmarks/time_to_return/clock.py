"""The stopwatch of the learners beside us: it stands still while ten episodes are judged.

Only what a learner's own environment has is imported: gymnasium and NumPy.
"""

import argparse
import json
import time
from collections.abc import Callable

import gymnasium
import numpy as np

EPISODES, IN_A_ROW = 10, 3


class Clock:
    """Prints one JSON line per evaluation.

    Args:
        options: what ``options`` read: ``level`` is the return that ends the run once it was
            reached three times in a row, ``limit`` its end [s].
        every: environment steps between evaluations.
    """

    def __init__(self, options: argparse.Namespace, every: int) -> None:
        self._every, self._level, self._limit = every, options.level, options.limit
        self._env = gymnasium.make(options.task)
        self._env.reset(seed=options.seed + 1000)
        self._reached, self._judged = 0, 0
        self._began = time.monotonic()

    def going(self, steps: int, act: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Judge where it is due; whether to go on.

        Args:
            steps: environment steps so far.
            act: the deterministic policy, (D,) to (A,).
        """
        if steps // self._every > self._judged:
            self._judged = steps // self._every
            self._judge(steps, act)
        return self._reached < IN_A_ROW and time.monotonic() - self._began < self._limit

    def _judge(self, steps: int, act: Callable[[np.ndarray], np.ndarray]) -> None:
        stopped = time.monotonic()
        returns = [self._episode(act) for _ in range(EPISODES)]
        row = {
            "seconds": stopped - self._began,
            "env_steps": steps,
            "return_mean": float(np.mean(returns)),
            "return_std": float(np.std(returns, ddof=1)),
        }
        print(json.dumps(row), flush=True)
        self._reached = self._reached + 1 if row["return_mean"] >= self._level else 0
        self._began += time.monotonic() - stopped

    def _episode(self, act: Callable[[np.ndarray], np.ndarray]) -> float:
        (obs, _), total, over = self._env.reset(), 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = self._env.step(act(obs))
            total, over = total + float(reward), terminated or truncated
        return total


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


def say_versions(**versions: str) -> None:
    """The last line."""
    print(json.dumps({"versions": ", ".join(f"{name} {said}" for name, said in versions.items())}))
