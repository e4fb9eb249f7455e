"""Small environments whose best behaviour and exact numbers are known, written in torch alone.

=================== ======================================= ===============================
task                what is known                           function
=================== ======================================= ===============================
``toy/counter``     every observation, reward and end       ``Counter.schedule``
``toy/lqr``         best gain, value of any linear policy   ``toy_lqr``: ``riccati``
``toy/bandit``      best action, the return's distribution  ``Bandit.optimal_action``
``toy/asymmetric``  best memoryless policy, its reward      ``Asymmetric.best_gain``
=================== ======================================= ===============================

Every step is a fixed sequence of batched operations: no loop over environments, no wait for the
device. Legend of shape suffixes: ``N`` environments, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import Box, Env, EnvSpec, reset_result, step_result
from supple.envs.toy_lqr import LQR_A, LQR_B, LQR_Q, LQR_R, riccati
from supple.errors import InputError
from supple.rng import derive_seed, restore

State = dict[str, Tensor]
"""A toy's whole simulation: named tensors, each with the environments as first axis."""


class ToyEnv(Env):
    """What the toys share: random numbers, saved state and same-step auto-reset.

    Args:
        task_id: the task's name.
        num_envs: number of environments ``N``.
        device: where all tensors live.
        observation: width of each observation group.
        bounds: ``Box.high`` per action; ``Box.low`` is its negative, and nothing is clipped.
        max_episode_steps: time limit, or None.
        critic_contains_policy: see ``EnvSpec``.
    """

    def __init__(
        self,
        task_id: str,
        num_envs: int,
        device: torch.device,
        *,
        observation: Mapping[str, int],
        bounds: tuple[float, ...],
        max_episode_steps: int | None = None,
        critic_contains_policy: bool = False,
    ) -> None:
        self.spec = EnvSpec(
            task_id=task_id,
            num_envs=num_envs,
            observation=observation,
            action=Box(low=tuple(-bound for bound in bounds), high=bounds, clip=False),
            device=device,
            max_episode_steps=max_episode_steps,
            critic_contains_policy=critic_contains_policy,
            exact_resume=True,
        )
        self._generator = torch.Generator(device)
        self._generator.manual_seed(derive_seed(0, task_id))
        self._state: State = {}

    @abstractmethod
    def _start(self) -> State:
        """A first state for every environment."""

    @abstractmethod
    def _advance(self, state: State, action: Tensor) -> tuple[State, dict[str, Tensor]]:
        """The next state and ``reward``, ``terminated``, ``truncated``, perhaps ``success``."""

    @abstractmethod
    def _observe(self, state: State) -> dict[str, Tensor]:
        """Every observation group, in tensors that later steps leave alone."""

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start every environment afresh; without ``seed`` the random numbers continue."""
        if seed is not None:
            self._generator.manual_seed(derive_seed(seed, self.spec.task_id))
        self._state = self._start()
        return reset_result(self._observe(self._state), self.spec.num_envs)

    def step(self, action: Tensor) -> TensorDict:
        """Apply one action to every environment; ended ones start again within the step.

        Args:
            action: (N, A) float32.

        Raises:
            InputError: ``action`` has another shape, or ``reset`` was never called.
        """
        self._check(action)
        state, outcome = self._advance(self._state, action)
        ended = outcome["terminated"] | outcome["truncated"]
        self._state = _choose(ended, self._start(), state)
        return self._result(state, outcome)

    def state_dict(self) -> dict[str, Any]:
        """The simulation's tensors, copied, and the generator's state, a uint8 tensor."""
        tensors = {name: tensor.clone() for name, tensor in self._state.items()}
        return {"state": tensors, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue bit for bit from ``state_dict()``'s value.

        Raises:
            InputError: ``state`` holds another number of environments.
        """
        tensors: State = state["state"]
        for name, tensor in tensors.items():
            if tensor.shape[0] != self.spec.num_envs:
                raise InputError(
                    f"{self.spec.task_id}: saved {name} holds {tensor.shape[0]} environments, "
                    f"expected {self.spec.num_envs}: build it with num_envs={tensor.shape[0]}"
                )
        device = self.spec.device
        self._state = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
        restore(self._generator, state["generator"])

    def _check(self, action: Tensor) -> None:
        if not self._state:
            raise InputError(f"{self.spec.task_id}: step before reset: call reset() first")
        expected = (self.spec.num_envs, self.spec.action.size)
        if tuple(action.shape) != expected:
            raise InputError(
                f"{self.spec.task_id}: action has shape {tuple(action.shape)}, expected {expected}"
            )

    def _result(self, before_reset: State, outcome: Mapping[str, Tensor]) -> TensorDict:
        return step_result(
            observation=self._observe(self._state),
            final_observation=self._observe(before_reset),
            **outcome,
        )

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.spec.num_envs, dtype=dtype, device=self.spec.device)

    def _normal(self, *width: int) -> Tensor:
        shape = (self.spec.num_envs, *width)
        return torch.randn(shape, generator=self._generator, device=self.spec.device)

    def _uniform(self, *width: int) -> Tensor:
        """Numbers between -1 and 1."""
        shape = (self.spec.num_envs, *width)
        return 2 * torch.rand(shape, generator=self._generator, device=self.spec.device) - 1


