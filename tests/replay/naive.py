"""A replay ring as lists of whole transitions, and random streams of steps to feed it and Replay.

Every transition carries its own next observation, so nothing here shares storage, wraps, or is
looked up; what the ring must forget is stated by counting steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from supple.envs.base import Box, Discrete, EnvSpec, reset_result, step_result
from supple.replay import Replay, ReplaySettings
from supple.replay.plan import OBS_DTYPES

GROUPS = {"policy": 3, "critic": 2}


def make_spec(num_envs, *, action=None, groups=None, has_final_obs=True):
    return EnvSpec(
        task_id="fake",
        num_envs=num_envs,
        observation=GROUPS if groups is None else groups,
        action=action or Box(low=(-1.0, -1.0), high=(1.0, 1.0)),
        device=torch.device("cpu"),
        has_final_obs=has_final_obs,
    )


def make_ring(num_envs, rows, *, remainder=0, spec=None, extra_spec=None, **settings):
    """A ring of which every cell not yet written reads NaN."""
    size = ReplaySettings(capacity=rows * num_envs + remainder, **settings)
    ring = Replay(spec or make_spec(num_envs), size, extra_spec=extra_spec)
    for tensor in (*ring.storage.values(), *ring.columns.values()):
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    return ring


@dataclass
class Row:
    """One transition of one environment."""

    obs: dict[str, np.ndarray]
    action: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    valid: bool
    step_in_episode: int
    final: dict[str, np.ndarray]
    following: dict[str, np.ndarray]
    """What lies after it in the ring."""
    lost: bool = False
    """Its place in the side table is another's."""

    @property
    def next_obs(self):
        return self.following if self.lost else self.final

    @property
    def usable(self):
        return self.valid and (self.terminated or not self.lost)

    @property
    def ended(self):
        return self.terminated or self.truncated


@dataclass
class Naive:
    """What a ring of ``rows`` vector steps and ``finals`` final observations must hold."""

    rows: int
    num_envs: int
    finals: int
    dtype: torch.dtype = torch.float32
    has_final_obs: bool = True
    history: list[list[Row]] = field(default_factory=list)
    holders: list[tuple[int, int]] = field(default_factory=list)
    evicted: int = 0

    def __post_init__(self):
        self.steps_in_episode = [0] * self.num_envs

    @staticmethod
    def like(ring):
        return Naive(
            rows=ring.num_rows,
            num_envs=ring.num_envs,
            finals=ring.plan.final_rows,
            dtype=OBS_DTYPES[ring.settings.obs_dtype],
            has_final_obs=ring.spec.has_final_obs,
        )

    def stored(self, groups, env):
        rounded = {group: value[env].to(self.dtype).float() for group, value in groups.items()}
        return {group: value.numpy().copy() for group, value in rounded.items()}

    def add(self, obs, action, step):
        steps = self.steps_in_episode
        new = []
        for env in range(self.num_envs):
            terminated, truncated = bool(step["terminated"][env]), bool(step["truncated"][env])
            valid = bool(step["valid"][env])
            ended = valid and (terminated or truncated)
            source = "final_observation" if ended and self.has_final_obs else "observation"
            row = Row(
                obs=self.stored(obs, env),
                action=action[env].numpy().copy(),
                reward=float(step["reward"][env]),
                terminated=terminated,
                truncated=truncated,
                valid=valid,
                step_in_episode=steps[env],
                final=self.stored(step[source], env),
                following=self.stored(step["observation"], env),
            )
            steps[env] = 0 if terminated or truncated else steps[env] + valid
            new.append(row)
            # Not where the ring wraps: what follows its last row is stored in a row of its own, so
            # a reset in between leaves what the step had returned.
            if len(self.history) % self.rows:
                self.history[-1][env].following = row.obs
        self.history.append(new)
        for env, row in enumerate(new):
            if row.valid and row.ended:
                self._hold(env)

    def close_open_rows(self):
        self.steps_in_episode[:] = [0] * self.num_envs
        if not self.history:
            return
        for env, row in enumerate(self.history[-1]):
            if row.valid and not row.ended:
                row.truncated = True
                self._hold(env)

    def _hold(self, env):
        self.holders.append((len(self.history) - 1, env))
        if len(self.holders) > self.finals:
            step, env = self.holders.pop(0)
            if step >= len(self.history) - self.rows:
                row = self.history[step][env]
                row.lost = True
                self.evicted += not row.terminated

    def sampleable(self):
        """Indices of the vector steps whose observations are all still stored."""
        end = len(self.history)
        oldest = max(0, end - self.rows)
        if oldest and end % self.rows:
            oldest += 1
        return range(oldest, end)

    def starts(self, n_step):
        """(vector step, environment) of every window that does not reach the write head."""
        steps = self.sampleable()
        count = max(0, len(steps) - n_step + 1)
        return [(step, env) for step in steps[:count] for env in range(self.num_envs)]

    def window(self, step, env, n_step, gamma, exact_discount):
        """The n-step transition from there; None where a row of it is unusable."""
        reward, steps = 0.0, 0
        for row in (self.history[step + m][env] for m in range(n_step)):
            if not row.usable:
                return None
            reward += gamma**steps * row.reward
            steps += 1
            if row.ended:
                break
        first = self.history[step][env]
        return {
            "observation": first.obs,
            "action": first.action,
            "next_observation": row.next_obs,
            "reward": reward,
            "terminated": row.terminated,
            "truncated": row.truncated,
            "discount": gamma ** (steps if exact_discount else n_step),
        }


