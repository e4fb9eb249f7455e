"""SAC and PPO of Stable-Baselines3: with its defaults, RL Zoo's settings, or our laptop's sizes.

Source of the Zoo's: DLR-RM/rl-baselines3-zoo, hyperparams/{sac,ppo}.yml, the tasks' version 3; they
are for a million steps. Its SAC is not run: it has the defaults, after 10,000 random steps instead
of 100. Both learn on one environment.
"""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from benchmarks.time_to_return.clock import Clock, options

EVERY = {"SAC": 1_800, "PPO": 10_000}
WIDE = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}
ZOO_PPO: Mapping[str, Mapping[str, Any]] = {
    "HalfCheetah-v5": {
        "n_steps": 512,
        "batch_size": 64,
        "gamma": 0.98,
        "learning_rate": 2.0633e-5,
        "ent_coef": 0.000401762,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "vf_coef": 0.58096,
        "policy_kwargs": WIDE,
    },
    "Hopper-v5": {
        "n_steps": 512,
        "batch_size": 32,
        "gamma": 0.999,
        "learning_rate": 9.80828e-5,
        "ent_coef": 0.00229519,
        "clip_range": 0.2,
        "n_epochs": 5,
        "gae_lambda": 0.99,
        "max_grad_norm": 0.7,
        "vf_coef": 0.835671,
        "policy_kwargs": WIDE,
    },
    "Walker2d-v5": {
        "n_steps": 512,
        "batch_size": 32,
        "gamma": 0.99,
        "learning_rate": 5.05041e-5,
        "ent_coef": 0.000585045,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.95,
        "max_grad_norm": 1.0,
        "vf_coef": 0.871923,
    },
}
SAC_LAPTOP: Mapping[str, Any] = {
    "batch_size": 128,
    "learning_rate": 1e-3,
    "tau": 0.02,
    "n_steps": 3,
    "learning_starts": 2_000,
    "train_freq": 8,
    "gradient_steps": 8,
    "policy_kwargs": {"net_arch": [64, 64]},
}
"""What our ``laptop`` preset has, as far as SAC has it."""


class Watched(BaseCallback):
    """Asks the clock after each step."""

    def __init__(self, clock: Clock, seen: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self._clock, self._seen = clock, seen

    def _act(self, obs: np.ndarray) -> np.ndarray:
        action: np.ndarray = self.model.predict(self._seen(obs), deterministic=True)[0]
        return action

    def _on_step(self) -> bool:
        return self._clock.going(self.num_timesteps, self._act)


def main() -> None:
    """Learn until the clock ends it."""
    told = options()
    torch.set_num_threads(told.threads)
    kind = told.algorithm.partition("-")[0]
    env: Any = gymnasium.make(told.task)
    seen: Callable[[np.ndarray], np.ndarray] = np.asarray
    chosen = SAC_LAPTOP if told.algorithm == "SAC-laptop" else {}
    if told.algorithm == "PPO-zoo":
        chosen = ZOO_PPO[told.task]
        single = env
        env = VecNormalize(DummyVecEnv([lambda: single]), gamma=chosen["gamma"])
        seen = env.normalize_obs
    learner = getattr(stable_baselines3, kind)
    model = learner("MlpPolicy", env, seed=told.seed, device="cpu", **chosen)
    clock = Clock(told, EVERY[kind])
    model.learn(10**9, callback=Watched(clock, seen))
    clock.say("stable-baselines3")


if __name__ == "__main__":
    main()
