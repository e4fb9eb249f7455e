"""SAC and PPO of Stable-Baselines3 with their defaults."""

import gymnasium
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.time_to_return.clock import Clock, options, say_versions

EVERY = {"SAC": 1_800, "PPO": 10_000}


class Watched(BaseCallback):
    """Asks the clock after each step."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def _on_step(self) -> bool:
        return self._clock.going(
            self.num_timesteps, lambda obs: self.model.predict(obs, deterministic=True)[0]
        )


def main() -> None:
    """Learn until the clock ends it."""
    told = options()
    torch.set_num_threads(told.threads)
    learner = getattr(stable_baselines3, told.algorithm)
    model = learner("MlpPolicy", gymnasium.make(told.task), seed=told.seed, device="cpu")
    model.learn(10**9, callback=Watched(Clock(told, EVERY[told.algorithm])))
    say_versions(**{"stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
