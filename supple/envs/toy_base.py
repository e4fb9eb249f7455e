"""What the toy environments share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import Box, Env, EnvSpec, reset_result, step_result
from supple.envs.torch_sim import mixed
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
        self._state = mixed(ended, self._start(), state)
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
