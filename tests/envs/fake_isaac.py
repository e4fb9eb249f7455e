"""Stand-ins for GPU simulators, with the traps of the real ones: one small cart on a line.

The observation is (environment, where the episode began, steps since, last action). Buffers are
overwritten in place, ``reset`` computes nothing, time-out flags lie or go stale, as noted in each.
Sources: isaacgymenvs ``vec_task.py`` and tasks, legged_gym ``legged_robot.py``, rsl_rl
``vec_env.py``, read and rewritten.
"""

from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict

LIMIT = 8
"""``max_episode_length`` of all of them."""
FAILS_AT = 4
"""Environment 1 fails after so many steps of every episode."""


class Cart:
    """State and buffers that all of them share."""

    num_actions = 2

    def __init__(self, num_envs=3):
        self.num_envs = num_envs
        self.device = self.rl_device = torch.device("cpu")
        self.max_episode_length = LIMIT
        self.start = torch.zeros(num_envs)
        self.steps = torch.zeros(num_envs)
        self.last_action = torch.zeros(num_envs)
        self.obs_buf = torch.zeros(num_envs, 4)
        self.rew_buf = torch.zeros(num_envs)
        self.reset_buf = torch.ones(num_envs, dtype=torch.int64)
        self.extras = {}
        self.closed = False
        # As real ones have: they hold nothing that observations could change.
        self.envs, self.reward_names = [object() for _ in range(num_envs)], ["track"]

    def simulate(self, actions):
        actions.clamp_(-1, 1)  # in place: whoever passes its own tensor loses it
        self.last_action = actions[:, 0].clone()
        self.steps += 1

    def begin_again(self, env_ids):
        self.start[env_ids] = torch.rand(len(env_ids))
        self.steps[env_ids] = 0
        self.last_action[env_ids] = 0

    def compute_observations(self):
        index = torch.arange(self.num_envs, dtype=torch.float32)
        self.obs_buf[:] = torch.stack((index, self.start, self.steps, self.last_action), dim=1)

    def failed(self):
        return (self.steps >= FAILS_AT) & (torch.arange(self.num_envs) == 1)

    def close(self):
        self.closed = True


class ManagerCart(Cart):
    """As Isaac Lab and mjlab: the same storage for reward and flags at every step."""

    step_dt, physics_dt = 0.02, 0.005

    def __init__(self, num_envs=3, **cfg):
        super().__init__(num_envs)
        self.cfg = SimpleNamespace(decimation=4, **cfg)
        self.common_step_counter = 0
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int64)
        self.terminated = torch.zeros(num_envs, dtype=torch.bool)
        self.time_outs = torch.zeros(num_envs, dtype=torch.bool)

    def begin_again(self, env_ids):
        super().begin_again(env_ids)
        self.episode_length_buf[env_ids] = 0

    def advance(self, actions):
        """Everything of a step but its resets."""
        self.simulate(actions)
        self.common_step_counter += 1
        self.episode_length_buf += 1
        self.rew_buf[:] = self.steps
        self.terminated[:] = self.failed()
        self.time_outs[:] = self.episode_length_buf >= LIMIT

    def result(self):
        return self.groups(), self.rew_buf, self.terminated, self.time_outs, self.extras

    def groups(self):
        raise NotImplementedError


class VecTask(Cart):
    """IsaacGymEnvs: ``kind`` A resets in the next step after simulating, B before, C at once."""

    def __init__(self, kind, num_envs=3):
        super().__init__(num_envs)
        self.kind = kind
        self.progress_buf = torch.zeros(num_envs, dtype=torch.int64)

    def reset(self):
        return {"obs": torch.zeros_like(self.obs_buf)}

    def reset_idx(self, env_ids):
        self.begin_again(env_ids)
        self.progress_buf[env_ids] = 0
        self.reset_buf[env_ids] = 0

    def compute_observations(self):
        if self.kind == "C":  # AnymalTerrain measures anew, and keeps it
            self.measured_heights = self.steps[:, None].clone()
        super().compute_observations()

    def step(self, actions):
        if self.kind == "B":
            self._reset_flagged()
        self.simulate(actions)
        self.progress_buf += 1
        if self.kind == "A":
            self._reset_flagged()
        if self.kind == "C":
            self._judge()
            flagged = self.reset_buf.clone()
            self._reset_flagged()
            self.reset_buf[:] = flagged
            self.compute_observations()
        else:
            self.compute_observations()
            self._judge()
        # After the reset, so that C misses every time-out; and a failure at the limit is one.
        late = self.progress_buf >= LIMIT - 1
        self.extras["time_outs"] = late & (self.reset_buf != 0)
        return {"obs": self.obs_buf.clamp(-5, 50)}, self.rew_buf, self.reset_buf, self.extras

    def _reset_flagged(self):
        env_ids = self.reset_buf.nonzero().squeeze(-1)
        if len(env_ids):
            self.reset_idx(env_ids)

    def _judge(self):
        self.rew_buf[:] = self.steps
        self.reset_buf[:] = self.failed() | (self.progress_buf >= LIMIT - 1)