def _choose(rows: Tensor, where_true: State, where_false: State) -> State:
    """Row by row, one of two states; ``rows`` is (N,) bool."""

    def pick(name: str) -> Tensor:
        old = where_false[name]
        mask = rows.view(-1, *([1] * (old.dim() - 1)))
        return torch.where(mask, where_true[name], old)

    return {name: pick(name) for name in where_false}


class Counter(ToyEnv):
    """Every number says where it came from, and every end is known beforehand.

    The observation is (environment index, steps taken in this episode, calls of ``step`` since
    ``reset``, episode number), all from 0. The reward is the action's only component, so a
    transition stored with a neighbour's action or reward shows. Randomness plays no part.

    Args:
        num_envs: number of environments ``N``.
        device: where all tensors live.
        autoreset: ``same_step``, or ``next_step``: an ended environment returns its last
            observation once more, and the next call resets it, ignores its action and returns a
            bridge row, with ``valid`` False, reward 0 and no end.
    """

    MAX_EPISODE_STEPS = 5

    def __init__(
        self,
        num_envs: int,
        device: torch.device,
        *,
        autoreset: Literal["same_step", "next_step"] = "same_step",
    ) -> None:
        super().__init__(
            "toy/counter",
            num_envs,
            device,
            observation={"policy": 4},
            bounds=(1.0,),
            max_episode_steps=self.MAX_EPISODE_STEPS,
        )
        self._next_step = autoreset == "next_step"
        self._index = torch.arange(num_envs, device=device)

    @classmethod
    def schedule(cls, env_index: Tensor, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How an episode ends: the known answer.

        With ``k = env_index + episode``: episodes with ``k % 3 == 0`` terminate after
        ``1 + k % 4`` steps; those with 1 are truncated after 5 steps, the time limit; those with 2
        end after 5 steps with both flags set.

        Args:
            env_index: integers, any shape.
            episode: integers, the same shape.

        Returns:
            Length [steps] (integers), terminated and truncated (bool), each of the same shape.
        """
        k = env_index + episode
        terminated = k % 3 != 1
        truncated = k % 3 != 0
        return torch.where(truncated, cls.MAX_EPISODE_STEPS, 1 + k % 4), terminated, truncated

    def _start(self) -> State:
        counts = {name: self._zeros(torch.int64) for name in ("step", "calls", "episode")}
        return {**counts, "bridge": self._zeros(torch.bool)}

    def _advance(self, state: State, action: Tensor) -> tuple[State, dict[str, Tensor]]:
        valid = ~state["bridge"]
        step = state["step"] + valid
        length, terminated, truncated = self.schedule(self._index, state["episode"])
        at_end = (step == length) & valid
        outcome = {
            "reward": torch.where(valid, action[:, 0], 0.0),
            "terminated": terminated & at_end,
            "truncated": truncated & at_end,
            "valid": valid,
        }
        return {**state, "step": step, "calls": state["calls"] + 1}, outcome

    def _observe(self, state: State) -> dict[str, Tensor]:
        columns = (self._index, state["step"], state["calls"], state["episode"])
        return {"policy": torch.stack(columns, dim=1).float()}

    def step(self, action: Tensor) -> TensorDict:
        """Apply one action to every environment; see the class for the two ways of resetting."""
        self._check(action)
        state, outcome = self._advance(self._state, action)
        ended = outcome["terminated"] | outcome["truncated"]
        restart = state["bridge"] if self._next_step else ended
        self._state = {
            "step": torch.where(restart, 0, state["step"]),
            "calls": state["calls"],
            "episode": state["episode"] + restart,
            "bridge": ended if self._next_step else state["bridge"],
        }
        return self._result(state, outcome)


class Lqr(ToyEnv):
    """A stable linear system ``x' = A x + B u`` with reward ``-(x^T Q x + u^T R u)``.

    The observation is the state ``x`` (2 numbers), first drawn uniformly from [-1, 1]. The action
    ``a`` is scaled to ``u = 4 a`` and never clipped, so the known answers hold for every action.
    Nothing terminates; the time limit truncates after 50 steps, so a bootstrapping critic must
    learn the infinite-horizon value. The matrices and ``riccati`` are in ``supple.envs.toy_lqr``.

    Known: with ``P, K = riccati(discount)``, the best action is ``optimal_action(x, K)`` and its
    discounted return from ``x`` is ``-x^T P x``. The best whole episode (undiscounted, 50 steps)
    earns ``optimal_episode_return()`` on average.
    """

    MAX_EPISODE_STEPS = 50
    ACTION_SCALE = 4.0

    def __init__(self, num_envs: int, device: torch.device) -> None:
        super().__init__(
            "toy/lqr",
            num_envs,
            device,
            observation={"policy": 2},
            bounds=(self.ACTION_SCALE,),
            max_episode_steps=self.MAX_EPISODE_STEPS,
        )
        self._a, self._b, self._q, self._r = (
            torch.tensor(matrix, device=device) for matrix in (LQR_A, LQR_B, LQR_Q, LQR_R)
        )

    @classmethod
    def optimal_action(cls, x_NS: Tensor, gain_AS: Tensor) -> Tensor:
        """The policy action (N, A) that applies ``u = -K x``; ``gain_AS`` is ``riccati``'s K."""
        return -x_NS @ gain_AS.to(x_NS).T / cls.ACTION_SCALE

    @classmethod
    def optimal_episode_return(cls) -> float:
        """Mean undiscounted return of one episode under the best time-varying gain."""
        # The start is uniform on [-1, 1], so E[x x^T] = I / 3.
        return -float(riccati(steps=cls.MAX_EPISODE_STEPS)[0].trace()) / 3

    def _start(self) -> State:
        return {"x": self._uniform(2), "step": self._zeros(torch.int64)}

    def _advance(self, state: State, action: Tensor) -> tuple[State, dict[str, Tensor]]:
        x_NS, u_NA = state["x"], self.ACTION_SCALE * action
        step = state["step"] + 1
        cost = ((x_NS @ self._q) * x_NS).sum(1) + ((u_NA @ self._r) * u_NA).sum(1)
        outcome = {
            "reward": -cost,
            "terminated": self._zeros(torch.bool),
            "truncated": step >= self.MAX_EPISODE_STEPS,
        }
        return {"x": x_NS @ self._a.T + u_NA @ self._b.T, "step": step}, outcome

    def _observe(self, state: State) -> dict[str, Tensor]:
        return {"policy": state["x"].clone()}


class Bandit(ToyEnv):
    """A contextual bandit: every step terminates, so Q is the reward and nothing bootstraps.

    The observation is a context ``x`` of 2 numbers, uniform in [-1, 1]. The reward is
    ``1 - |a - a*(x)|^2``, plus normal noise if asked for; its best mean is 1 everywhere, and the
    return's distribution at ``(x, a)`` is that normal. ``success`` is ``|a - a*| < 0.1``.

    Args:
        num_envs: number of environments ``N``.
        device: where all tensors live.
        reward_noise: standard deviation of the reward's noise, >= 0.
    """

    def __init__(self, num_envs: int, device: torch.device, *, reward_noise: float = 0.0) -> None:
        super().__init__(
            "toy/bandit", num_envs, device, observation={"policy": 2}, bounds=(1.0, 1.0)
        )
        self._reward_noise = reward_noise

    @staticmethod
    def optimal_action(context: Tensor) -> Tensor:
        """The known answer: ``((x0 + x1) / 2, (x0 - x1) / 2)``, (..., 2), always within [-1, 1]."""
        x0, x1 = context.unbind(-1)
        return torch.stack((x0 + x1, x0 - x1), dim=-1) / 2

    def _start(self) -> State:
        return {"context": self._uniform(2)}

    def _advance(self, state: State, action: Tensor) -> tuple[State, dict[str, Tensor]]:
        error = (action - self.optimal_action(state["context"])).square().sum(1)
        outcome = {
            "reward": 1 - error + self._reward_noise * self._normal(),
            "terminated": ~self._zeros(torch.bool),
            "truncated": self._zeros(torch.bool),
            "success": error < 0.1**2,
        }
        return state, outcome

    def _observe(self, state: State) -> dict[str, Tensor]:
        return {"policy": state["context"].clone()}


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


TOY_TASKS: dict[str, Callable[[int, torch.device], Env]] = {
    "counter": Counter,
    "lqr": Lqr,
    "bandit": Bandit,
    "asymmetric": Asymmetric,
}
"""Task name, without ``toy/``, to the class that builds it."""


def make_toy(name: str, num_envs: int, device: torch.device) -> Env:
    """Build a toy environment.

    Args:
        name: a key of ``TOY_TASKS``, with or without ``toy/`` before it.
        num_envs: number of environments, >= 1.
        device: where all tensors live.

    Raises:
        InputError: no toy has this name, or ``num_envs`` is below 1.
    """
    task = TOY_TASKS.get(name.removeprefix("toy/"))
    if task is None:
        known = ", ".join(f"toy/{known}" for known in TOY_TASKS)
        raise InputError(f"there is no toy environment {name!r}: choose one of {known}")
    if num_envs < 1:
        raise InputError(f"num_envs={num_envs} for toy/{name.removeprefix('toy/')}: expected >= 1")
    return task(num_envs, device)
