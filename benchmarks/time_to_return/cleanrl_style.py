"""PPO in one file, as CleanRL writes it: its settings for continuous actions, our own lines.

Source of the settings: vwxyzjn/cleanrl, ppo_continuous_action.py, a million steps.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import (
    ClipAction,
    NormalizeObservation,
    NormalizeReward,
    TransformObservation,
    TransformReward,
)
from torch import Tensor, nn

from benchmarks.time_to_return.clock import Clock, options

TOTAL, STEPS, EPOCHS, MINIBATCHES, EVERY = 1_000_000, 2048, 10, 32, 10_000
RATE, GAMMA, LAMBDA, CLIP, VALUE_COEF, MAX_NORM = 3e-4, 0.99, 0.95, 0.2, 0.5, 0.5


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """Orthogonal weights, no bias at first."""
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


class Agent(nn.Module):
    """A mean and a value, two layers of 64 units each, and a free log standard deviation."""

    def __init__(self, obs: int, act: int) -> None:
        super().__init__()

        def network(outputs: int, gain: float) -> nn.Sequential:
            inner = (layer(obs, 64), nn.Tanh(), layer(64, 64), nn.Tanh())
            return nn.Sequential(*inner, layer(64, outputs, gain))

        self.mean, self.value = network(act, 0.01), network(1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(act))

    def distribution(self, obs: Tensor) -> torch.distributions.Independent:
        """Over actions."""
        normal = torch.distributions.Normal(self.mean(obs), self.log_std.exp())
        return torch.distributions.Independent(normal, 1)


def main() -> None:
    """Learn until the clock, or a million steps, end it."""
    told = options()
    torch.set_num_threads(told.threads)
    torch.manual_seed(told.seed)
    np.random.seed(told.seed)
    normaliser = NormalizeObservation(ClipAction(gymnasium.make(told.task)))
    env = TransformObservation(normaliser, lambda seen: np.clip(seen, -10, 10), None)
    env = TransformReward(NormalizeReward(env, gamma=GAMMA), lambda paid: np.clip(paid, -10, 10))
    width, act = env.observation_space.shape[0], env.action_space.shape[0]
    agent, clock = Agent(width, act), Clock(told, EVERY)
    adam = torch.optim.Adam(agent.parameters(), lr=RATE, eps=1e-5)

    @torch.no_grad()
    def greedy(state: np.ndarray) -> np.ndarray:
        seen = (state - normaliser.obs_rms.mean) / np.sqrt(normaliser.obs_rms.var + 1e-8)
        mean = agent.mean(torch.from_numpy(np.float32(np.clip(seen, -10, 10))))
        return np.clip(mean.numpy(), -1, 1)

    obs_TD, action_TA = torch.zeros(STEPS, width), torch.zeros(STEPS, act)
    log_T, reward_T, value_T, ended_T = (torch.zeros(STEPS) for _ in range(4))
    seen, ended = np.float32(env.reset(seed=told.seed)[0]), False
    steps = 0
    while clock.going(steps, greedy) and steps < TOTAL:
        adam.param_groups[0]["lr"] = RATE * (1 - steps / TOTAL)
        for t in range(STEPS):
            obs_TD[t], ended_T[t] = torch.from_numpy(seen), float(ended)
            with torch.no_grad():
                choice = agent.distribution(obs_TD[t])
                action_TA[t] = choice.sample()
                log_T[t], value_T[t] = choice.log_prob(action_TA[t]), agent.value(obs_TD[t])
            new, reward, terminated, truncated, _ = env.step(action_TA[t].numpy())
            reward_T[t], ended = float(reward), terminated or truncated
            seen = np.float32(env.reset()[0] if ended else new)
        with torch.no_grad():
            last = agent.value(torch.from_numpy(seen))[0]
            advantage_T, ahead = torch.zeros(STEPS), 0.0
            for t in reversed(range(STEPS)):
                final = t == STEPS - 1
                goes_on = 1 - (float(ended) if final else ended_T[t + 1])
                following = last if final else value_T[t + 1]
                delta = reward_T[t] + GAMMA * following * goes_on - value_T[t]
                ahead = delta + GAMMA * LAMBDA * goes_on * ahead
                advantage_T[t] = ahead
            return_T = advantage_T + value_T
        for _ in range(EPOCHS):
            for rows in torch.randperm(STEPS).chunk(MINIBATCHES):
                choice = agent.distribution(obs_TD[rows])
                ratio = (choice.log_prob(action_TA[rows]) - log_T[rows]).exp()
                gain = advantage_T[rows]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                policy = torch.max(-gain * ratio, -gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                value, old = agent.value(obs_TD[rows])[:, 0], value_T[rows]
                near = old + (value - old).clamp(-CLIP, CLIP)
                missed = torch.max((value - return_T[rows]) ** 2, (near - return_T[rows]) ** 2)
                adam.zero_grad()
                (policy + VALUE_COEF * 0.5 * missed.mean()).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_NORM)
                adam.step()
        steps += STEPS
    clock.say()


if __name__ == "__main__":
    main()
