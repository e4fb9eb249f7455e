"""The published FlashSAC as its scripts for CPU simulators run it, eager in float32.

A checkout of Holiday-Robot/FlashSAC is given in place of the algorithm's name.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.time_to_return.clock import Clock, options
from supple.bench.reference import load_official, official_agent
from supple.bench.table import Shape
from supple.machine import keep_freed_memory

EVERY, MIN_REPLAY, RING = 1_800, 10_000, 200_000


def main() -> None:
    """Learn until the clock ends it."""
    told = options()
    torch.set_num_threads(told.threads)
    keep_freed_memory()  # or its updates wait for pages, which is not what is compared
    torch.manual_seed(told.seed)
    np.random.seed(told.seed)
    env = gymnasium.make(told.task)
    widths = (int(np.prod(space.shape)) for space in (env.observation_space, env.action_space))
    obs_width, act_width = widths
    agent = official_agent(
        load_official(Path(told.algorithm)),
        Shape(obs_width, act_width, 512, torch.device("cpu")),
        seed=told.seed,
        buffer_max_length=RING,
        buffer_min_length=MIN_REPLAY,
        learning_rate_decay_step=10**6,
        temp_target_entropy=None,
        load_optimizer=True,
        load_reward_normalizer=True,
    )
    clock, steps = Clock(told, EVERY), 0

    def act(obs: np.ndarray, *, training: bool = False) -> np.ndarray:
        seen = {"next_observation": np.float32(obs)[None]}
        found: np.ndarray = agent.sample_actions(steps, prev_transition=seen, training=training)
        return np.array(found[0])

    env.action_space.seed(told.seed)
    obs = np.float32(env.reset(seed=told.seed)[0])
    while clock.going(steps, act):
        learning = agent.can_start_training()
        action = act(obs, training=True) if learning else env.action_space.sample()
        final, reward, terminated, truncated, _ = env.step(action)
        steps += 1
        row: dict[str, Any] = {
            "observation": obs,
            "action": np.float32(action),
            "reward": np.float32(reward),
            "terminated": np.float32(terminated),
            "truncated": np.float32(truncated),
            "next_observation": np.float32(final),
        }
        agent.process_transition({name: np.asarray(value)[None] for name, value in row.items()})
        obs = np.float32(env.reset()[0] if terminated or truncated else final)
        if agent.can_start_training():
            agent.update()
    clock.say()


if __name__ == "__main__":
    main()
