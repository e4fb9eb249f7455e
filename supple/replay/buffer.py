"""The replay ring: time-major, on the device, each observation stored once.

Shapes: ``T`` ring rows (vector steps), ``N`` environments, ``F`` side-table rows, ``B`` samples.
``add`` and ``sample`` never copy to the host and never branch on tensor values.

Layout of a group's storage, one tensor of ``(T + 1) * N + F + 1`` rows: first the ring, viewed as
(T + 1, N, D), where row ``t + 1`` is the next observation of row ``t``; then the side table of the
observations before a reset; last one row that takes writes nobody reads. So the next observation of
any row is a single gather.

When the ring is full and the write head is at ``t``, row ``t``'s observation has been overwritten
by the next observation of the newest row; ``T - 1`` rows can be sampled then (``T`` where the head
is at 0).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import Box, EnvSpec
from supple.errors import InputError
from supple.replay.nstep import Flags, Window, discounted_sum, follow
from supple.replay.plan import OBS_DTYPES, ReplayPlan, ReplaySettings, plan_ring
from supple.replay.sampling import draw, first_usable


class Replay:
    """Ring of transitions.

    Args:
        spec: the environment's facts.
        settings: size and storage.
        extra_spec: further float32 columns, name to shape per environment.
        device: where it lives; the environment's by default.

    Raises:
        InputError: it does not fit the device's memory, or is too small; nothing was allocated.
    """

    def __init__(
        self,
        spec: EnvSpec,
        settings: ReplaySettings | None = None,
        *,
        extra_spec: Mapping[str, tuple[int, ...]] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.spec = spec
        self.settings = settings or ReplaySettings()
        self.device = torch.device(device or spec.device)
        extra_spec = extra_spec or {}
        self.plan: ReplayPlan = plan_ring(spec, self.settings, extra_spec)
        self.plan.check(self.device)
        self.num_rows, self.num_envs = self.plan.num_rows, self.plan.num_envs
        rows, envs, device = self.num_rows, self.num_envs, self.device

        self._final_start = (rows + 1) * envs
        stored = self._final_start + self.plan.final_rows + 1
        dtype = OBS_DTYPES[self.settings.obs_dtype]
        self.storage = {
            group: torch.zeros(stored, width, dtype=dtype, device=device)
            for group, width in spec.observation.items()
        }
        self.columns: dict[str, Tensor] = {
            "action": torch.zeros(rows, envs, spec.action.size, device=device)
            if isinstance(spec.action, Box)
            else torch.zeros(rows, envs, dtype=torch.int64, device=device),
            "reward": torch.zeros(rows, envs, device=device),
            "terminated": torch.zeros(rows, envs, dtype=torch.bool, device=device),
            "truncated": torch.zeros(rows, envs, dtype=torch.bool, device=device),
            "valid": torch.zeros(rows, envs, dtype=torch.bool, device=device),
            "step_in_episode": torch.zeros(rows, envs, dtype=torch.int32, device=device),
            # Side-table row of the final observation, -1 where the row did not end.
            "final_slot": torch.full((rows, envs), -1, dtype=torch.int32, device=device),
        }
        self._extra = tuple(extra_spec)
        for name, shape in extra_spec.items():
            self.columns[name] = torch.zeros(rows, envs, *shape, device=device)

        self.vector_steps = 0
        self._env_index = torch.arange(envs, device=device)
        self._step_in_episode = torch.zeros(envs, dtype=torch.int32, device=device)
        # Flat ring row that owns each side-table row; the last entry belongs to the trash row.
        self._final_owner = torch.full((self.plan.final_rows + 1,), -1, device=device)
        self._final_head = torch.zeros((), dtype=torch.int64, device=device)
        self._final_evicted = torch.zeros((), dtype=torch.int64, device=device)
        self._invalid_sampled = torch.zeros((), dtype=torch.int64, device=device)
        self._warned_evicted = False

    # --- writing ----------------------------------------------------------------------------

    @torch.no_grad()
    def add(
        self,
        obs: TensorDict,
        action: Tensor,
        step: TensorDict,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Append one vector step.

        Args:
            obs: observation groups the action was chosen from, each (N, D): those of the previous
                step, or of a reset announced with ``close_open_rows``.
            action: as the agent chose it, (N, A) or (N,) int64.
            step: what ``Env.step`` returned (``envs/base.py``).
            extras: values of the ``extra_spec`` columns.

        Raises:
            InputError: a shape differs from the spec's, or a column is missing.
        """
        extras = extras or {}
        self._check(obs, action, step, extras)
        t = self.vector_steps % self.num_rows
        for group in self.spec.observation:
            ring = self.ring(group)
            ring[t] = obs[group]
            ring[t + 1] = step["observation"][group]
        valid = step["valid"]
        ended = (step["terminated"] | step["truncated"]) & valid
        columns = self.columns
        columns["action"][t] = action
        for name in ("reward", "terminated", "truncated", "valid"):
            columns[name][t] = step[name]
        columns["step_in_episode"][t] = self._step_in_episode
        columns["final_slot"][t] = -1
        for name in self._extra:
            columns[name][t] = extras[name]
        self._step_in_episode = torch.where(ended, 0, self._step_in_episode + valid.int())
        # Without final observations the one after the reset stands in; agents refuse or accept it.
        final = step["final_observation"] if self.spec.has_final_obs else step["observation"]
        self._keep_final(t, ended, final)
        self.vector_steps += 1

    @torch.no_grad()
    def close_open_rows(self) -> None:
        """Every environment was reset without a step: cut the episodes that were running.

        The newest row of each becomes truncated, with the newest observation as its final one. Such
        rows stay valid: the transition itself is true.
        """
        if self.vector_steps == 0:
            return
        t = (self.vector_steps - 1) % self.num_rows
        columns = self.columns
        ended = columns["terminated"][t] | columns["truncated"][t]
        cut = columns["valid"][t] & ~ended
        columns["truncated"][t] |= cut
        self._keep_final(t, cut, {g: self.ring(g)[t + 1].clone() for g in self.spec.observation})
        self._step_in_episode = torch.zeros_like(self._step_in_episode)

    def adopt_prefilled(self, rows: int, owners: Tensor) -> None:
        """Account for rows written by ``prefill``; ``owners`` are the flat rows of its finals."""
        self.vector_steps = rows
        self._final_owner[: len(owners)] = owners
        self._final_head = torch.tensor(len(owners) % self.plan.final_rows, device=self.device)

    def _keep_final(self, t: int, ended: Tensor, final: Mapping[str, Tensor] | TensorDict) -> None:
        """Put the final observations of the rows that ended into the side table."""
        table = self.plan.final_rows
        rank = ended.cumsum(0)
        slot = torch.where(ended, (self._final_head + rank - 1) % table, table)
        own = t * self.num_envs + self._env_index

        # A reused slot takes the final observation from its former row, which is invalid then.
        former = self._final_owner[slot]
        final_slot = self.columns["final_slot"].view(-1)
        loses = ended & (former >= 0) & (final_slot[former.clamp_min(0)] == slot)
        valid = self.columns["valid"].view(-1)
        touched = torch.where(loses, former, own)
        valid[touched] = valid[touched] & ~loses
        self._final_evicted += loses.sum()

        self._final_owner[slot] = torch.where(ended, own, -1)
        current = self.columns["final_slot"][t]
        self.columns["final_slot"][t] = torch.where(ended, slot.int(), current)
        for group, storage in self.storage.items():
            storage[self._final_start + slot] = final[group].to(storage.dtype)
        self._final_head = (self._final_head + rank[-1]) % table

    def _check(
        self, obs: TensorDict, action: Tensor, step: TensorDict, extras: Mapping[str, Tensor]
    ) -> None:
        if set(extras) != set(self._extra):
            raise InputError(
                f"replay columns: expected {sorted(self._extra)}, got {sorted(extras)};"
                " Agent.act must fill what its extra_spec declares"
            )
        envs = self.num_envs
        given = [("action", action, tuple(self.columns["action"].shape[1:]))]
        given += [(name, step[name], (envs,)) for name in ("reward", *Flags._fields)]
        given += [(name, extras[name], tuple(self.columns[name].shape[1:])) for name in self._extra]
        for group, width in self.spec.observation.items():
            given.append((f"observation group {group}", obs[group], (envs, width)))
            given.append(
                (f"next observation group {group}", step["observation"][group], (envs, width))
            )
            if self.spec.has_final_obs:
                final = step["final_observation"][group]
                given.append((f"final observation group {group}", final, (envs, width)))
        for name, value, expected in given:
            if value.shape != expected:
                raise InputError(
                    f"{name}: expected shape {expected}, got {tuple(value.shape)}; pass what"
                    " Env.step and Agent.act returned"
                )

    # --- reading ----------------------------------------------------------------------------

    def ring(self, group: str) -> Tensor:
        """View of a group's observations in time, (T + 1, N, D)."""
        rows = self.num_rows + 1
        return self.storage[group][: self._final_start].view(rows, self.num_envs, -1)

    def final_table(self, group: str) -> Tensor:
        """View of a group's final observations, (F, D)."""
        return self.storage[group][self._final_start : -1]

    def _usable(self) -> tuple[int, int]:
        """Oldest ring row that can be sampled, and how many rows there are."""
        if self.vector_steps <= self.num_rows:
            return 0, self.vector_steps
        head = self.vector_steps % self.num_rows
        if head == 0:
            return 0, self.num_rows
        return (head + 1) % self.num_rows, self.num_rows - 1

    @property
    def size(self) -> int:
        """Transitions that can be sampled, invalid ones included."""
        return self._usable()[1] * self.num_envs

    def can_sample(self, n_step: int = 1) -> bool:
        """Whether at least one window of ``n_step`` rows is stored."""
        return self._usable()[1] >= n_step

    @torch.no_grad()
    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator,
        n_step: int = 1,
        gamma: float = 0.99,
        exact_discount: bool = True,
    ) -> TensorDict:
        """Draw transitions uniformly, with n-step returns computed now.

        Args:
            batch_size: B.
            generator: source of randomness, on the ring's device.
            n_step: rewards summed; windows stop at the end of their episode, and none starts
                within n_step - 1 rows of the write head.
            gamma: one-step discount.
            exact_discount: bootstrap with gamma^(steps summed); False always uses gamma^n_step.

        Returns:
            TensorDict [B] in torchrl's spelling: ``observation``/group, ``action``, ``index``
            (B, 2: row, environment) and under ``next``: ``observation``/group and, each (B, 1),
            ``reward`` (raw sum), ``terminated``, ``truncated``, ``done``, ``discount`` (unmasked).
            Observation and next observation of a group are the halves of one (2B, D) tensor.

        Raises:
            InputError: fewer than ``n_step`` rows are stored.
        """
        oldest, rows = self._usable()
        if rows < n_step:
            raise InputError(
                f"cannot sample {n_step}-step windows from {rows} stored rows: add more steps first"
            )
        t, env = draw(
            batch_size,
            oldest=oldest,
            rows=rows - (n_step - 1),
            num_rows=self.num_rows,
            num_envs=self.num_envs,
            generator=generator,
        )
        window = self._follow(t, env, n_step)
        slot, candidate, failed = first_usable(window.complete)
        self._invalid_sampled += failed
        chosen = Window(*(part[slot, candidate] for part in window))
        return self._gather(chosen, gamma=gamma, exact_discount=exact_discount)

    def _follow(self, t: Tensor, env: Tensor, n_step: int) -> Window:
        flags = Flags(*(self.columns[name].view(-1) for name in Flags._fields))
        return follow(t, env, flags, n_step=n_step, num_rows=self.num_rows, num_envs=self.num_envs)

    def _gather(self, window: Window, *, gamma: float, exact_discount: bool) -> TensorDict:
        """The transitions that windows, [B, n], stand for."""
        start, last = window.rows[:, 0], window.last
        columns = {name: column.flatten(0, 1) for name, column in self.columns.items()}
        final_slot = columns["final_slot"][last].long()
        after = torch.where(final_slot >= 0, self._final_start + final_slot, last + self.num_envs)
        both = torch.cat((start, after))
        batch = [len(start)]
        now, then = {}, {}
        for group, storage in self.storage.items():
            now[group], then[group] = storage.index_select(0, both).float().chunk(2)
        terminated, truncated = columns["terminated"][last], columns["truncated"][last]
        reward = discounted_sum(columns["reward"], window, gamma)
        n_step = window.rows.shape[-1]
        discount = (
            gamma ** window.steps.to(reward.dtype)
            if exact_discount
            else torch.full_like(reward, gamma**n_step)
        )
        index = torch.stack((start // self.num_envs, start % self.num_envs), dim=-1)
        return TensorDict(
            {
                "observation": TensorDict(now, batch_size=batch),
                "action": columns["action"][start],
                "index": index,
                "next": TensorDict(
                    {
                        "observation": TensorDict(then, batch_size=batch),
                        "reward": reward.unsqueeze(-1),
                        "terminated": terminated.unsqueeze(-1),
                        "truncated": truncated.unsqueeze(-1),
                        "done": (terminated | truncated).unsqueeze(-1),
                        "discount": discount.unsqueeze(-1),
                    },
                    batch_size=batch,
                ),
            },
            batch_size=batch,
        )

    def window(self) -> TensorDict:
        """The whole ring in time order, as views, for on-policy agents (``T`` = horizon).

        Returns:
            ``observation``/group (T + 1, N, D) and every other column (T, N, ...).

        Raises:
            InputError: the ring is not exactly full.
        """
        if self.vector_steps == 0 or self.vector_steps % self.num_rows:
            raise InputError(
                f"the window is read when its {self.num_rows} rows are full, now"
                f" {self.vector_steps % self.num_rows} are: update once per horizon"
            )
        groups = {group: self.ring(group) for group in self.spec.observation}
        return TensorDict(
            {"observation": TensorDict(groups, batch_size=[]), **self.columns}, batch_size=[]
        )

    def steps(self) -> Iterator[TensorDict]:
        """The stored vector steps, oldest first: reward and the three flags, (N,) each."""
        oldest, rows = self._usable()
        for offset in range(rows):
            t = (oldest + offset) % self.num_rows
            names = ("reward", "terminated", "truncated", "valid")
            yield TensorDict(
                {name: self.columns[name][t] for name in names}, batch_size=[self.num_envs]
            )

    def metrics(self) -> dict[str, Tensor]:
        """0-d numbers on the device."""
        return {
            "replay/size": torch.tensor(self.size, device=self.device),
            "replay/final_evicted": self._final_evicted.clone(),
            "replay/invalid_sampled": self._invalid_sampled.clone(),
        }

    def check(self) -> None:
        """Judge the counters; copies to the host.

        Warns:
            UserWarning: once, when rows lost their final observation.

        Raises:
            InputError: a whole batch had no valid row to sample.
        """
        if int(self._invalid_sampled):
            raise InputError(
                "the replay ring holds almost no valid rows: the simulator marked nearly every"
                " step as not valid; check it with supple doctor --env"
            )
        if not self._warned_evicted and int(self._final_evicted):
            self._warned_evicted = True
            warnings.warn(
                f"{int(self._final_evicted)} rows lost their final observation and are no longer"
                " sampled: episodes are short, raise --replay.final-fraction",
                stacklevel=2,
            )

    # --- small state; the rows themselves are saved by replay/segments.py -----------------------

    def state_dict(self) -> dict[str, Any]:
        """Cursor, validity, side-table bookkeeping and the newest observation."""
        t = (self.vector_steps - 1) % self.num_rows
        newest = {group: self.ring(group)[t + 1].clone() for group in self.spec.observation}
        return {
            "vector_steps": self.vector_steps,
            "valid": self.columns["valid"],
            "step_in_episode": self._step_in_episode,
            "final_owner": self._final_owner,
            "final_head": self._final_head,
            "final_evicted": self._final_evicted,
            "invalid_sampled": self._invalid_sampled,
            "newest_observation": newest if self.vector_steps else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value; load the rows afterwards.

        Raises:
            InputError: the state belongs to a ring of another size.
        """
        for name, own in (("valid", self.columns["valid"]), ("final_owner", self._final_owner)):
            if state[name].shape != own.shape:
                raise InputError(
                    f"the checkpoint's replay ring has {name} of shape {tuple(state[name].shape)},"
                    f" this one {tuple(own.shape)}: keep --replay.capacity,"
                    " --replay.final-fraction and --env.num-envs of the run"
                )
        self.vector_steps = state["vector_steps"]
        self.columns["valid"].copy_(state["valid"])
        self._final_owner.copy_(state["final_owner"])
        self._step_in_episode = state["step_in_episode"].to(self.device, copy=True)
        self._final_head = state["final_head"].to(self.device, copy=True)
        self._final_evicted = state["final_evicted"].to(self.device, copy=True)
        self._invalid_sampled = state["invalid_sampled"].to(self.device, copy=True)
        for group, value in state["newest_observation"].items():
            self.ring(group)[(self.vector_steps - 1) % self.num_rows + 1] = value.to(self.device)