class Hand(VecTask):
    """AllegroHand and ShadowHand: their goals are reset along with them."""

    def __init__(self):
        super().__init__("B")
        self.reset_goal_buf = self.reset_buf.clone()

    def reset_idx(self, env_ids, goal_env_ids):  # type: ignore[override]
        super().reset_idx(env_ids)
        self.reset_goal_buf[goal_env_ids] = 0

    def _reset_flagged(self):
        env_ids = self.reset_buf.nonzero().squeeze(-1)
        if len(env_ids):
            self.reset_idx(env_ids, self.reset_goal_buf.nonzero().squeeze(-1))


class Anymal(VecTask):
    """Its ``reset_idx`` leaves ``reset_buf`` set, which the end of the step judges anew."""

    def __init__(self):
        super().__init__("A")

    def reset_idx(self, env_ids):
        super().reset_idx(env_ids)
        self.reset_buf[env_ids] = 1


class ResetByCaller(VecTask):
    """HumanoidAMP: nothing within a step resets it, its learner calls ``reset_done``."""

    def __init__(self):
        super().__init__("A")

    def _reset_flagged(self):
        pass


class WithHistory(VecTask):
    """Terrain task whose observations cannot be computed twice; an episode's first fills it."""

    def __init__(self):
        super().__init__("C")
        self.frames = torch.zeros(self.num_envs, 2)

    def compute_observations(self):
        super().compute_observations()
        oldest = torch.where(self.steps <= 1, self.steps, self.frames[:, 1])
        self.frames = torch.stack((oldest, self.steps), dim=1)


class WithFrames(VecTask):
    """The same, where the history is a list of tensors."""

    def __init__(self):
        super().__init__("C")
        self.frames = [torch.zeros(self.num_envs)] * 2

    def compute_observations(self):
        super().compute_observations()
        self.frames = [*self.frames[1:], self.steps.clone()]


class LeggedGym(Cart):
    """legged_gym: 5-tuple, and ``extras["time_outs"]`` only written when something reset.

    Heights are measured in a step, and before the first one observations cannot be computed.
    """

    def __init__(self, num_envs=3):
        super().__init__(num_envs)
        self.cfg = SimpleNamespace(normalization=SimpleNamespace(clip_observations=50.0))
        self.dt = 0.02
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int64)
        self.time_out_buf = torch.zeros(num_envs, dtype=torch.bool)
        self.privileged_obs_buf = torch.zeros(num_envs, 5)
        self.measured_heights: Any = 0

    def compute_observations(self):
        super().compute_observations()
        heights = self.steps[:, None] - self.measured_heights
        self.obs_buf += 0 * (heights @ torch.zeros(2, 4))
        self.privileged_obs_buf[:] = torch.cat((self.obs_buf, self.steps[:, None] ** 2), dim=1)

    def get_observations(self):
        return self.obs_buf

    def get_privileged_observations(self):
        return self.privileged_obs_buf

    def reset(self):
        self.reset_idx(torch.arange(self.num_envs))
        obs, privileged, _, _, _ = self.step(torch.zeros(self.num_envs, self.num_actions))
        return obs, privileged

    def reset_idx(self, env_ids):
        if len(env_ids) == 0:
            return
        self.begin_again(env_ids)
        self.episode_length_buf[env_ids] = 0
        self.extras["time_outs"] = self.time_out_buf

    def step(self, actions):
        self.simulate(actions)
        self.episode_length_buf += 1
        self.time_out_buf = self.episode_length_buf > LIMIT
        self.reset_buf = (self.failed() | self.time_out_buf).long()
        self.rew_buf[:] = self.steps
        self.measured_heights = torch.zeros(self.num_envs, 2)
        self.reset_idx(self.reset_buf.nonzero().squeeze(-1))
        self.compute_observations()
        limit = self.cfg.normalization.clip_observations
        self.obs_buf = self.obs_buf.clamp(-limit, limit)
        return self.obs_buf, self.privileged_obs_buf, self.rew_buf, self.reset_buf, self.extras


class VecEnv(Cart):
    """RSL-RL's interface over a simulator that resets within the step.

    Args:
        time_outs: ``always`` written, only at ``events`` (and left there), or ``never``.
        final: whether ``extras["final_obs"]`` comes, and stays.
    """

    def __init__(self, time_outs="always", final=False, finite=False, num_envs=3):
        super().__init__(num_envs)
        self.cfg = SimpleNamespace(is_finite_horizon=finite, compute_final_obs=final)
        self.time_outs, self.final = time_outs, final
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int64)
        self.reset()

    def get_observations(self):
        return TensorDict({"policy": self.obs_buf}, batch_size=[self.num_envs])

    def reset(self):
        self.begin_again(torch.arange(self.num_envs))
        self.episode_length_buf[:] = 0
        self.compute_observations()
        return self.get_observations(), self.extras

    def step(self, actions):
        self.simulate(actions)
        self.episode_length_buf += 1
        late = self.episode_length_buf >= LIMIT
        ended = self.failed() | late
        self.rew_buf[:] = self.steps
        self.compute_observations()
        if ended.any() and self.final:
            self.extras["final_obs"] = {"policy": self.obs_buf.clone()}
        if self.time_outs == "always" or (self.time_outs == "events" and late.any()):
            self.extras["time_outs"] = late & ~self.failed()
        env_ids = ended.nonzero().squeeze(-1)
        self.begin_again(env_ids)
        self.episode_length_buf[env_ids] = 0
        self.obs_buf = self.obs_buf.clone()
        self.compute_observations()
        self.reset_buf[:] = ended
        return self.get_observations(), self.rew_buf, self.reset_buf, self.extras
