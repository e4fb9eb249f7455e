"""The published FlashSAC as its scripts for CPU simulators run it, eager in float32.

A checkout of Holiday-Robot/FlashSAC is given in place of the algorithm's name.
"""

from pathlib import Path

import gymnasium
import numpy as np
import torch

from benchmarks.time_to_return.clock import Clock, options
from supple.bench.reference import load_official, official_agent
from supple.bench.table import Shape
from supple.machine import keep_freed_memory

EVERY, BATCH, MIN_REPLAY, RING = 1_800, 512, 10_000, 200_000


def main() -> None:
    """Learn until the clock ends it."""
    told = options()
    torch.set_num_threads(told.threads)
    keep_freed_memory()  # or its updates wait for pages, which is not what is compared
    torch.manual_seed(told.seed)
    np.random.seed(told.seed)
    env = gymnasium.make(told.task)
    sizes = (env.observation_space.shape[0], env.action_space.shape[0], BATCH)
    agent = official_agent(
        load_official(Path(told.algorithm)),
        Shape(*sizes),
        seed=told.seed,
        buffer_max_length=RING,
        buffer_min_length=MIN_REPLAY,
        temp_target_entropy=None,
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
        row = {
            "observation": obs,
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "next_observation": final,
        }
        agent.process_transition({name: np.float32([value]) for name, value in row.items()})
        obs = np.float32(env.reset()[0] if terminated or truncated else final)
        if agent.can_start_training():
            agent.update()
    clock.say()


if __name__ == "__main__":
    main()
