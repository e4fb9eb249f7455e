"""MuJoCo stepped in threads: ``mujoco.rollout`` where the state is all one needs, else MjData.

Both give every environment's arrays stacked, (N, ...) float64, in ``now``. Positions and velocities
are those after the step. What MuJoCo derives from them (body positions, contact forces ...) is what
MjData holds then: of the integrator's last evaluation, before the step's end. Gymnasium's
environments read them so, and ``mujoco.rollout`` does not give them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import mujoco
import numpy as np
from mujoco.rollout import Rollout

from supple.envs.mujoco_tasks import Arrays
from supple.errors import SimulatorError

_CHUNKS = 4
"""Pieces of work per thread: environments in contact take longer than others."""
_FULL, _INTEGRATION = (
    mujoco.mjtState.mjSTATE_FULLPHYSICS.value,
    mujoco.mjtState.mjSTATE_INTEGRATION.value,
)


class Physics(Protocol):
    """``N`` copies of one model."""

    now: Arrays
    """``qpos``, ``qvel`` and what else was asked for, overwritten by every step."""

    def step(self, control: np.ndarray) -> None:
        """Advance every environment by one control step under (N, nu) controls."""

    def place(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put environments ``rows`` (k,) afresh into a state (k, nq), (k, nv)."""

    def state_dict(self) -> Arrays:
        """What the next steps depend on, in copies."""

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from ``state_dict()``'s value."""

    def close(self) -> None:
        """End the threads."""


def make_physics(
    model: mujoco.MjModel, num_envs: int, *, frame_skip: int, threads: int, reads: Sequence[str]
) -> Physics:
    """The faster kind that can tell ``reads``; arguments as of ``DataPhysics``."""
    if reads:
        return DataPhysics(model, num_envs, frame_skip=frame_skip, threads=threads, reads=reads)
    return RolloutPhysics(model, num_envs, frame_skip=frame_skip, threads=threads)


class RolloutPhysics:
    """State vectors advanced by ``mujoco.rollout``; ``now`` holds ``qpos`` and ``qvel`` only.

    Its solver starts each control step from nothing, MjData's from the last solution: results
    differ by its tolerance, below 1e-6. In return a state is complete, and no thread's leftovers
    matter.

    Args:
        model: one without actuator states, mocap bodies or plugins.
        num_envs: ``N``.
        frame_skip: physics steps per control step.
        threads: >= 1.
    """

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, *, frame_skip: int, threads: int
    ) -> None:
        size = mujoco.mj_stateSize(model, _FULL)
        if size != 1 + model.nq + model.nv:
            raise SimulatorError("the model has states beyond positions and velocities")
        threads = min(threads, num_envs)
        self._rollout = Rollout(nthread=threads if threads > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._models = [model] * num_envs
        self._frame_skip = frame_skip
        self._state = np.zeros((num_envs, size))
        self._path = np.empty((num_envs, frame_skip, size))
        self._control = np.empty((num_envs, frame_skip, model.nu))
        self._no_sensors = np.empty((num_envs, frame_skip, model.nsensordata))
        split = 1 + model.nq  # after the time
        self.now: Arrays = {"qpos": self._state[:, 1:split], "qvel": self._state[:, split:]}

    def step(self, control: np.ndarray) -> None:
        """Advance every environment under (N, nu) controls."""
        self._control[...] = control[:, None]
        self._rollout.rollout(
            self._models,
            self._data,
            self._state,
            self._control,
            nstep=self._frame_skip,
            skip_checks=True,  # the checks cost as much as stepping some environments
            state=self._path,
            sensordata=self._no_sensors,
        )
        self._state[...] = self._path[:, -1]

    def place(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put environments ``rows`` afresh into a state."""
        self._state[rows, 0] = 0
        self.now["qpos"][rows] = qpos
        self.now["qvel"][rows] = qvel

    def state_dict(self) -> Arrays:
        """The state vectors."""
        return {"state": self._state.copy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from ``state_dict()``'s value."""
        self._state[...] = state["state"]

    def close(self) -> None:
        """End the threads."""
        self._rollout.close()


class DataPhysics:
    """An MjData for each environment, stepped in a pool of threads.

    Args:
        model: any.
        num_envs: ``N``.
        frame_skip: physics steps per control step.
        threads: >= 1.
        reads: arrays of MjData to have in ``now``, besides ``qpos`` and ``qvel``.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        *,
        frame_skip: int,
        threads: int,
        reads: Sequence[str],
    ) -> None:
        self._model, self._frame_skip = model, frame_skip
        self._data = [mujoco.MjData(model) for _ in range(num_envs)]
        names = ("qpos", "qvel", *reads)
        self.now: Arrays = {
            name: np.stack([getattr(data, name) for data in self._data]) for name in names
        }
        # Looked up once: each attribute of MjData makes a new array object.
        self._control = [data.ctrl for data in self._data]
        self._copies = [
            [(self.now[name][row], getattr(data, name)) for name in names]
            for row, data in enumerate(self._data)
        ]
        threads = min(threads, num_envs)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._chunks = np.array_split(np.arange(num_envs), min(num_envs, _CHUNKS * threads))

    def step(self, control: np.ndarray) -> None:
        """Advance every environment under (N, nu) controls."""
        if self._pool is None:
            self._advance(range(len(self._data)), control)
        else:
            list(self._pool.map(lambda rows: self._advance(rows, control), self._chunks))

    def _advance(self, rows: Sequence[int] | np.ndarray, control: np.ndarray) -> None:
        for row in rows:
            data = self._data[row]
            self._control[row][...] = control[row]
            mujoco.mj_step(self._model, data, self._frame_skip)
            mujoco.mj_rnePostConstraint(self._model, data)  # cfrc_ext, which steps leave out
            self._read(row)

    def _read(self, row: int) -> None:
        for into, source in self._copies[row]:
            into[...] = source

    def place(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put environments ``rows`` afresh into a state."""
        for index, row in enumerate(rows):
            data = self._data[row]
            mujoco.mj_resetData(self._model, data)
            data.qpos[:], data.qvel[:] = qpos[index], qvel[index]
            mujoco.mj_forward(self._model, data)
            self._read(row)

    def state_dict(self) -> Arrays:
        """What MuJoCo integrates from, and ``now``: rewards compare the next step with it."""
        vectors = np.empty((len(self._data), mujoco.mj_stateSize(self._model, _INTEGRATION)))
        for vector, data in zip(vectors, self._data, strict=True):
            mujoco.mj_getState(self._model, data, vector, _INTEGRATION)
        return {"integration": vectors, **{name: value.copy() for name, value in self.now.items()}}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from ``state_dict()``'s value."""
        for vector, data in zip(state["integration"], self._data, strict=True):
            mujoco.mj_setState(self._model, data, np.ascontiguousarray(vector), _INTEGRATION)
        for name, value in self.now.items():
            value[...] = state[name]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
