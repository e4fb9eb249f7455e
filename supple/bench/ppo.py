"""PPO iterations: 64 environments and rollouts of 32 steps, on a GPU 4096 of 24; 5 passes of 4.

The simulator costs nothing: it deals out random numbers made beforehand, so what is timed is
acting, storing, estimating advantages and learning. The same networks, (256, 128, 64) with ELU, and
the same clipped losses everywhere; other libraries run without their loggers.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from supple.agents import PPO, PPOSettings
from supple.bench.table import compute_of, interleaved, quantiles
from supple.envs.base import Box, Env, EnvSpec, reset_result, step_result
from supple.region import Compute
from supple.replay import Replay, ReplaySettings

SIZES = {"cpu": (64, 32), "cuda": (4096, 24)}
"""Environments, and steps of a rollout; the second as Isaac Lab and mjlab train."""
EPOCHS, MINIBATCHES = 5, 4
HIDDEN = (256, 128, 64)
BANK = 97
"""Vector steps made beforehand; a prime, so that no rollout repeats another."""
ENDING = 0.01
"""Share of steps at which an episode is cut by time."""

Step = Callable[[], object]


class Dealt(Env):
    """Random observations, rewards and time-outs, from memory."""

    def __init__(self, obs: int, act: int, device: torch.device) -> None:
        envs, self.rollout = SIZES[device.type]
        self.spec = EnvSpec(
            task_id=f"bench/{obs}x{act}",
            num_envs=envs,
            observation={"policy": obs},
            action=Box(low=(-1.0,) * act, high=(1.0,) * act),
            device=device,
        )
        random = torch.Generator().manual_seed(0)
        self.obs = torch.randn(BANK, envs, obs, generator=random).to(device)
        self.reward = torch.randn(BANK, envs, generator=random).to(device)
        self.truncated = (torch.rand(BANK, envs, generator=random) < ENDING).to(device)
        self._never = torch.zeros(envs, dtype=torch.bool, device=device)
        self._always = ~self._never
        self._at = 0

    def reset(self, seed: int | None = None) -> TensorDict:
        """The first observation."""
        return reset_result({"policy": self.obs[self._at]}, self.spec.num_envs)

    def step(self, action: Tensor) -> TensorDict:
        """The next numbers."""
        self._at = (self._at + 1) % BANK
        obs = {"policy": self.obs[self._at]}
        return step_result(
            observation=obs,
            final_observation=obs,
            reward=self.reward[self._at],
            terminated=self._never,
            truncated=self.truncated[self._at],
            valid=self._always,
        )


def bench_ppo(obs: int, act: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Samples per second of whole iterations.

    Args:
        obs: observation width.
        act: action width.
        options: ``rounds``, ``modes``, ``peers``.
    """
    device = options.device
    variants = {
        f"supple {mode} float32": our_iteration(Dealt(obs, act, device), compute_of(mode))
        for mode in options.modes
    }
    if options.peers:
        for name, module, build in (
            ("Stable-Baselines3", "stable_baselines3", _sb3),
            ("rsl_rl", "rsl_rl", _rsl_rl),
        ):
            if importlib.util.find_spec(module):
                variants[name] = build(Dealt(obs, act, device))
    seconds = interleaved(variants, options.rounds, warm_up=3)
    usual = np.median(next(iter(seconds.values())))
    samples = math.prod(SIZES[device.type])
    return [
        {
            "variant": name,
            "obs": obs,
            "act": act,
            **quantiles(found),
            "samples per second": f"{samples / np.median(found):.0f}",
            "x the first's speed": f"{usual / np.median(found):.2f}",
        }
        for name, found in seconds.items()
    ]


def our_iteration(env: Dealt, compute: Compute) -> Step:
    """One rollout and what is learned from it, as a loop of one's own would do it."""
    settings = PPOSettings(
        rollout_steps=env.rollout,
        epochs=EPOCHS,
        minibatches=MINIBATCHES,
        actor_hidden=HIDDEN,
        critic_hidden=HIDDEN,
        normalise_obs=False,
        lr_schedule="fixed",
    )
    agent = PPO(env.spec, settings, total_env_steps=10**9, compute=compute)
    ring = agent.ring(ReplaySettings())
    replay = Replay(env.spec, ring, extra_spec=agent.extra_spec, compute=compute)
    obs = env.reset()["observation"].to_dict()

    def iteration() -> None:
        nonlocal obs
        for _ in range(env.rollout):
            action, extras = agent.act(obs, explore=True)
            step = env.step(action).to_dict()
            agent.observe(step)
            replay.add(obs, action, step, extras)
            obs = step["observation"]
        agent.update(replay)

    return iteration


