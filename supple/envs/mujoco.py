"""``mujoco/<name>``: Gymnasium's MuJoCo tasks, version 5, many at once in threads.

Same observations, rewards and ends as ``gym/<name>-v5``, computed for all environments together
(``mujoco_tasks``) around physics that runs in torch's number of threads (``mujoco_physics``): that
is ``--threads``, by default every core. The number of threads changes no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import Env, EnvSpec, reset_result, step_result
from supple.envs.gym import facts_of, headless
from supple.envs.gym import status as status  # the same packages
from supple.envs.gym_packages import drawing, follow_robot, importing_packages, quiet_mujoco
from supple.envs.gym_spaces import ActionMap
from supple.envs.mujoco_tasks import TASKS, Task
from supple.errors import InputError
from supple.rng import derive_seed

if TYPE_CHECKING:
    from supple.envs.mujoco_physics import Physics
    from supple.envs.registry import EnvSettings


class MujocoVector(Env):
    """A task over ``N`` copies of its model.

    Args:
        task: observation, reward, end.
        physics: of the task's model; closed together with this environment.
        robot: Gymnasium's single environment: what the model and ``physical`` are from. Drawn by
            ``render``, where it was made to draw.
        physical: maps policy actions.
        spec: the static facts; ``max_episode_steps`` is kept here.
    """

    def __init__(
        self,
        task: Task,
        physics: Physics,
        *,
        robot: gymnasium.Env[Any, Any],
        physical: ActionMap,
        spec: EnvSpec,
    ) -> None:
        self.spec = spec
        self._task, self._physics = task, physics
        self._robot, self._physical = robot, physical
        self._limit = spec.max_episode_steps or np.iinfo(np.int64).max
        self._elapsed = np.zeros(spec.num_envs, dtype=np.int64)
        self._random = np.random.default_rng()
        self._closed = False

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start every environment afresh; with ``seed``, reproducibly."""
        if seed is not None:
            self._random = np.random.default_rng(derive_seed(seed, "mujoco"))
        self._restart(np.arange(self.spec.num_envs))
        return reset_result(self._observe(), self.spec.num_envs)

    def step(self, action: Tensor) -> TensorDict:
        """Step every environment; see the contract.

        Raises:
            InputError: ``action`` has another shape.
        """
        task, now = self._task, self._physics.now
        physical = self._physical(action).astype(np.float64)
        before = task.progress(now)
        self._physics.step(physical)
        self._elapsed += 1
        terminated = task.terminated(now)
        truncated = self._elapsed >= self._limit
        reward = task.reward(now, before, physical, terminated)
        observation = final = self._observe()
        ended = np.nonzero(terminated | truncated)[0]
        if len(ended):
            self._restart(ended)
            observation = self._observe()
        return step_result(
            observation=observation,
            reward=self._tensor(reward.astype(np.float32)),
            terminated=self._tensor(terminated),
            truncated=self._tensor(truncated),
            final_observation=final,
        )

    def _restart(self, rows: np.ndarray) -> None:
        qpos, qvel = self._task.start(self._random, len(rows))
        self._physics.place(rows, qpos, qvel)
        self._elapsed[rows] = 0

    def _observe(self) -> dict[str, Tensor]:
        observed = self._task.observe(self._physics.now)
        return {"policy": self._tensor(observed.astype(np.float32))}

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.spec.device)

    def render(self) -> np.ndarray:
        """A picture of environment 0, (H, W, 3) uint8.

        Raises:
            InputError: a package or a display for drawing is missing.
            NotImplementedError: it was not made to draw.
        """
        if self._robot.render_mode != "rgb_array":
            raise NotImplementedError(f"{self.spec.task_id} was made without render=True")
        single: Any = self._robot.unwrapped
        single.set_state(*(self._physics.now[name][0] for name in ("qpos", "qvel")))
        with drawing(self.spec.task_id):
            picture: Any = single.render()
        return np.ascontiguousarray(picture)

    def state_dict(self) -> dict[str, Any]:
        """Physics, time limits and random state."""
        return {
            "physics": self._physics.state_dict(),
            "elapsed": self._elapsed.copy(),
            "random": self._random.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value.

        Raises:
            InputError: it holds another number of environments.
        """
        saved = len(state["elapsed"])
        if saved != self.spec.num_envs:
            raise InputError(
                f"{self.spec.task_id}: the saved state holds {saved} environments, expected"
                f" {self.spec.num_envs}: build it with num_envs={saved}"
            )
        self._physics.load_state_dict(state["physics"])
        self._elapsed = np.array(state["elapsed"])
        self._random.bit_generator.state = state["random"]

    def close(self) -> None:
        """End the threads and the picture's window."""
        if not self._closed:
            self._closed = True
            self._physics.close()
            self._robot.close()


def tasks() -> tuple[str, ...]:
    """Gymnasium's MuJoCo tasks."""
    return tuple(TASKS)


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> MujocoVector:
    """Environments of a task, in as many threads as torch uses.

    Raises:
        InputError: MuJoCo is missing.
    """
    task_id, num_envs = f"mujoco/{name}", settings.num_envs
    options: dict[str, Any] = {"render_mode": headless()} if render else {}
    with importing_packages(task_id), quiet_mujoco():
        robot = gymnasium.make(f"{name}-v5", disable_env_checker=True, **options)
        from supple.envs.mujoco_physics import make_physics
    single: Any = robot.unwrapped
    if render:
        follow_robot(robot)
    physical = ActionMap(robot.action_space, num_envs, task_id)
    facts = facts_of(robot, task_id, num_envs) | {"exact_resume": True}
    task = TASKS[name](single.model, single.dt)
    physics = make_physics(
        single.model,
        num_envs,
        frame_skip=single.frame_skip,
        threads=torch.get_num_threads(),
        reads=task.reads,
    )
    spec = EnvSpec(
        task_id=task_id,
        num_envs=num_envs,
        observation={"policy": single.observation_space.shape[0]},
        action=physical.spec,
        device=device,
        **facts,
    )
    return MujocoVector(task, physics, robot=robot, physical=physical, spec=spec)
