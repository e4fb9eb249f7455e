"""A stand-in for Isaac Lab's environments; ``stand_ins/`` makes packages of it."""

from types import SimpleNamespace

import torch

from tests.envs.fake_isaac import ManagerCart


class FakeIsaacLab(ManagerCart):
    """``final_obs`` stays once written."""

    def __init__(self, num_envs=3, final=True, finite=False):
        super().__init__(num_envs, compute_final_obs=final, is_finite_horizon=finite)
        self.single_action_space = SimpleNamespace(shape=(self.num_actions,))

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
        self.advance(actions)
        ended = self.terminated | self.time_outs
        if ended.any():
            if self.cfg.compute_final_obs:
                self.extras["final_obs"] = self.groups()
            self.begin_again(ended.nonzero().squeeze(-1))
        return self.result()
