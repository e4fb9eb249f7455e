"""Genesis: ``genesis/go2-walk_easy``, ``genesis/go2-walk`` and ``genesis/panda-grasp``.

Genesis ships no environments; the three published with FlashSAC are written anew in
``genesis_go2*.py`` and ``genesis_panda.py``, with what differs from them said there. This adapter
makes the resets, so that final observations are exact: a step is simulated, judged and observed,
and only then do ended copies start afresh. A time-out is a truncation, except where the copy failed
in that very step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from supple.envs import installed
from supple.envs.genesis_go2 import Go2WalkEasy
from supple.envs.genesis_go2_walk import Go2Walk
from supple.envs.genesis_panda import PandaGrasp
from supple.envs.genesis_task import Task
from supple.envs.torch_sim import Groups, Outcome, TorchSim, mixed
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.envs.registry import EnvSettings

TASKS: dict[str, type[Task]] = {
    "go2-walk_easy": Go2WalkEasy,
    "go2-walk": Go2Walk,
    "panda-grasp": PandaGrasp,
}
RESOLUTION = (640, 480)
VERTICAL = np.array((0.0, 0.0, 1.0))


class Genesis(TorchSim):
    """A Genesis task under the contract of ``envs/base.py``; its scene is destroyed with this one.

    Args:
        task: not started yet.
        task_id: how it is called in messages and files.
        camera: of the scene; None draws nothing.
    """

    def __init__(self, task: Task, *, task_id: str, camera: Any = None) -> None:
        self._task, self._camera = task, camera
        self._all = torch.ones_like(task.age, dtype=torch.bool)
        task.begin(self._all)
        super().__init__(
            Groups(task.observe(), task_id),
            action=task.action,
            task_id=task_id,
            num_envs=task.num_envs,
            device=task.device,
            max_episode_steps=task.limit,
            control_dt=task.control_dt,
            critic_contains_policy=task.critic_contains_policy,
            deployment=task.deployment,
            channels=task.channels,
        )

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        self._task.begin(self._all)
        return self._task.observe()

    def _advance(self, action: Tensor) -> Outcome:
        task = self._task
        reward, terminated = task.advance(action)
        truncated = (task.age >= task.limit) & ~terminated
        reached = task.observe()
        ended = terminated | truncated
        if not ended.any():
            return Outcome(reached, reward, terminated, truncated)
        task.begin(ended)
        fresh = task.observe()
        # The others' noise was drawn anew with it: only the rows that were reset are taken.
        shown = mixed(ended, fresh, reached)
        return Outcome(shown, reward, terminated, truncated, final=reached)

    def spread_ends(self, seed: int) -> None:
        """Begin at random counts of steps."""
        self._task.age.copy_(self._random_counts(self._task.limit, seed))

    def render(self) -> np.ndarray:
        """A picture of environment 0, (H, W, 3) uint8.

        Raises:
            NotImplementedError: it was not made to draw.
        """
        if self._camera is None:
            raise NotImplementedError(f"{self.spec.task_id} was made without render=True")
        focus = self._task.focus().cpu().numpy()
        # Without a vertical it keeps the last one, which a new direction has tilted.
        self._camera.set_pose(pos=focus + np.array(self._task.camera), lookat=focus, up=VERTICAL)
        picture = self._camera.render(force_render=True)[0]
        return np.ascontiguousarray(picture)

    def close(self) -> None:
        """Destroy the scene."""
        task, self._task = self._task, None  # type: ignore[assignment]
        if task is not None:
            task.scene.destroy()


def status() -> str:
    """Whether it can run here, and if not, what to install."""
    return installed.status("genesis", "genesis")


def tasks() -> tuple[str, ...]:
    """Those written here."""
    return tuple(TASKS)


def build(name: str, settings: EnvSettings, *, device: torch.device, render: bool) -> Genesis:
    """The scene of a task, built; its kernels are compiled at first use and kept on disk.

    Raises:
        InputError: Genesis is not installed, or runs on another device in this process.
    """
    task_id = f"genesis/{name}"
    installed.require("genesis", "genesis", task_id)
    import genesis as gs

    _start(gs, device, task_id)
    kind = TASKS[name]
    scene = gs.Scene(
        sim_options=gs.options.SimOptions(dt=kind.scene_dt, substeps=kind.substeps),
        rigid_options=gs.options.RigidOptions(batch_links_info=kind.links_vary),
        vis_options=gs.options.VisOptions(rendered_envs_idx=[0]),
        show_viewer=False,
    )
    entities = kind.populate(gs, scene)
    camera = scene.add_camera(res=RESOLUTION, fov=40) if render else None
    scene.build(n_envs=settings.num_envs)
    return Genesis(kind(scene, entities, torch.device(gs.device)), task_id=task_id, camera=camera)


def _start(gs: Any, device: torch.device, task_id: str) -> None:
    """Start Genesis, once in a process; its device holds for every scene."""
    if not gs._initialized:
        backend = gs.cuda if device.type == "cuda" else gs.cpu
        gs.init(backend=backend, logging_level="error")  # its compiler warns of itself
    if gs.device.type != device.type:
        raise InputError(
            f"{task_id} on {device}: Genesis runs on {gs.device} in this process; use that device,"
            " or a process of its own"
        )
