"""A simulator that steps one at a time, as Gymnasium has it."""

import gymnasium
import numpy as np


class Reach(gymnasium.Env):
    """Move a point to the origin."""

    observation_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.at.copy(), {}

    def step(self, action):
        self.at = np.clip(self.at + action, -2, 2)
        return self.at.copy(), -float(np.linalg.norm(self.at)), False, False, {}


def make():
    return gymnasium.wrappers.TimeLimit(Reach(), 50)
