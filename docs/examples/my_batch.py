"""A simulator in batches of torch tensors: the contract of supple.envs.base, nothing besides."""

import torch

from supple.envs.base import Box, Env, EnvSpec, reset_result, step_result


class Reach(Env):
    """Move a point to the origin; 50 steps per episode."""

    def __init__(self, num_envs=8, device="cpu"):
        self.spec = EnvSpec(
            task_id="reach",
            num_envs=num_envs,
            observation={"policy": 2},
            action=Box(low=(-0.1, -0.1), high=(0.1, 0.1)),
            device=torch.device(device),
            max_episode_steps=50,
        )

    def reset(self, seed=None):
        device = self.spec.device
        self.random = torch.Generator(device).manual_seed(seed or 0)
        self.position, self.time = self._start(), torch.zeros(self.spec.num_envs, device=device)
        return reset_result({"policy": self.position}, self.spec.num_envs)

    def step(self, action):
        final = self.position + 0.1 * action.clamp(-1, 1)
        self.time = self.time + 1
        done = self.time >= 50
        self.position = torch.where(done[:, None], self._start(), final)
        self.time = torch.where(done, 0, self.time)
        return step_result(
            observation={"policy": self.position},
            reward=-final.norm(dim=-1),
            terminated=torch.zeros_like(done),
            truncated=done,
            final_observation={"policy": final},
        )

    def _start(self):
        size, device = (self.spec.num_envs, 2), self.spec.device
        return torch.rand(size, generator=self.random, device=device) * 2 - 1
