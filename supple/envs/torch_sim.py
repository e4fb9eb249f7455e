"""The base of adapters to simulators that speak torch: numbers stay where the simulator made them.

Such simulators hand out their own buffers, overwrite them at the next step, leave entries in
``extras`` from steps long past, draw from torch's global generators and take actions without
bounds. ``TorchSim`` settles all of that once; an adapter only says how to restart and to advance.
"""

from __future__ import annotations

import contextlib
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import ActionSpec, Box, Discrete, Env, EnvSpec, reset_result, step_result
from supple.envs.sim_log import SimulatorLog
from supple.errors import InputError, SimulatorError, say_once
from supple.rng import derive_seed

GROUP_NAMES = {
    "policy": ("policy", "actor", "obs", "observation", "state"),
    "critic": ("critic", "privileged", "states", "privileged_state"),
}
"""Our observation groups, and what simulators call them."""
COUNTER = "common_step_counter"
"""Isaac Lab's, mjlab's and legged_gym's name for it."""
_NUMPY: Any = np.random  # NumPy's stubs leave out the functions that exchange its generator


class Outcome(NamedTuple):
    """What a simulator said of one step, in its own buffers and dtypes."""

    observation: Mapping[str, Any]
    """Its groups by its own names, after any reset it made itself."""
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final: Mapping[str, Any] | None = None
    """Its groups before the reset; read in rows that ended only. None where nothing was reset."""
    valid: Tensor | None = None
    success: Tensor | None = None
    extras: Any = None
    """Its own, in which it reports of itself: ``SimulatorLog``."""


