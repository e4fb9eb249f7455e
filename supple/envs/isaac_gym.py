"""Isaac Gym's generation: ``VecTask`` of IsaacGymEnvs and its kin, and legged_gym's 5-tuple.

Isaac Gym itself is no registry package and needs Python 3.8; its interfaces live on in many
simulators. They differ in when an ended environment is reset, which no attribute tells:

=====================  ===========================  ==========================================
kind                   observation at an end        next step
=====================  ===========================  ==========================================
VecTask, most tasks    the episode's last           simulates, resets, returns the reset's
VecTask, AllegroHand   the episode's last           resets, simulates: first one never shown
VecTask, terrain       the next episode's first     an ordinary one
legged_gym             the next episode's first     an ordinary one
=====================  ===========================  ==========================================

So it is measured when the adapter is built: all environments are brought to their time limit, which
also shows at which count that is. In the first two kinds the step after an end becomes a bridge
row. In the other two the last observation is computed just before the reset, where computing it has
no side effects; elsewhere ``has_final_obs`` is False.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from supple.envs.torch_sim import Groups, Outcome, TorchSim, unbounded
from supple.errors import InputError

PROBED = 4
"""Steps before the nominal time limit at which the measurement begins, and after which it ends."""
OUTPUTS = ("obs_buf", "privileged_obs_buf", "states_buf")
"""Where observations are computed to."""
Observe = Callable[[], dict[str, Tensor]]


def recognises_vec_task(made: Any) -> bool:
    """Whether an object is a ``VecTask``."""
    return all(hasattr(made, name) for name in ("reset_buf", "progress_buf", "step", "num_envs"))


def recognises_legged_gym(made: Any) -> bool:
    """Whether an object steps with legged_gym's 5-tuple."""
    needed = ("get_privileged_observations", "reset_buf", "episode_length_buf", "step")
    return all(hasattr(made, name) for name in needed)


class VecTask(TorchSim):
    """An IsaacGymEnvs ``VecTask`` under the contract of ``envs/base.py``.

    Its ``time_outs`` are not read: they call a failure in the last step a time-out, and in terrain
    tasks they miss every real one. An end at the limit is a time-out here, whatever else happened
    in that step: ``reset_buf`` does not tell the two apart.

    Args:
        env: the task; it is closed together with this one.
        task_id: how it is called in messages and files.
        action_bound: what the policy's 1 means to the simulator.

    Raises:
        InputError: it does not end at its time limit or leaves resets to its caller, or names no
            group for the policy.
    """

    def __init__(self, env: Any, *, task_id: str, action_bound: float = 1.0) -> None:
        self._env = env
        size = _first_of(env, task_id, "num_actions", "num_acts")
        device = torch.device(getattr(env, "rl_device", env.reset_buf.device))
        self._zeros = torch.zeros(env.num_envs, size, device=device)
        self._bridge = torch.zeros(env.num_envs, dtype=torch.bool, device=device)
        sample, self._next_step, self._time_up, self._first = self._measure(task_id)
        self._capture: FinalCapture | None = None
        if not self._next_step and computes_without_side_effects(env, self._zeros):
            self._capture = FinalCapture(env, self._buffers)
        super().__init__(
            Groups(sample, task_id),
            action=unbounded(size, action_bound),
            task_id=task_id,
            num_envs=env.num_envs,
            device=device,
            max_episode_steps=self._time_up - self._first,
            has_final_obs=self._next_step or self._capture is not None,
        )

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        env = self._env
        env.reset_buf.fill_(1)
        if not self._next_step and callable(getattr(env, "reset_idx", None)):
            env.reset_idx(torch.arange(env.num_envs, device=env.reset_buf.device))
        # reset() returns buffers of zeros: only a step computes observations.
        observation = self._step(self._zeros)[0]
        self._bridge = env.reset_buf.bool() & self._next_step
        return observation

    def _advance(self, action: Tensor) -> Outcome:
        age = self._env.progress_buf.to(self._bridge.device) + 1
        observation, reward, done, extras = self._step(action)
        valid = ~self._bridge
        ended = done & valid
        truncated = ended & (age >= self._time_up)
        self._bridge = done & self._next_step
        return Outcome(
            observation,
            torch.where(valid, reward, 0.0),
            ended & ~truncated,
            truncated,
            final=self._capture.take() if self._capture else None,
            valid=valid,
            extras=extras,
        )

    def spread_ends(self, seed: int) -> None:
        """Begin at random counts of steps."""
        counts = self._random_counts(self.spec.max_episode_steps or 1, seed)
        self._env.progress_buf.copy_(self._first + counts)

    def _step(self, action: Tensor) -> tuple[Mapping[str, Any], Tensor, Tensor, Any]:
        observation, reward, done, extras = self._env.step(action)
        return observation, reward, done.bool().clone(), extras

    def _buffers(self) -> dict[str, Tensor]:
        """The observation as ``step`` would return it."""
        limit = float(getattr(self._env, "clip_obs", torch.inf))
        named = {"obs": self._env.obs_buf}
        if getattr(self._env, "num_states", 0):
            named["states"] = self._env.states_buf
        return {name: rows.clamp(-limit, limit).clone() for name, rows in named.items()}

    def _measure(self, task_id: str) -> tuple[Mapping[str, Any], bool, int, int]:
        """An observation; whether it resets a step late, at which count, and from which count."""
        env = self._env
        # In the step, for arguments of reset_idx are each task's own.
        env.reset_buf.fill_(1)
        self._step(self._zeros)
        limit = int(env.max_episode_length)
        env.progress_buf.fill_(max(limit - PROBED, 0))
        counts = torch.ones_like(env.progress_buf, dtype=torch.bool)
        for _ in range(2 * PROBED):
            age = int(env.progress_buf[counts].max()) + 1
            observation, _, done, _ = self._step(self._zeros)
            done = done.to(counts.device)
            if done[counts].all():
                next_step = bool((env.progress_buf[counts] != 0).all())
                self._step(self._zeros)
                first = int(env.progress_buf[counts].min()) if next_step else 0
                if first >= age:
                    raise InputError(
                        f"{task_id} ended at {age} steps and did not begin anew in the next:"
                        " expected it to reset itself within step, say by calling reset_done first"
                    )
                return observation, next_step, age, first
            counts &= ~done  # failed before: begun anew, it counts from there
            if 2 * int(counts.sum()) < env.num_envs:
                break
        raise InputError(
            f"{task_id} did not end within {PROBED} steps of max_episode_length={limit}, or more"
            " than half of it before: expected it to set reset_buf by progress_buf there, which"
            " shows when it resets"
        )


