"""ManiSkill 3: ``maniskill/<id>``, state observations; needs a GPU, or at least a Vulkan device.

As published: dense normalised rewards, where a task has them, and reaching the goal does not end an
episode, so that all environments are truncated together. ManiSkill resets the environments it is
told to, and only then: final observations are what a step returned.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from supple.envs import installed
from supple.envs.base import Box
from supple.envs.torch_sim import Groups, Outcome, TorchSim
from supple.errors import InputError, how_to_install, say_once

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS = (
    *("PickSingleYCB-v1", "PegInsertionSide-v1", "UnitreeG1TransportBox-v1"),
    *("UnitreeG1PlaceAppleInBowl-v1", "LiftPegUpright-v1", "PokeCube-v1", "PullCube-v1"),
    "RollBall-v1",
)
"""The published benchmark, named where ManiSkill is not installed."""
REWARD_MODES = ("normalized_dense", "dense", "sparse")
"""The first that a task supports is learned from."""
MOST_ON_CPU = 1
"""Its CPU backend refuses more."""


class ManiSkill(TorchSim):
    """A ManiSkill environment under the contract of ``envs/base.py``; it is closed with this one.

    Args:
        env: as ``gymnasium.make`` returns it, with state observations.
        task_id: how it is called in messages and files.
        limit: steps of an episode.
    """

    def __init__(self, env: Any, *, task_id: str, limit: int) -> None:
        self._env, self._limit = env, limit
        base = env.unwrapped
        space = base.single_action_space
        if not hasattr(space, "low"):
            raise InputError(
                f"{task_id} takes actions of several robots, {space}: expected those of one, a"
                " vector between bounds; choose a task of one robot"
            )
        device = torch.device(base.device)
        sample, _ = env.reset()
        super().__init__(
            Groups(_groups(sample), task_id),
            action=Box(low=tuple(space.low.tolist()), high=tuple(space.high.tolist()), clip=True),
            task_id=task_id,
            num_envs=base.num_envs,
            device=device,
            max_episode_steps=limit,
            control_dt=getattr(base, "control_timestep", None),
        )
        self._age = torch.zeros(base.num_envs, dtype=torch.int64, device=device)

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        self._age.zero_()
        observation, _ = self._env.reset(seed=None if seed is None else seed % 2**31)
        return _groups(observation)

    def _advance(self, action: Tensor) -> Outcome:
        observation, reward, _, _, info = self._env.step(action)
        self._age += 1
        truncated = self._age >= self._limit
        reached = _groups(observation)
        success = info.get("success")
        outcome = Outcome(reached, reward, torch.zeros_like(truncated), truncated, success=success)
        rows = truncated.nonzero().squeeze(-1)
        if len(rows) == 0:
            return outcome
        # Its infos and buffers belong to the reset afterwards.
        kept = {name: part.clone() for name, part in reached.items()}
        outcome = outcome._replace(
            reward=reward.clone(), success=None if success is None else success.clone(), final=kept
        )
        fresh, _ = self._env.reset(options={"env_idx": rows})
        self._age[rows] = 0
        return outcome._replace(observation=_groups(fresh))

    def render(self) -> np.ndarray:
        """A picture of environment 0, (H, W, 3) uint8."""
        pictures = torch.as_tensor(self._env.render())
        first = pictures[0] if pictures.ndim == 4 else pictures
        return np.ascontiguousarray(first.cpu().numpy())


def _groups(observation: Any) -> Mapping[str, Any]:
    return observation if isinstance(observation, Mapping) else {"state": observation}


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    if installed.is_installed("mani_skill"):
        return "installed; it needs a GPU, or a Vulkan driver"
    how = how_to_install("maniskill")
    return f"not installed: {how}, on a machine with a GPU or a Vulkan driver"


@functools.cache
def tasks() -> tuple[str, ...]:
    """Every registered id where it is installed."""
    if not installed.is_installed("mani_skill"):
        return TASKS
    import mani_skill.envs  # noqa: F401 - registers its ids
    from mani_skill.utils.registration import REGISTERED_ENVS

    return tuple(sorted(REGISTERED_ENVS))


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> ManiSkill:
    """Environments of a registered id.

    Raises:
        InputError: ManiSkill is not installed, or the task has no reward.
    """
    task_id = f"maniskill/{name}"
    installed.require("mani_skill", "maniskill", task_id)
    import mani_skill.envs  # noqa: F401 - registers its ids
    from mani_skill.utils.registration import REGISTERED_ENVS

    backends: dict[str, Any] = {"sim_backend": "cpu"}
    if device.type == "cuda":
        gpu = f"cuda:{device.index or 0}"
        backends = {"sim_backend": gpu, "render_backend": gpu}
    env = gymnasium.make(
        name,
        num_envs=settings.num_envs,
        obs_mode="state",
        reward_mode=_reward_mode(REGISTERED_ENVS[name].cls.SUPPORTED_REWARD_MODES, task_id),
        render_mode="rgb_array" if render else None,
        **backends,
    )
    limit = env.spec.max_episode_steps if env.spec else None
    return ManiSkill(env, task_id=task_id, limit=limit or 50)


def _reward_mode(supported: Sequence[str], task_id: str) -> str:
    """The densest of what a task supports.

    Raises:
        InputError: it gives no reward at all.
    """
    found = next((mode for mode in REWARD_MODES if mode in supported), None)
    if found is None:
        raise InputError(
            f"{task_id} has no reward, only the modes {', '.join(supported)}: expected one of"
            f" {', '.join(REWARD_MODES)}"
        )
    if found != REWARD_MODES[0]:
        say_once(f"{task_id} has no {REWARD_MODES[0]} reward: it gives its {found} one")
    return found
