"""A stand-in for mjlab's ``ManagerBasedRlEnv``: its caller makes the resets, with traps kept.

A reset overwrites the storage of a step; what an end leaves must be reset before the next step.
Source: mujocolab/mjlab ``manager_based_rl_env.py``, read and rewritten.
"""

from types import SimpleNamespace

import torch

from tests.envs.fake_isaac import ManagerCart


class FakeMjlab(ManagerCart):
    def __init__(self, num_envs=3, finite=False):
        super().__init__(num_envs, auto_reset=True, is_finite_horizon=finite)
        self.action_manager = SimpleNamespace(
            total_action_dim=self.num_actions, active_terms=["a", "b"]
        )

    def groups(self):
        self.compute_observations()
        return {"actor": self.obs_buf.clone()}

    def reset(self, *, seed=None, env_ids=None, options=None):
        self.begin_again(torch.arange(self.num_envs) if env_ids is None else env_ids)
        self.terminated[:] = self.time_outs[:] = False
        return self.groups(), self.extras

    def step(self, action):
        assert not self.cfg.auto_reset
        assert not (self.terminated | self.time_outs).any()
        self.advance(action)
        return self.result()
