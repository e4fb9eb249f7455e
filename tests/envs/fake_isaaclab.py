"""A stand-in for Isaac Lab's environments; ``stand_ins/`` makes packages of it."""

from types import SimpleNamespace

import torch

from tests.envs.fake_isaac import LIMIT, Cart


class FakeIsaacLab(Cart):
    """The same storage for reward and flags at every step; ``final_obs`` stays once written."""

    step_dt, physics_dt = 0.02, 0.005

    def __init__(self, num_envs=3, final=True, finite=False):
        super().__init__(num_envs)
        self.cfg = SimpleNamespace(compute_final_obs=final, is_finite_horizon=finite, decimation=4)
        self.single_action_space = SimpleNamespace(shape=(self.num_actions,))
        self.common_step_counter = 0
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int64)
        self.terminated = torch.zeros(num_envs, dtype=torch.bool)
        self.time_outs = torch.zeros(num_envs, dtype=torch.bool)

    def begin_again(self, env_ids):
        super().begin_again(env_ids)
        self.episode_length_buf[env_ids] = 0

    def groups(self):
        self.compute_observations()
        policy = self.obs_buf.clone()
        return {"policy": policy, "critic": torch.cat((policy, policy[:, :1] ** 2), dim=1)}

    def reset(self, seed=None, options=None):
        if seed is not None:
            torch.manual_seed(seed)
        self.begin_again(torch.arange(self.num_envs))
        return self.groups(), self.extras

    def step(self, actions):
        self.simulate(actions)
        self.common_step_counter += 1
        self.episode_length_buf += 1
        self.rew_buf[:] = self.steps
        self.terminated[:] = self.failed()
        self.time_outs[:] = self.episode_length_buf >= LIMIT
        ended = self.terminated | self.time_outs
        if ended.any():
            if self.cfg.compute_final_obs:
                self.extras["final_obs"] = self.groups()
            self.begin_again(ended.nonzero().squeeze(-1))
        return self.groups(), self.rew_buf, self.terminated, self.time_outs, self.extras
