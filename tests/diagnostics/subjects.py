"""Small agents of every kind with random transitions, as the diagnostics see them."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from supple.agents.flow_settings import FlowSettings
from supple.agents.ppo import PPO
from supple.agents.ppo_settings import PPOSettings
from supple.diagnostics.data import DataSets, Transitions
from supple.diagnostics.subject import subject_of
from supple.diagnostics.views import calibrate
from supple.envs.base import Discrete
from tests.agents.small_agents import ACTIONS, OBSERVATIONS, generator, small_agent, small_spec

KINDS = ("categorical", "scalar", "flow", "flow_official", "ppo", "ppo_discrete")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def agent_of(kind, *, seed=0, **changes):
    if kind.startswith("ppo"):
        spec = small_spec(action=Discrete(n=3)) if kind == "ppo_discrete" else small_spec()
        sizes: dict[str, Any] = {
            "actor_hidden": (16, 16),
            "critic_hidden": (16, 16),
            "activation": "relu",
        }
        settings = PPOSettings(**{**sizes, "rollout_steps": 8, "minibatches": 2, **changes})
        return PPO(spec, settings, total_env_steps=2000, seed=seed)
    flow = FlowSettings(
        width=16, target_steps=4, read_steps=2, target_samples=2, train_samples=2, time_features=8
    )
    if kind == "flow_official":
        flow.activation, flow.norm, flow.readout = "gelu", "layer", "distilled"
    small = {"critic_hidden": 16, "critic_blocks": 1, "actor_blocks": 1}
    return small_agent(seed=seed, critic=kind, flow=flow, **{**small, **changes})


def transitions(kind, rows=2048, *, seed=1, episode_length=16):
    random = generator(seed)

    def obs():
        return {"policy": torch.randn(rows, OBSERVATIONS, generator=random)}

    action = 2 * torch.rand(rows, ACTIONS, generator=random) - 1
    if kind == "ppo_discrete":
        action = torch.randint(3, (rows,), generator=random)
    step = torch.arange(rows) % episode_length
    return Transitions(
        observation=obs(),
        next_observation=obs(),
        action=action,
        reward=torch.randn(rows, generator=random),
        terminated=step == episode_length - 1,
        truncated=torch.zeros(rows, dtype=torch.bool),
        episode=torch.arange(rows) // episode_length,
        step=step,
    )


def subject_with_data(kind, *, rows=2048, seed=0, **changes):
    subject = subject_of(agent_of(kind, seed=seed, **changes), seed=seed)
    data = transitions(kind, rows)
    if not kind.startswith("ppo"):
        settle(subject, data)
    return subject, DataSets(recent=data, anchor=transitions(kind, rows, seed=2))


def settle(subject, data):
    """Give batch norms the statistics of the data, as training would have."""
    agent = subject.agent
    obs = torch.cat([each(agent.actor_groups) for each in (data.obs, data.next_obs)])
    calibrate(agent.actor, lambda: agent.actor(obs, train=True))
    for network in (agent.critic, agent.target_critic):
        inputs = torch.cat([each("critic", data) for each in (subject.inputs, subject.next_inputs)])
        calibrate(network, partial(network, inputs, train=True))


def hidden_layers(subject):
    """Linear layers of a PPO critic but for its head."""
    return [each for each in subject.agent.critic.layers if isinstance(each, nn.Linear)][:-1]
