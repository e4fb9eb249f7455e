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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from tensordict import TensorDict
from torch import Tensor

from supple.envs.base import FLAGS, STEP_FIELDS, Box, EnvSpec, Groups, Step
from supple.errors import InputError
from supple.region import Compute, Region, T
from supple.replay import records
from supple.replay.nstep import Window, follow
from supple.replay.plan import OBS_DTYPES, ReplayPlan, ReplaySettings, plan_ring
from supple.replay.sampling import UNIFORM, AgeBias, choose, first_usable, uniform_shape


class Minibatch(NamedTuple):
    """Sampled transitions as plain tensors; ``Replay.sample`` gives them torchrl's names."""

    observation: dict[str, Tensor]
    """Each group (2B, D) float32: the first B rows current, the last B next."""
    action: Tensor
    reward: Tensor
    """Discounted sum over the window, raw, (B,)."""
    terminated: Tensor
    """(B,) bool, of the window's last step."""
    truncated: Tensor
    discount: Tensor
    """gamma^(steps summed), not yet masked by ``terminated``, (B,)."""
    start: Tensor
    """Flat ring row of the window's first step, row * N + environment, (B,)."""

    def to_tensordict(self, num_envs: int) -> TensorDict:
        """The same in torchrl's spelling, as ``Replay.sample`` describes."""
        now, then = {}, {}
        for group, both in self.observation.items():
            now[group], then[group] = both.chunk(2)
        flags = {
            "reward": self.reward,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "done": self.terminated | self.truncated,
            "discount": self.discount,
        }
        after = {name: value.unsqueeze(-1) for name, value in flags.items()}
        content = {
            "observation": now,
            "action": self.action,
            "index": torch.stack((self.start // num_envs, self.start % num_envs), dim=-1),
            "next": {"observation": then, **after},
        }
        return TensorDict(content, batch_size=[len(self.reward)])


class Selection(NamedTuple):
    """Which rows a minibatch takes, and what their records say."""

    both: Tensor
    """Storage rows of the observations and of the next ones, (2B,)."""
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    discount: Tensor


class Replay:
    """Ring of transitions.

    Args:
        spec: the environment's facts.
        settings: size and storage.
        extra_spec: further float32 columns, name to shape per environment.
        device: where it lives; the environment's by default.
        compute: whether adding and sampling are compiled; eager by default.

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
        compute: Compute | None = None,
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
        cells = rows * envs
        self._records = records.empty(cells, device)
        # Columns a record has no word for, flat over time and environments.
        self._flat: dict[str, Tensor] = {
            "action": torch.zeros(cells, spec.action.size, device=device)
            if isinstance(spec.action, Box)
            else torch.zeros(cells, dtype=torch.int64, device=device),
        }
        self._extra = tuple(extra_spec)
        for name, shape in extra_spec.items():
            self._flat[name] = torch.zeros(cells, *shape, device=device)
        self.columns: dict[str, Tensor] = {
            name: flat.unflatten(0, (rows, envs))
            for name, flat in (self._flat | records.columns(self._records)).items()
        }

        # Shapes of what ``add`` writes, in the order in which ``_write`` takes it.
        self._expected: dict[str, tuple[int, ...]] = {}
        for which in ("", "next ", "final "):
            for group, width in spec.observation.items():
                self._expected[f"{which}observation group {group}"] = (envs, width)
        for name in self._flat:
            self._expected[name] = tuple(self.columns[name].shape[1:])
        self._expected |= dict.fromkeys(STEP_FIELDS, (envs,))

        self.vector_steps = 0
        self._written = False
        # That, and ``_usable``, on the device: adding and sampling need nothing from the host.
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        self._oldest = torch.zeros((), dtype=torch.int64, device=device)
        self._stored = torch.zeros((), dtype=torch.int64, device=device)
        self._env_index = torch.arange(envs, device=device)
        self._step_in_episode = torch.zeros(envs, dtype=torch.int32, device=device)
        # Flat ring row that owns each side-table row; the last entry belongs to the trash row.
        self._final_owner = torch.full((self.plan.final_rows + 1,), -1, device=device)
        self._final_head = torch.zeros((), dtype=torch.int64, device=device)
        self._final_evicted = torch.zeros((), dtype=torch.int64, device=device)
        self._invalid_sampled = torch.zeros((), dtype=torch.int64, device=device)
        self._warned_evicted = False

        self._compute = compute or Compute()
        self._write_step = self._region(self._write)
        self._select_steps: dict[tuple[Any, ...], Region[Selection]] = {}

    def _region(self, function: Callable[..., T]) -> Region[T]:
        return Region(function, state=self._counters, compute=self._compute)

    def _counters(self) -> list[Tensor]:
        """What changes when a step is written or a batch is drawn, except the rows themselves.

        With these restored, writing the same step again writes the same rows.
        """
        return [
            self._steps,
            self._oldest,
            self._stored,
            self._step_in_episode,
            self._final_owner,
            self._final_head,
            self._final_evicted,
            self._invalid_sampled,
        ]

    # --- writing ----------------------------------------------------------------------------

    @torch.no_grad()
    def add(
        self,
        obs: Groups,
        action: Tensor,
        step: Step,
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
            InputError: a shape differs from the spec's, a flag is no bool, or something is missing.
        """
        extras = extras or {}
        if extras.keys() != set(self._extra):
            raise InputError(
                f"replay columns: expected {sorted(self._extra)}, got {sorted(extras)};"
                " Agent.act must fill what its extra_spec declares"
            )
        groups = self.spec.observation
        # Without final observations the one after the reset stands in; agents refuse or accept it.
        last = "final_observation" if self.spec.has_final_obs else "observation"
        try:
            sources = (obs, step["observation"], step[last])
            values = [
                *(source[group] for source in sources for group in groups),
                action,
                *(extras[name] for name in self._extra),
                *(step[name] for name in STEP_FIELDS),
            ]
        except KeyError as error:
            raise InputError(
                f"a transition is incomplete ({error.args[0]}): expected the observation groups"
                f" {', '.join(groups)}, and of a step observation, {last}, {', '.join(STEP_FIELDS)}"
            ) from error
        if [value.shape for value in values] != list(self._expected.values()):
            self._refuse(values)
        # A byte's flags would be packed into nothing, and its ends be lost.
        if any(value.dtype != torch.bool for value in values[-len(FLAGS) :]):
            got = ", ".join(f"{name} {step[name].dtype}" for name in FLAGS)
            raise InputError(
                f"flags of a step: expected torch.bool, got {got}; convert them with .bool()"
            )
        self._write_step(*values)
        self._written = True
        self.vector_steps += 1

    def _write(self, *values: Tensor) -> dict[str, Tensor]:
        groups, own = len(self.storage), len(self._flat)
        cells = self._steps % self.num_rows * self.num_envs + self._env_index
        for number, storage in enumerate(self.storage.values()):
            storage.index_copy_(0, cells, values[number].to(storage.dtype))
            after = values[groups + number]
            storage.index_copy_(0, cells + self.num_envs, after.to(storage.dtype))
        final = dict(zip(self.storage, values[2 * groups : 3 * groups], strict=True))
        rest = values[3 * groups :]
        step = dict(zip(STEP_FIELDS, rest[own:], strict=True))
        for flat, value in zip(self._flat.values(), rest[:own], strict=True):
            flat.index_copy_(0, cells, value.to(flat.dtype))
        record = records.pack(
            **step,
            step_in_episode=self._step_in_episode,
            final_slot=torch.full_like(self._step_in_episode, -1),
        )
        self._records.index_copy_(0, cells, record)
        ended = step["terminated"] | step["truncated"]
        running = self._step_in_episode + step["valid"].int()
        self._step_in_episode.copy_(torch.where(ended, 0, running))
        self._keep_final(cells, ended & step["valid"], final)
        self._count_to(self._steps + 1)
        return {}

    def _count_to(self, steps: Tensor) -> None:
        """Set the vector steps written so far and, like ``_usable``, what can be sampled then."""
        head = steps % self.num_rows
        wrapped = (steps > self.num_rows) & (head > 0)
        self._steps.copy_(steps)
        self._oldest.copy_(torch.where(wrapped, (head + 1) % self.num_rows, 0))
        self._stored.copy_(steps.clamp(max=self.num_rows) - wrapped.long())

    @torch.no_grad()
    def close_open_rows(self) -> None:
        """Every environment was reset without a step: cut the episodes that were running.

        The newest row of each becomes truncated, with the newest observation as its final one. Such
        rows stay valid: the transition itself is true.
        """
        self._step_in_episode.zero_()
        if self.vector_steps == 0:
            return
        t = (self.vector_steps - 1) % self.num_rows
        columns = self.columns
        ended = columns["terminated"][t] | columns["truncated"][t]
        cut = columns["valid"][t] & ~ended
        columns["truncated"][t] |= cut
        newest = {group: self.ring(group)[t + 1].clone() for group in self.spec.observation}
        cells = t * self.num_envs + self._env_index
        self._keep_final(cells, cut, newest)

    def adopt_prefilled(self, rows: int, owners: Tensor) -> None:
        """Account for rows written by ``prefill``; ``owners`` are the flat rows of its finals."""
        self.vector_steps = rows
        self._count_to(torch.full_like(self._steps, rows))
        self._final_owner[: len(owners)] = owners
        self._final_head.fill_(len(owners) % self.plan.final_rows)

    def _keep_final(self, cells: Tensor, ended: Tensor, final: Mapping[str, Tensor]) -> None:
        """Put the final observations of the rows that ended into the side table.

        Args:
            cells: flat ring rows of one vector step, (N,).
            ended: which of them ended, (N,) bool.
            final: their final observations, groups of (N, D).
        """
        table = self.plan.final_rows
        rank = ended.cumsum(0)
        slot = torch.where(ended, (self._final_head + rank - 1) % table, table)

        # A reused slot takes the final observation from its former row. Nothing is bootstrapped
        # where that terminated: what follows it in the ring stands in. A truncated one is invalid.
        former = self._final_owner[slot]
        loses = (
            ended & (former >= 0) & (self._word(former.clamp_min(0), records.FINAL_SLOT) == slot)
        )
        touched = torch.where(loses, former, cells)
        flags = self._word(touched, records.FLAGS)
        terminated = (flags & records.TERMINATED) != 0
        lost = loses & ~terminated
        self._set_word(touched, records.FLAGS, torch.where(lost, flags & ~records.VALID, flags))
        kept = self._word(touched, records.FINAL_SLOT)
        self._set_word(touched, records.FINAL_SLOT, torch.where(loses & terminated, -1, kept))
        self._final_evicted.add_(lost.sum())

        self._final_owner.index_copy_(0, slot, torch.where(ended, cells, -1))
        kept = self._word(cells, records.FINAL_SLOT)
        self._set_word(cells, records.FINAL_SLOT, torch.where(ended, slot.int(), kept))
        for group, storage in self.storage.items():
            storage.index_copy_(0, self._final_start + slot, final[group].to(storage.dtype))
        self._final_head.copy_((self._final_head + rank[-1]) % table)

    def forget_lost_finals(self) -> None:
        """After loading: rows were saved as they were before others took over their slots."""
        slot = self._records[:, records.FINAL_SLOT]
        cells = torch.arange(len(slot), device=self.device)
        elsewhere = (slot >= 0) & (self._final_owner[slot.long().clamp_min(0)] != cells)
        terminated = (self._records[:, records.FLAGS] & records.TERMINATED) != 0
        slot[elsewhere & terminated] = -1

    def _word(self, cells: Tensor, word: int) -> Tensor:
        return self._records[cells, torch.full_like(cells, word)]

    def _set_word(self, cells: Tensor, word: int, value: Tensor) -> None:
        # Not through a column's view: compiled, that would copy the whole ring at every step.
        self._records.index_put_((cells, torch.full_like(cells, word)), value)

    def _refuse(self, values: list[Tensor]) -> NoReturn:
        for (name, expected), value in zip(self._expected.items(), values, strict=True):
            if value.shape != expected:
                raise InputError(
                    f"{name}: expected shape {expected}, got {tuple(value.shape)}; pass what"
                    " Env.step and Agent.act returned"
                )
        raise AssertionError("called only where a shape differs")

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
    def draw(
        self,
        batch_size: int,
        *,
        generator: torch.Generator,
        n_step: int = 1,
        gamma: float = 0.99,
        exact_discount: bool = True,
        age_bias: AgeBias = UNIFORM,
    ) -> Minibatch:
        """Draw transitions, with n-step returns computed now.

        Args:
            batch_size: B.
            generator: source of randomness, on the ring's device.
            n_step: rewards summed, >= 1; windows stop at the end of their episode, and none starts
                within n_step - 1 rows of the write head.
            gamma: one-step discount, in [0, 1].
            exact_discount: bootstrap with gamma^(steps summed); False always uses gamma^n_step.
            age_bias: how much less often old rows are drawn; uniform by default.

        Raises:
            InputError: ``n_step``, ``gamma`` or ``age_bias`` out of range, or fewer than ``n_step``
                rows stored.
        """
        if n_step < 1 or not 0 <= gamma <= 1:
            raise InputError(
                f"returns need n_step >= 1 and gamma in [0, 1], got n_step={n_step}, gamma={gamma}"
            )
        if age_bias.decay < 0 or not 0 < age_bias.floor <= 1:
            raise InputError(f"expected decay >= 0 and a floor in (0, 1], got {age_bias}")
        if not self.can_sample(n_step):
            raise InputError(
                f"cannot sample {n_step}-step windows from {self._usable()[1]} stored rows:"
                " add more steps first"
            )
        options = (n_step, gamma, exact_discount, age_bias)
        key = (batch_size, *options)
        if key not in self._select_steps:
            self._select_steps[key] = self._region(partial(self._select, *key))
        shape = uniform_shape(batch_size, age_bias)
        uniform = torch.rand(shape, dtype=torch.float64, generator=generator, device=self.device)
        return self._gather(self._select_steps[key](uniform))

    def sample(self, batch_size: int, *, generator: torch.Generator, **options: Any) -> TensorDict:
        """``draw`` in torchrl's spelling.

        Returns:
            TensorDict [B]: ``observation``/group, ``action``, ``index`` (B, 2: row, environment)
            and under ``next``: ``observation``/group and, each (B, 1), ``reward`` (raw sum),
            ``terminated``, ``truncated``, ``done``, ``discount`` (unmasked). Observation and next
            observation of a group are the halves of one (2B, D) tensor.
        """
        return self.draw(batch_size, generator=generator, **options).to_tensordict(self.num_envs)

    def _select(
        self,
        batch_size: int,
        n_step: int,
        gamma: float,
        exact_discount: bool,
        age_bias: AgeBias,
        uniform: Tensor,
    ) -> Selection:
        candidates = choose(
            uniform,
            oldest=self._oldest,
            rows=self._stored - (n_step - 1),
            num_rows=self.num_rows,
            num_envs=self.num_envs,
            age_bias=age_bias,
        )
        windows = self._follow(candidates, n_step, gamma)
        pick, failed = first_usable(windows.complete, batch_size)
        self._invalid_sampled.add_(failed)
        chosen = Window(*(part.index_select(0, pick) for part in windows))
        power = chosen.steps.float() if exact_discount else torch.full_like(chosen.reward, n_step)
        return self._selection(chosen, gamma**power)

    def _follow(self, start: Tensor, n_step: int, gamma: float) -> Window:
        return follow(start, self._records, n_step=n_step, num_envs=self.num_envs, gamma=gamma)

    def _after(self, slot: Tensor, cells: Tensor) -> Tensor:
        """Where the observation after a step is stored: where it ended, in the side table."""
        return torch.where(slot >= 0, self._final_start + slot, cells + self.num_envs)

    def _selection(self, window: Window, discount: Tensor) -> Selection:
        """What windows, (B,), stand for."""
        after = self._after(window.final_slot.long(), window.last)
        return Selection(
            both=torch.cat((window.start, after)),
            reward=window.reward,
            terminated=(window.flags & records.TERMINATED) != 0,
            truncated=(window.flags & records.TRUNCATED) != 0,
            discount=discount,
        )

    def _gather(self, selection: Selection) -> Minibatch:
        # Outside the compiled region: plain row copies are faster than what a compiler makes here.
        both, reward, terminated, truncated, discount = selection
        start, _ = both.chunk(2)
        return Minibatch(
            observation={
                group: storage.index_select(0, both).float()
                for group, storage in self.storage.items()
            },
            action=self._flat["action"].index_select(0, start),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            discount=discount,
            start=start,
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

    @torch.no_grad()
    def next_observations(self) -> dict[str, Tensor]:
        """What followed each row of ``window()``, before any reset: groups (T * N, D) float32."""
        slot = self._records[:, records.FINAL_SLOT].long()
        after = self._after(slot, torch.arange(len(slot), device=self.device))
        return {
            group: storage.index_select(0, after).float() for group, storage in self.storage.items()
        }

    def stored_rows(self, newest: float = 1.0) -> Tensor:
        """Ring rows (vector steps) of the newest share of what is stored, oldest first.

        After ``clear``, those of the rollout that was just forgotten, until they are written over;
        none where a resumed run found the ring empty.
        """
        forgotten = self.num_rows if self._written else 0
        oldest, rows = self._usable() if self.vector_steps else (0, forgotten)
        kept = min(rows, max(1, round(newest * rows)))
        return (oldest + torch.arange(rows - kept, rows, device=self.device)) % self.num_rows

    @torch.no_grad()
    def transitions(self, cells: Tensor) -> dict[str, Any]:
        """Single transitions as they were stored, without n-step returns; changes nothing.

        Args:
            cells: flat ring rows, row * N + environment, (B,).

        Returns:
            ``observation`` and ``next_observation`` (groups (B, D) float32), ``action``,
            ``reward``, ``terminated``, ``truncated`` and ``step`` in its episode, (B,) each.
        """
        columns = {name: column.flatten(0, 1)[cells] for name, column in self.columns.items()}
        after = self._after(columns["final_slot"].long(), cells)
        return {
            "observation": {g: rows[cells].float() for g, rows in self.storage.items()},
            "next_observation": {g: rows[after].float() for g, rows in self.storage.items()},
            **{name: columns[name] for name in ("action", "reward", "terminated", "truncated")},
            "step": columns["step_in_episode"].long(),
        }

    def clear(self) -> None:
        """Forget all rows: an on-policy agent has learned from them. Episodes go on."""
        self.vector_steps = 0
        self._count_to(torch.zeros_like(self._steps))
        self._final_owner.fill_(-1)

    def steps(self) -> Iterator[TensorDict]:
        """The stored vector steps, oldest first: reward and the three flags, (N,) each."""
        oldest, rows = self._usable()
        for offset in range(rows):
            t = (oldest + offset) % self.num_rows
            yield TensorDict(
                {name: self.columns[name][t] for name in STEP_FIELDS}, batch_size=[self.num_envs]
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
            UserWarning: once, when truncated rows lost their final observation.

        Raises:
            InputError: a whole batch had no valid row to sample.
        """
        if int(self._invalid_sampled):
            lost = int(self._final_evicted)
            short = (
                f"{lost} truncated rows lost their final observation (short episodes: raise"
                " --replay.final-fraction), or "
                if lost
                else ""
            )
            raise InputError(
                f"the replay ring holds almost no valid rows: {short}the simulator marked nearly"
                " every step as not valid; check it with supple doctor --env"
            )
        if not self._warned_evicted and int(self._final_evicted):
            self._warned_evicted = True
            warnings.warn(
                f"{int(self._final_evicted)} truncated rows lost their final observation and are no"
                " longer sampled: episodes are short, raise --replay.final-fraction",
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
        self._count_to(torch.full_like(self._steps, self.vector_steps))
        self.columns["valid"].copy_(state["valid"])
        for name in (
            "step_in_episode",
            "final_owner",
            "final_head",
            "final_evicted",
            "invalid_sampled",
        ):
            getattr(self, f"_{name}").copy_(state[name])
        for group, value in state["newest_observation"].items():
            self.ring(group)[(self.vector_steps - 1) % self.num_rows + 1] = value.to(self.device)
