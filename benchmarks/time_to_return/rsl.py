"""PPO of rsl_rl with the settings that Isaac Lab gives it for its classic Ant, sized for a CPU.

No settings of it are published for Gymnasium's tasks. 16 environments with 128 steps each and two
layers of 64 units, as our ``laptop`` preset has; rewards are divided by the deviation of their
discounted sum, as other libraries do, since its clipped values expect returns of about one.
"""

import contextlib
import io

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import NormalizeReward
from rsl_rl.algorithms import PPO
from rsl_rl.env import VecEnv
from tensordict import TensorDict

from benchmarks.time_to_return.clock import Clock, options

ENVS, STEPS, EVERY = 16, 128, 10_000
NETWORK = {
    "class_name": "rsl_rl.models:MLPModel",
    "hidden_dims": [64, 64],
    "activation": "elu",
    "obs_normalization": True,
}
NOISE = {
    "class_name": "rsl_rl.modules.distribution:GaussianDistribution",
    "init_std": 1.0,
    "std_type": "scalar",
}
ALGORITHM = {
    "class_name": "rsl_rl.algorithms:PPO",
    "num_learning_epochs": 5,
    "num_mini_batches": 4,
    "learning_rate": 5e-4,
    "schedule": "adaptive",
    "desired_kl": 0.01,
    "gamma": 0.99,
    "lam": 0.95,
    "entropy_coef": 0.0,
    "clip_param": 0.2,
    "value_loss_coef": 1.0,
    "max_grad_norm": 1.0,
}


class Vector(VecEnv):
    """Gymnasium's environments as rsl_rl takes them."""

    def __init__(self, task: str, seed: int) -> None:
        make = [lambda: gymnasium.make(task)] * ENVS
        envs = SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
        self._envs = NormalizeReward(envs, gamma=ALGORITHM["gamma"])
        self.num_envs, self.num_actions = ENVS, self._envs.single_action_space.shape[0]
        self.max_episode_length = 1000
        self.episode_length_buf = torch.zeros(ENVS, dtype=torch.long)
        self.device, self.cfg = "cpu", {}
        self._obs = self._envs.reset(seed=seed)[0]

    def get_observations(self) -> TensorDict:
        """(N, D) of the group ``policy``."""
        obs = torch.from_numpy(np.asarray(self._obs, np.float32))
        return TensorDict({"policy": obs}, batch_size=[ENVS])

    def step(
        self, actions: torch.Tensor
    ) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Actions are clipped to the simulator's range."""
        self._obs, reward, terminated, truncated, _ = self._envs.step(bounded(actions))
        extras = {"time_outs": torch.from_numpy(truncated & ~terminated)}
        done = torch.from_numpy(terminated | truncated)
        return self.get_observations(), torch.from_numpy(np.float32(reward)), done, extras


def bounded(actions: torch.Tensor) -> np.ndarray:
    """Within -1 to 1, which is what the tasks here take."""
    clipped: np.ndarray = actions.clamp(-1, 1).numpy()
    return clipped


def main() -> None:
    """Learn until the clock ends it."""
    told = options()
    torch.set_num_threads(told.threads)
    torch.manual_seed(told.seed)
    env = Vector(told.task, told.seed)
    parts = {"actor": {**NETWORK, "distribution_cfg": NOISE}, "critic": NETWORK}
    settings = {"algorithm": ALGORITHM, "num_steps_per_env": STEPS, "multi_gpu": None, **parts}
    sets = {name: ["policy"] for name in parts}
    obs = env.get_observations()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its networks
        learner = PPO.construct_algorithm(obs, env, {**settings, "obs_groups": sets}, "cpu")
    clock, steps = Clock(told, EVERY), 0

    @torch.inference_mode()
    def greedy(state: np.ndarray) -> np.ndarray:
        one = TensorDict({"policy": torch.from_numpy(np.float32(state))[None]}, batch_size=[1])
        return bounded(policy(one))[0]

    going = True
    while going:
        learner.train_mode()
        with torch.inference_mode():
            for _ in range(STEPS):
                obs, reward, done, extras = env.step(learner.act(obs))
                learner.process_env_step(obs, reward, done, extras)
            learner.compute_returns(obs)
        learner.update()
        steps += ENVS * STEPS
        learner.eval_mode()
        policy = learner.get_policy()
        going = clock.going(steps, greedy)
    clock.say("rsl-rl-lib")


if __name__ == "__main__":
    main()