@dataclass
class Stream:
    """Random steps in the shape of ``Env.step``, from a seed."""

    seed: int
    spec: EnvSpec
    end: float = 0.2
    invalid: float = 0.0
    bridge: bool = False

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.previous_ended = np.zeros(self.spec.num_envs, dtype=bool)
        self.reset()

    def _tensor(self, *shape):
        return torch.from_numpy(self.rng.standard_normal(shape).astype(np.float32))

    def _groups(self):
        return {g: self._tensor(self.spec.num_envs, d) for g, d in self.spec.observation.items()}

    def reset(self):
        self.obs = reset_result(self._groups(), self.spec.num_envs)["observation"]
        self.previous_ended[:] = False

    def _flag(self, probability):
        return self.rng.random(self.spec.num_envs) < probability

    def step(self):
        """(obs, action, step) for ``add``."""
        envs = self.spec.num_envs
        terminated, truncated = self._flag(self.end), self._flag(self.end)
        valid = ~self._flag(self.invalid)
        if self.bridge:
            valid &= ~self.previous_ended
        ended = (terminated | truncated) & valid
        self.previous_ended = ended
        final = self._groups()
        for value in final.values():
            value[torch.from_numpy(~ended)] = torch.nan
        if isinstance(self.spec.action, Discrete):
            action = torch.from_numpy(self.rng.integers(self.spec.action.n, size=envs))
        else:
            action = self._tensor(envs, self.spec.action.size)
        step = step_result(
            observation=self._groups(),
            reward=self._tensor(envs),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(valid),
            final_observation=final,
        )
        obs, self.obs = self.obs, step["observation"]
        return obs, action, step


def feed(stream, steps, *sinks, close=0.0):
    """Give the same steps to rings and models; with probability ``close``, resets in between."""
    for _ in range(steps):
        if close and stream.rng.random() < close:
            stream.reset()
            for sink in sinks:
                sink.close_open_rows()
        arguments = stream.step()
        for sink in sinks:
            sink.add(*arguments)


def assert_same_windows(ring, naive, n_step, *, gamma=0.9, exact_discount=True):
    """Compare every window that can be sampled; returns how many are complete."""
    steps = naive.sampleable()
    oldest, rows = ring._usable()
    assert rows == len(steps)
    assert rows == 0 or oldest == steps[0] % ring.num_rows
    starts = naive.starts(n_step)
    if not starts:
        return 0
    t = torch.tensor([step % ring.num_rows for step, _ in starts])
    env = torch.tensor([env for _, env in starts])
    window = ring._follow(t * ring.num_envs + env, n_step, gamma)
    expected = [naive.window(*start, n_step, gamma, exact_discount) for start in starts]
    assert window.complete.tolist() == [item is not None for item in expected]
    keep = window.complete
    if not bool(keep.any()):
        return 0
    window = type(window)(*(part[keep] for part in window))
    power = window.steps.float() if exact_discount else torch.full_like(window.reward, n_step)
    drawn = ring._gather(ring._selection(window, gamma**power))
    batch = drawn.to_tensordict(ring.num_envs)
    wanted = [item for item in expected if item is not None]
    assert torch.equal(batch["index"], torch.stack((t, env), dim=-1)[keep])
    assert_same_batch(batch, wanted)
    return len(wanted)


def assert_same_batch(batch, wanted: list[dict[str, Any]]):
    def column(key):
        return np.stack([item[key] for item in wanted])

    for group in wanted[0]["observation"]:
        for mine, key in ((batch, "observation"), (batch["next"], "next_observation")):
            got = mine["observation", group]
            assert got.dtype == torch.float32
            np.testing.assert_array_equal(got, np.stack([item[key][group] for item in wanted]))
    np.testing.assert_array_equal(batch["action"], column("action"))
    then = batch["next"]
    for flag in ("terminated", "truncated"):
        np.testing.assert_array_equal(then[flag], column(flag)[:, None])
    np.testing.assert_array_equal(
        then["done"], (column("terminated") | column("truncated"))[:, None]
    )
    np.testing.assert_allclose(then["reward"], column("reward")[:, None], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(then["discount"], column("discount")[:, None], rtol=1e-6)


def assert_finite(batch):
    for key, value in batch.items(include_nested=True, leaves_only=True):
        assert bool(torch.isfinite(value).all()), key
