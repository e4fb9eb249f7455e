"""PPO's presets."""

from __future__ import annotations

from collections.abc import Callable

from supple.agents.ppo_settings import PPOSettings
from supple.configs.base import Settings


def laptop(settings: Settings) -> None:
    """Minutes on a CPU: many environments in a batch, small networks, normalised rewards."""
    cpu(settings)
    settings.env_steps = 200_000
    settings.eval.episodes = 10
    agent = _own(settings)
    agent.actor_hidden = agent.critic_hidden = (64, 64)


def cpu(settings: Settings) -> None:
    """A million steps of CPU simulators."""
    settings.env_steps = 1_000_000
    settings.threads = 1
    settings.compute.precision = "float32"
    settings.env.num_envs = 16
    settings.eval.episodes = 50
    agent = _own(settings)
    agent.rollout_steps = 128
    agent.epochs = 10
    agent.minibatches = 16
    agent.gae_lambda = 0.9
    agent.clip_value = False
    agent.value_coef = 0.5
    agent.entropy_coef = 0.0
    agent.max_grad_norm = 0.5
    agent.lr = 3e-4
    agent.lr_schedule = "linear"
    agent.normalise_reward = True
    agent.normalise_advantage = "minibatch"
    agent.actor_hidden = agent.critic_hidden = (256, 256)
    agent.activation = "tanh"
    agent.initial_std = 0.5


def gpu(settings: Settings) -> None:
    """The published values for GPU simulators.

    Source: isaac-sim/IsaacLab, the rsl_rl settings of its rough-terrain velocity tasks.
    """
    settings.env_steps = 150_000_000
    # As published; rounded to bfloat16, means and values carry noise into every probability ratio.
    settings.compute.precision = "float32"
    settings.env.num_envs = 4096
    settings.eval.episodes = 1024
    agent = _own(settings)
    agent.actor_hidden = agent.critic_hidden = (512, 256, 128)


PRESETS: dict[str, Callable[[Settings], None]] = {"laptop": laptop, "cpu": cpu, "gpu": gpu}


def _own(settings: Settings) -> PPOSettings:
    assert isinstance(settings.agent, PPOSettings)
    return settings.agent