class LeggedGym(TorchSim):
    """legged_gym's ``step -> (obs, privileged_obs or None, reward, reset_buf, extras)``.

    ``time_out_buf`` tells this step's time-outs; the copy in ``extras`` may be an earlier step's.

    Args:
        env: the task; it is closed together with this one.
        task_id: how it is called in messages and files.
        action_bound: what the policy's 1 means to the simulator.

    Raises:
        InputError: it has no count of its actions.
    """

    def __init__(self, env: Any, *, task_id: str, action_bound: float = 1.0) -> None:
        self._env = env
        size = _first_of(env, task_id, "num_actions")
        device = torch.device(env.device)
        # Before its first step it has no heights to observe.
        groups = Groups(_named(*env.reset()), task_id)
        zeros = torch.zeros(env.num_envs, size, device=device)
        pure = computes_without_side_effects(env, zeros)
        self._capture = FinalCapture(env, self._buffers) if pure else None
        super().__init__(
            groups,
            action=unbounded(size, action_bound),
            task_id=task_id,
            num_envs=env.num_envs,
            device=device,
            max_episode_steps=int(env.max_episode_length) + 1,  # it ends beyond, not at, the limit
            control_dt=getattr(env, "dt", None),
            has_final_obs=self._capture is not None,
        )

    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        observation = _named(*self._env.reset())
        if self._capture:
            self._capture.take()
        return observation

    def _advance(self, action: Tensor) -> Outcome:
        obs, privileged, reward, done, extras = self._env.step(action)
        ended = done.bool()
        truncated = ended & self._env.time_out_buf.bool()
        return Outcome(
            _named(obs, privileged),
            reward,
            ended & ~truncated,
            truncated,
            final=self._capture.take() if self._capture else None,
            extras=extras,
        )

    def spread_ends(self, seed: int) -> None:
        """Begin at random counts of steps."""
        self._spread(self.spec.max_episode_steps or 1, seed)

    def _buffers(self) -> dict[str, Tensor]:
        """The observation as ``step`` would return it."""
        limit = _clip_observations(self._env)
        privileged = self._env.privileged_obs_buf
        named = _named(self._env.obs_buf, privileged)
        return {name: rows.clamp(-limit, limit).clone() for name, rows in named.items()}


class FinalCapture:
    """Keeps the observation before a reset, by computing it when ``reset_idx`` is called.

    Args:
        env: whose ``reset_idx`` is wrapped.
        read: copies of its observation buffers.
    """

    def __init__(self, env: Any, read: Observe) -> None:
        self._final: dict[str, Tensor] | None = None
        original = env.reset_idx

        def reset_idx(env_ids: Any, *rest: Any, **named: Any) -> Any:
            if len(env_ids):
                env.compute_observations()
                self._final = read()
            return original(env_ids, *rest, **named)

        env.reset_idx = reset_idx

    def take(self) -> dict[str, Tensor] | None:
        """The newest, once; None where nothing was reset since."""
        final, self._final = self._final, None
        return final


def computes_without_side_effects(env: Any, action: Tensor) -> bool:
    """Whether observations may be computed once more than the simulator itself does.

    Where a history is pushed along with them, a second call would shift it.

    Args:
        env: which is stepped before, as an episode's first frame often fills a history.
        action: to step with.
    """
    if not all(
        callable(getattr(env, name, None)) for name in ("reset_idx", "compute_observations")
    ):
        return False
    for _ in range(PROBED):
        env.step(action)
    before = {name: [each.clone() for each in held] for name, held in _tensors(env).items()}
    env.compute_observations()
    after = _tensors(env)
    return all(_same(held, after.get(name, [])) for name, held in before.items())


def _tensors(env: Any) -> dict[str, list[Tensor]]:
    """What its attributes and lists in them hold, but for what it returns."""
    return {
        name: [
            each
            for each in (value if isinstance(value, collections.deque | list) else [value])
            if isinstance(each, Tensor)
        ]
        for name, value in vars(env).items()
        if name not in OUTPUTS
    }


def _same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(ours, theirs, strict=True)
    )


def _named(obs: Tensor, privileged: Tensor | None = None) -> dict[str, Tensor]:
    return {"obs": obs} if privileged is None else {"obs": obs, "privileged": privileged}


def _clip_observations(env: Any) -> float:
    normalization = getattr(getattr(env, "cfg", None), "normalization", None)
    return float(getattr(normalization, "clip_observations", torch.inf))


def _first_of(env: Any, task_id: str, *names: str) -> int:
    for name in names:
        if isinstance(getattr(env, name, None), int):
            return int(getattr(env, name))
    raise InputError(f"{task_id} has no {' or '.join(names)}: expected the number of its actions")
