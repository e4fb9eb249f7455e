"""An environment in a process of its own, for simulators of which a process holds only one.

Numbers cross a pipe: right for evaluation and films, slow for training.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Mapping
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import Env, EnvSpec
from supple.errors import InputError, SimulatorError
from supple.signals import requests_to_stop

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from supple.envs.registry import EnvSettings

_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


class RemoteEnv(Env):
    """A task built and stepped by a fresh Python process.

    Args:
        task_id: ``<simulator>/<task>``, or ``module:callable``.
        settings: how many, how configured, and what the policy's 1 means; the rest is not for the
            other process.
        device: where its tensors live, there and here.
        render: whether ``render()`` will be called.

    Raises:
        InputError: the task cannot be built there.
    """

    def __init__(
        self, task_id: str, settings: EnvSettings, *, device: torch.device, render: bool
    ) -> None:
        from supple.envs.registry import check_task

        check_task(task_id)
        # What surrounds an environment here (noise, delay, history) must not surround it there too;
        # what it draws as it is built follows from the seed this one is built with.
        bare = type(settings)(
            num_envs=settings.num_envs,
            action_bound=settings.action_bound,
            config=settings.config,
        )
        self._patience = settings.patience
        seed = int(torch.randint(2**31, ()))
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: Any = context.Process(
            target=_serve, args=(theirs, task_id, bare, str(device), render, seed), daemon=True
        )
        self._task_id, self._device = task_id, device
        self._process.start()
        # At exit Python waits for it, and it listens to no request to end.
        Finalize(self, self._process.kill, exitpriority=10)
        theirs.close()
        self.spec = EnvSpec.from_json(self._answer(patience=0))  # building may take long

    def reset(self, seed: int | None = None) -> TensorDict:
        """As the environment there."""
        return self._tensors(self._ask("reset", seed))

    def step(self, action: Tensor) -> TensorDict:
        """As the environment there."""
        return self._tensors(self._ask("step", action.cpu().numpy()))

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """As the environment there."""
        self._ask("progress", dict(progress))

    def render(self) -> np.ndarray:
        """As the environment there."""
        picture: np.ndarray = self._ask("render", None)
        return picture

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(*_GONE):  # it has ended already
            self._pipe.send(("close", None))
        process.join(timeout=60)
        if process.is_alive():
            process.kill()
        self._pipe.close()

    def _ask(self, what: str, value: Any) -> Any:
        try:
            self._pipe.send((what, value))
        except _GONE as error:
            raise SimulatorError(f"{self._task_id}: its process ended before {what}") from error
        return self._answer(self._patience)

    def _answer(self, patience: float) -> Any:
        try:
            if patience and not self._pipe.poll(patience):
                self._process.kill()  # it does not listen to less
                raise SimulatorError(
                    f"{self._task_id}: its process did not answer within --env.patience"
                    f" {patience:g} s: it hangs, or needs longer"
                )
            kind, value = self._pipe.recv()
        except _GONE as error:
            raise SimulatorError(
                f"{self._task_id}: its process ended without an answer; look for its error above"
            ) from error
        if kind == "input":
            raise InputError(value)
        if kind == "missing":
            raise NotImplementedError(value)
        if kind == "failed":
            raise SimulatorError(value)
        return value

    def _tensors(self, arrays: dict[str, Any]) -> TensorDict:
        size = self.spec.num_envs
        return TensorDict(_nested(arrays, self._device, size), batch_size=[size])


def _nested(arrays: dict[str, Any], device: torch.device, size: int) -> dict[str, Any]:
    return {
        name: TensorDict(_nested(value, device, size), batch_size=[size])
        if isinstance(value, dict)
        else torch.from_numpy(value).to(device)
        for name, value in arrays.items()
    }


def _serve(
    pipe: Connection, task_id: str, settings: EnvSettings, device: str, render: bool, seed: int
) -> None:
    """Build, say what it is, and answer until asked to close or left alone."""
    from supple.envs.registry import make

    # Ctrl-C and a cluster's request to stop reach the whole process group; the run itself saves,
    # then ends this process.
    for request in (signal.SIGINT, *requests_to_stop()):
        signal.signal(request, signal.SIG_IGN)
    try:
        env = make(task_id, settings, device=device, seed=seed, render=render)
    except InputError as error:
        pipe.send(("input", str(error)))
        return
    pipe.send(("spec", env.spec.to_json()))
    try:
        while True:
            what, value = pipe.recv()
            if what == "close":
                return
            pipe.send(_do(env, what, value))
    except _GONE:
        return  # nobody asks any more
    finally:
        env.close()


def _do(env: Env, what: str, value: Any) -> tuple[str, Any]:
    try:
        if what == "render":
            return "picture", env.render()
        if what == "progress":
            env.load_progress(value)
            return "progress", None
        if what == "reset":
            return "reset", _arrays(env.reset(value))
        step = _arrays(env.step(torch.from_numpy(value).to(env.spec.device)))
        if not (step["terminated"] | step["truncated"]).any():
            step["final_observation"] = step["observation"]  # the same, it crosses the pipe once
        return "step", step
    except NotImplementedError as error:
        return "missing", str(error)
    except InputError as error:
        return "input", str(error)
    except Exception as error:  # whatever it was, the other process must be told
        return "failed", f"{type(error).__name__}: {error}"


def _arrays(data: TensorDict) -> dict[str, Any]:
    return {
        name: _arrays(value) if isinstance(value, TensorDict) else value.cpu().numpy()
        for name, value in data.items()
    }