class TorchSim(Env):
    """An environment around a simulator that computes on ``spec.device``.

    Subclasses set what they need, call ``super().__init__``, and implement ``_restart`` and
    ``_advance``. Both run with the environment's own random state in torch's and NumPy's global
    generators, so that two environments in one process never share a stream.
    """

    _env: Any = None
    """The simulator itself, where it is an object; closed with this one."""

    def __init__(self, groups: Groups, *, action: ActionSpec, **facts: Any) -> None:
        self._groups = groups
        self.spec = EnvSpec(observation=groups.widths, action=action, **facts)
        self._physical = PhysicalActions(self.spec)
        self._random = RandomStreams(self.spec.device)
        self._log = SimulatorLog(self.spec.device)

    @abstractmethod
    def _restart(self, seed: int | None) -> Mapping[str, Any]:
        """Start every environment afresh; the global generators are seeded. The observation."""

    @abstractmethod
    def _advance(self, action: Tensor) -> Outcome:
        """Apply physical actions, (N, A) float32 or (N,) int64, which are nobody else's."""

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start every environment afresh; with ``seed``, reproducibly."""
        if seed is not None:
            self._random.seed(seed)
        with self._random:
            observation = self._restart(seed)
        self._log.skip(getattr(self._bare, "extras", None))
        return reset_result(self._groups(observation), self.spec.num_envs)

    def step(self, action: Tensor) -> TensorDict:
        """Step every environment; see the contract.

        Raises:
            InputError: ``action`` has another shape.
            SimulatorError: a row ended, and the observation before its reset did not come.
        """
        physical = self._physical(action)
        with self._random:
            outcome = self._advance(physical)
        self._log.observe(outcome.extras)
        observation = self._groups(outcome.observation)
        terminated, truncated = _flag(outcome.terminated), _flag(outcome.truncated)
        final = observation
        if outcome.final is not None:
            ended = terminated | truncated
            given = self._groups(outcome.final)
            final = mixed(ended, given, observation)
        return step_result(
            observation=observation,
            reward=outcome.reward.to(torch.float32, copy=True).reshape(-1),
            terminated=terminated,
            truncated=truncated,
            final_observation=final,
            valid=outcome.valid,
            success=None if outcome.success is None else _flag(outcome.success),
        )

    def report(self) -> dict[str, float]:
        """Means of what it logged of itself; waits for the device."""
        return self._log.report()

    def progress(self) -> dict[str, Any]:
        """The steps since it was built, by which curricula go, where it counts them."""
        count = getattr(self._bare, COUNTER, None)
        return {} if count is None else {COUNTER: int(count)}

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        if COUNTER in progress:
            setattr(self._bare, COUNTER, progress[COUNTER])

    def _random_counts(self, limit: int | Tensor, seed: int) -> Tensor:
        """Counts of steps to begin at, below the limit, (N,) int64, as rsl_rl's runner does.

        Source: leggedrobotics/rsl_rl, ``OnPolicyRunner.learn(init_at_random_ep_len=True)``.
        """
        generator = torch.Generator().manual_seed(seed)
        share = torch.rand(self.spec.num_envs, generator=generator, dtype=torch.float64)
        return (share.to(self.spec.device) * limit).long()

    def _spread(self, limit: int | Tensor, seed: int) -> Tensor:
        """Set its ``episode_length_buf`` to random counts below the limit, (N,)."""
        counts = self._random_counts(limit, seed)
        self._env.episode_length_buf = counts.to(self._env.episode_length_buf)
        return counts

    @property
    def _bare(self) -> Any:
        """The simulator beneath wrappers of its own."""
        return getattr(self._env, "unwrapped", self._env)

    def close(self) -> None:
        """Close the simulator, where it can be."""
        env, self._env = self._env, None
        if callable(getattr(env, "close", None)):
            env.close()


def _flag(value: Tensor) -> Tensor:
    return value.to(torch.bool, copy=True).reshape(-1)


def mixed(rows: Tensor, chosen: Any, others: Any) -> Any:
    """``chosen`` in these rows, (N,) bool, ``others`` elsewhere; nested groups alike."""
    if isinstance(chosen, Tensor):
        return torch.where(rows.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, others)
    return {name: mixed(rows, part, others[name]) for name, part in chosen.items()}


class Groups:
    """A simulator's observation groups as ours: (N, D) float32, in memory of our own.

    Each joins the groups that the task's own trainer joins; without a trainer they are found by
    name (``GROUP_NAMES``). What is left out is said once. A group that is itself a dict of terms is
    joined in its own order; each part is flattened to (N, -1).

    Args:
        sample: an observation, as the simulator gives it.
        task: named in errors.
        trainer: rsl_rl's ``obs_groups``, groups by who reads them: actor (or policy), critic.

    Raises:
        InputError: no group for the policy, or one of images.
    """

    def __init__(
        self,
        sample: Mapping[str, Any],
        task: str,
        trainer: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if not hasattr(sample, "keys"):
            raise InputError(
                f"{task} observes a {type(sample).__name__}: expected groups by name, such as"
                ' {"policy": (N, D)}; of rsl_rl that is version 3 or newer'
            )
        names = list(sample.keys())
        self._source: dict[str, tuple[str, ...]] = {
            ours: (next(name for name in theirs if name in names),)
            for ours, theirs in GROUP_NAMES.items()
            if set(theirs) & set(names)
        }
        self._source |= _joined(trainer or {}, names)
        if "policy" not in self._source:
            raise InputError(
                f"{task} observes the groups {', '.join(map(str, names))}: expected one named"
                f" {' or '.join(GROUP_NAMES['policy'])}; rename the policy's group"
            )
        for ours, theirs in self._source.items():
            for part in _parts({name: sample[name] for name in theirs}):
                if part.ndim > 3 or part.dtype == torch.uint8:
                    raise InputError(
                        f"{task} observes images {tuple(part.shape)} in group {ours}: supple learns"
                        " from flat vectors only; choose a state-based task"
                    )
        self.widths = {name: int(rows.shape[1]) for name, rows in self(sample).items()}
        read_from = set(chain.from_iterable(self._source.values()))
        unused = [str(name) for name in names if name not in read_from]
        if unused:
            read = ", ".join(
                f"{ours} from {' and '.join(theirs)}" for ours, theirs in self._source.items()
            )
            say_once(
                f"{task}: nothing is learned from the observation groups {', '.join(unused)}; read"
                f" are {read}"
            )

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """Copies, so that the simulator may go on using its buffers."""
        return {
            ours: _rows({name: observation[name] for name in theirs})
            for ours, theirs in self._source.items()
        }

    @property
    def source(self) -> Mapping[str, tuple[str, ...]]:
        """What the simulator calls the groups that each of ours joins."""
        return self._source


def _joined(
    trainer: Mapping[str, Sequence[str]], names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """What a trainer reads of these groups, as ours: the critic's without those of the policy."""
    told = {
        ours: tuple(next((trainer[name] for name in theirs if name in trainer), ()))
        for ours, theirs in GROUP_NAMES.items()
    }
    if not told["policy"] or not set(told["policy"]) <= set(names):
        return {}
    privileged = tuple(name for name in told["critic"] if name not in told["policy"])
    if not privileged or not set(privileged) <= set(names):
        return {"policy": told["policy"]}
    return {"policy": told["policy"], "critic": privileged}


