"""FlashSAC in a loop of one's own."""

import torch

from supple.agents import FlashSAC, FlashSACSettings
from supple.envs import EnvSettings, make
from supple.replay import Replay, ReplaySettings

env = make("gym/Pendulum-v1", EnvSettings(num_envs=4), device=torch.device("cpu"))
settings = FlashSACSettings(
    batch_size=64, utd=0.25, min_replay=400, critic_hidden=32, actor_hidden=32
)
agent = FlashSAC(env.spec, settings, total_env_steps=2_000, seed=0)
replay = Replay(env.spec, ReplaySettings(capacity=2_000))

obs = env.reset(seed=0)["observation"]
for _ in range(500):
    action, extras = agent.act(obs, explore=True)
    step = env.step(action)
    agent.observe(step)
    replay.add(obs, action, step, extras)
    obs = step["observation"]
    metrics = agent.update(replay)
print({name: round(float(value), 3) for name, value in metrics.items()})
