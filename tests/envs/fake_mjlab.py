"""A stand-in for mjlab's ``ManagerBasedRlEnv``: its caller makes the resets, with traps kept.

The same storage for reward and flags at every step, which a reset overwrites; what an end leaves
must be reset before the next step. Source: mujocolab/mjlab ``manager_based_rl_env.py``, read and
rewritten.
"""

from types import SimpleNamespace

import torch

from tests.envs.fake_isaac import LIMIT, Cart


class FakeMjlab(Cart):
    step_dt, physics_dt = 0.02, 0.005

    def __init__(self, num_envs=3, finite=False):
        super().__init__(num_envs)
        self.cfg = SimpleNamespace(auto_reset=True, is_finite_horizon=finite, decimation=4)
        self.action_manager = SimpleNamespace(
            total_action_dim=self.num_actions, active_terms=["a", "b"]
        )
        self.terminated = torch.zeros(num_envs, dtype=torch.bool)
        self.time_outs = torch.zeros(num_envs, dtype=torch.bool)
        self.common_step_counter = 0
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int64)

    def begin_again(self, env_ids):
        super().begin_again(env_ids)
        self.episode_length_buf[env_ids] = 0

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
        self.simulate(action)
        self.common_step_counter += 1
        self.episode_length_buf += 1
        self.rew_buf[:] = self.steps
        self.terminated[:] = self.failed()
        self.time_outs[:] = self.episode_length_buf >= LIMIT
        return self.groups(), self.rew_buf, self.terminated, self.time_outs, self.extras