def _parts(group: Any) -> list[Tensor]:
    if isinstance(group, Tensor):
        return [group]
    return [part for term in group.values() for part in _parts(term)]


def _rows(group: Any) -> Tensor:
    """(N, D) float32, a copy."""
    parts = [part.reshape(len(part), -1) for part in _parts(group)]
    if len(parts) == 1:
        return parts[0].to(torch.float32, copy=True)
    return torch.cat(parts, dim=1).to(torch.float32)


class PhysicalActions:
    """Policy actions in [-1, 1] to physical ones, in fresh memory, clipped where the spec says so.

    Args:
        spec: whose ``action`` gives the bounds.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec
        action = spec.action
        self._expected: tuple[int, ...] = (spec.num_envs,)
        if isinstance(action, Box):
            self._expected = (spec.num_envs, action.size)
            self._low = torch.tensor(action.low, device=spec.device)
            self._high = torch.tensor(action.high, device=spec.device)
            self._center, self._half = (self._low + self._high) / 2, (self._high - self._low) / 2

    def __call__(self, action: Tensor) -> Tensor:
        """Convert (N, A) floats; (N,) choices stay as they are.

        Raises:
            InputError: ``action`` has another shape.
        """
        if tuple(action.shape) != self._expected:
            raise InputError(
                f"{self._spec.task_id}: action has shape {tuple(action.shape)}, expected"
                f" {self._expected}"
            )
        if isinstance(self._spec.action, Discrete):
            return action.clone()
        physical = torch.addcmul(self._center, action, self._half)
        return physical.clamp_(self._low, self._high) if self._spec.action.clip else physical


class RandomStreams:
    """One owner's state of the global random generators of torch and NumPy.

    As a context manager it puts the owner's state in place and the former one back afterwards.

    Args:
        device: whose torch generator counts, besides the CPU's.
        seed: where the streams begin.
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begin anew."""
        seed = derive_seed(seed, "simulator")
        # NumPy's generator is exchanged as a whole: reading its state takes 0.2 ms.
        self._numpy: Any = np.random.MT19937(seed)
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._torch_cuda = [torch.Generator(d).manual_seed(seed).get_state() for d in self._cuda]

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *error: object) -> None:
        self._exchange()

    def _exchange(self) -> None:
        outside = _NUMPY.get_bit_generator()
        _NUMPY.set_bit_generator(self._numpy)
        self._numpy = outside
        own, self._torch = self._torch, torch.get_rng_state()
        torch.set_rng_state(own)
        for index, device in enumerate(self._cuda):
            own, self._torch_cuda[index] = (
                self._torch_cuda[index],
                torch.cuda.get_rng_state(device),
            )
            torch.cuda.set_rng_state(own, device)


@contextlib.contextmanager
def python_stream(seed: int) -> Iterator[None]:
    """Python's own generator begins at a seed, and goes on afterwards where it was.

    For the length of building: exchanging its state at every step would cost 40 µs each time.
    """
    outside = random.getstate()
    random.seed(derive_seed(seed, "simulator"))
    try:
        yield
    finally:
        random.setstate(outside)


def unbounded(size: int, bound: float) -> Box:
    """Actions of a simulator that states no bounds: the policy's 1 is ``bound``, nothing clips."""
    return Box(low=(-bound,) * size, high=(bound,) * size, clip=False)


def require_final(final: Mapping[str, Any] | None, ended: Tensor, task: str) -> None:
    """Refuse an end whose last observation did not come; waits for the device.

    Raises:
        SimulatorError: names the key that is missing.
    """
    if final is None and bool(ended.any()):
        raise SimulatorError(
            f"{task} ended an episode without extras['final_obs']: set its compute_final_obs, or"
            " build it with has_final_obs False"
        )
