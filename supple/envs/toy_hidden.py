"""Toy environments in which the policy does not see everything.

Legend of shape suffixes as in ``toy.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.envs.toy_base import State, ToyEnv


class Asymmetric(ToyEnv):
    """The critic sees what the policy cannot: two hidden targets, one measured with noise.

    Two independent targets, normal with standard deviation 0.25, drift as
    ``g' = 0.9 g + sqrt(1 - 0.9^2) 0.25 n`` whatever the action is. The reward of action ``a``
    (2 numbers) is ``1 - |a - g|^2``. The ``policy`` group (1 number) is the first target plus
    normal noise of standard deviation 0.25, drawn at each step; the ``critic`` group is both
    targets, after the measurement if ``critic_contains_policy``. The time limit truncates after
    20 steps.

    Known: the best policy without memory is ``(best_gain() * measurement, 0)``, with the mean
    reward ``best_mean_reward()`` per step; with the full state the best is ``a = g``, reward 1.

    Args:
        num_envs: number of environments ``N``.
        device: where all tensors live.
        critic_contains_policy: whether the critic group starts with the policy group.
    """

    MAX_EPISODE_STEPS = 20
    TARGET_STD = 0.25
    NOISE_STD = 0.25
    CORRELATION = 0.9

    def __init__(
        self, num_envs: int, device: torch.device, *, critic_contains_policy: bool = False
    ) -> None:
        super().__init__(
            "toy/asymmetric",
            num_envs,
            device,
            observation={"policy": 1, "critic": 3 if critic_contains_policy else 2},
            bounds=(1.0, 1.0),
            max_episode_steps=self.MAX_EPISODE_STEPS,
            critic_contains_policy=critic_contains_policy,
        )

    @classmethod
    def best_gain(cls) -> float:
        """E[target | measurement] per unit of measurement, for jointly normal variables."""
        return cls.TARGET_STD**2 / (cls.TARGET_STD**2 + cls.NOISE_STD**2)

    @classmethod
    def best_mean_reward(cls) -> float:
        """Mean reward per step of the best policy without memory."""
        left_over = (1 - cls.best_gain()) * cls.TARGET_STD**2
        return 1 - left_over - cls.TARGET_STD**2

    def _start(self) -> State:
        return self._measured(self.TARGET_STD * self._normal(2), self._zeros(torch.int64))

    def _measured(self, target: Tensor, step: Tensor) -> State:
        measurement = target[:, :1] + self.NOISE_STD * self._normal(1)
        return {"target": target, "measurement": measurement, "step": step}

    def _advance(self, state: State, action: Tensor) -> tuple[State, dict[str, Tensor]]:
        drift = (1 - self.CORRELATION**2) ** 0.5 * self.TARGET_STD * self._normal(2)
        following = self._measured(self.CORRELATION * state["target"] + drift, state["step"] + 1)
        outcome = {
            "reward": 1 - (action - state["target"]).square().sum(1),
            "terminated": self._zeros(torch.bool),
            "truncated": following["step"] >= self.MAX_EPISODE_STEPS,
        }
        return following, outcome

    def _observe(self, state: State) -> dict[str, Tensor]:
        policy, target = state["measurement"].clone(), state["target"].clone()
        if self.spec.critic_contains_policy:
            return {"policy": policy, "critic": torch.cat((policy, target), dim=1)}
        return {"policy": policy, "critic": target}


class Recall(ToyEnv):
    """A cue is shown once and asked for until the episode ends: only a memory can tell it.

    The observation is (cue, 1) at the first step of an episode, the cue being -1 or 1, and (0, 0)
    at all others. The reward of action ``a`` is ``1 - (a - cue)^2``. The time limit truncates after
    8 steps.

    Known: with a memory ``a = cue`` earns 1 at every step; without one the best is ``a = cue`` at
    the first step and ``a = 0`` afterwards, which earns ``best_memoryless_reward()`` on average.
    """

    MAX_EPISODE_STEPS = 8

    def __init__(self, num_envs: int, device: torch.device) -> None:
        super().__init__(
            "toy/recall",
            num_envs,
            device,
            observation={"policy": 2},
            bounds=(1.0,),
            max_episode_steps=self.MAX_EPISODE_STEPS,
        )

    @classmethod
    def best_memoryless_reward(cls) -> float:
        """Mean reward per step: 1 at the first one, ``1 - cue^2 = 0`` at all others."""
        return 1 / cls.MAX_EPISODE_STEPS

    def _start(self) -> State:
        cue = torch.where(self._uniform() < 0, -1.0, 1.0)
        return {"cue": cue, "step": self._zeros(torch.int64)}

    def _advance(self, state: State, action: Tensor) -> tuple[State, dict[str, Tensor]]:
        step = state["step"] + 1
        outcome = {
            "reward": 1 - (action[:, 0] - state["cue"]).square(),
            "terminated": self._zeros(torch.bool),
            "truncated": step >= self.MAX_EPISODE_STEPS,
        }
        return {"cue": state["cue"], "step": step}, outcome

    def _observe(self, state: State) -> dict[str, Tensor]:
        first = (state["step"] == 0).float()
        return {"policy": torch.stack((first * state["cue"], first), dim=1)}


class Disturbed(ToyEnv):
    """The reward carries a large disturbance, and only the critic sees how large.

    The ``policy`` group is a context ``x`` of 2 numbers, uniform in [-1, 1]; the ``critic`` group
    is ``x`` and the disturbance ``d``, normal with standard deviation ``DISTURBANCE_STD``. Every
    step terminates. The reward is ``1 - (a - (x0 + x1) / 2)^2 + d``.

    Known: the best action is ``(x0 + x1) / 2`` whatever ``d`` is. ``d`` cannot be acted on; but a
    critic that does not see it leaves it in every advantage, where it drowns what the action did.
    """

    DISTURBANCE_STD = 30.0

    def __init__(self, num_envs: int, device: torch.device) -> None:
        super().__init__(
            "toy/disturbed",
            num_envs,
            device,
            observation={"policy": 2, "critic": 3},
            bounds=(1.0,),
            critic_contains_policy=True,
        )

    @staticmethod
    def optimal_action(context: Tensor) -> Tensor:
        """The known answer, (..., 1)."""
        return context.mean(-1, keepdim=True)

    def _start(self) -> State:
        return {"context": self._uniform(2), "disturbance": self.DISTURBANCE_STD * self._normal(1)}

    def _advance(self, state: State, action: Tensor) -> tuple[State, dict[str, Tensor]]:
        error = (action - self.optimal_action(state["context"])).square().sum(1)
        outcome = {
            "reward": 1 - error + state["disturbance"][:, 0],
            "terminated": ~self._zeros(torch.bool),
            "truncated": self._zeros(torch.bool),
        }
        return state, outcome

    def _observe(self, state: State) -> dict[str, Tensor]:
        policy = state["context"].clone()
        return {"policy": policy, "critic": torch.cat((policy, state["disturbance"]), dim=1)}