def _rsl_rl(env: Dealt) -> Step:
    from rsl_rl import algorithms
    from rsl_rl.models import MLPModel
    from rsl_rl.storage import RolloutStorage

    def groups(at: int) -> TensorDict:
        return TensorDict({"policy": env.obs[at]}, batch_size=[env.spec.num_envs])

    device = env.spec.device
    act, sets = env.spec.action.size, {"actor": ["policy"], "critic": ["policy"]}
    gaussian = {"class_name": "rsl_rl.modules.distribution:GaussianDistribution", "std_type": "log"}
    algorithm: Any = algorithms.PPO(
        MLPModel(groups(0), sets, "actor", act, HIDDEN, distribution_cfg=gaussian).to(device),
        MLPModel(groups(0), sets, "critic", 1, HIDDEN).to(device),
        RolloutStorage("rl", env.spec.num_envs, env.rollout, groups(0), [act], str(device)),
        num_learning_epochs=EPOCHS,
        num_mini_batches=MINIBATCHES,
        schedule="fixed",
        device=str(device),
    )
    obs, at = groups(0), 0

    def iteration() -> None:
        nonlocal obs, at
        with torch.inference_mode():
            for _ in range(env.rollout):
                algorithm.act(obs)
                at = (at + 1) % BANK
                obs = groups(at)
                ended = env.truncated[at]
                algorithm.process_env_step(obs, env.reward[at], ended, {"time_outs": ended})
            algorithm.compute_returns(obs)
        algorithm.update()

    return iteration


def _sb3(env: Dealt) -> Step:
    from gymnasium import spaces
    from stable_baselines3 import PPO as Theirs  # noqa: N811 - a class of that name
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import VecEnv

    (obs,), act = env.spec.observation.values(), env.spec.action.size
    envs, steps = env.spec.num_envs, env.rollout

    class Vector(VecEnv):
        def __init__(self) -> None:
            box = spaces.Box(-np.inf, np.inf, (obs,), np.float32)
            self.at = 0
            super().__init__(envs, box, spaces.Box(-1, 1, (act,), np.float32))

        def reset(self) -> Any:
            return env.obs[0].cpu().numpy()

        def step_async(self, actions: Any) -> None:
            self.at = (self.at + 1) % BANK

        def step_wait(self) -> Any:
            given = (env.truncated[self.at], env.obs[self.at], env.reward[self.at])
            ended, now, reward = (value.cpu().numpy() for value in given)
            infos: list[dict[str, Any]] = [{} for _ in range(envs)]
            for row in np.nonzero(ended)[0]:
                infos[row] = {"TimeLimit.truncated": True, "terminal_observation": now[row]}
            return now, reward, ended, infos

        def close(self) -> None:
            pass

        def get_attr(self, attr_name: str, indices: Any = None) -> Any:
            return [None] * envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            pass

        def env_method(self, method_name: str, *_: Any, **__: Any) -> Any:
            return [None] * envs

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
            return [False] * envs

    class Silent(BaseCallback):
        def _on_step(self) -> bool:
            return True

    model = Theirs(
        "MlpPolicy",
        Vector(),
        n_steps=steps,
        batch_size=envs * steps // MINIBATCHES,
        n_epochs=EPOCHS,
        policy_kwargs={"net_arch": list(HIDDEN), "activation_fn": torch.nn.ELU},
        device=env.spec.device,
    )
    model.set_logger(Logger(None, []))
    model.learn(envs * steps)
    model.set_logger(Logger(None, []))
    callback = Silent()
    callback.init_callback(model)
    venv = cast(Any, model.env)

    def iteration() -> None:
        model.collect_rollouts(venv, callback, cast(Any, model.rollout_buffer), steps)
        model.train()

    return iteration
