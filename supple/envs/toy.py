"""Small environments whose best behaviour and exact numbers are known, written in torch alone.

=================== ======================================= ===============================
task                what is known                           function
=================== ======================================= ===============================
``toy/counter``     every observation, reward and end       ``Counter.schedule``
``toy/lqr``         best gain, value of any linear policy   ``toy_lqr``: ``riccati``
``toy/bandit``      best action, the return's distribution  ``Bandit.optimal_action``
``toy/asymmetric``  best memoryless policy, its reward      ``Asymmetric.best_gain``
``toy/recall``      reward with and without a memory        ``Recall.best_memoryless_reward``
``toy/disturbed``   best action, though rewards drown it    ``Disturbed.optimal_action``
=================== ======================================= ===============================

Every step is a fixed sequence of batched operations: no loop over environments, no wait for the
device. Legend of shape suffixes: ``N`` environments, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import Env
from supple.envs.toy_base import State, ToyEnv
from supple.envs.toy_hidden import Asymmetric, Disturbed, Recall
from supple.envs.toy_lqr import LQR_A, LQR_B, LQR_Q, LQR_R, riccati
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

DRAWS = False


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


TOY_TASKS: dict[str, Callable[[int, torch.device], Env]] = {
    "counter": Counter,
    "lqr": Lqr,
    "bandit": Bandit,
    "asymmetric": Asymmetric,
    "recall": Recall,
    "disturbed": Disturbed,
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


def status() -> str:
    """They need nothing but torch."""
    return "built in"


def tasks() -> tuple[str, ...]:
    """Every toy."""
    return tuple(TOY_TASKS)


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Env:
    """The adapter's ``build``; toys draw nothing."""
    return make_toy(name, settings.num_envs, device)
