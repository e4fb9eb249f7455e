"""Diagnostics while training: cheap readings in every metric row, kept to a share of the time.

Tier 1 (features, units, steps, outputs) runs every so many updates, tier 2 (curvature, noise,
bootstrapping) seldom. A governor stretches both periods where they cost more than they may. Nothing
of training changes (``isolation.py``), and training never stops because of a measurement.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from supple.agents.base import Agent
from supple.diagnostics.alarms import Alarms
from supple.diagnostics.context import Context, attempt
from supple.diagnostics.data import NEWEST, DataSets, Transitions, draw, generator_for
from supple.diagnostics.isolation import isolated
from supple.diagnostics.online_groups import TIER1, TIER2, Group
from supple.diagnostics.reading import MEAN, WORST, Reading
from supple.diagnostics.settings import DiagnosticsSettings
from supple.diagnostics.subject import subject_of
from supple.errors import first_line
from supple.replay import Replay

ANCHOR_AT = 0.05
"""Share of the run after which the anchor set is drawn."""
ANCHOR_ROLLOUTS = 10
"""An on-policy agent's anchor set comes from so many rollouts."""
DEAR = 5
"""What tier 2 is taken to cost before it was measured, times tier 1; so it is with ``laptop``."""
STRETCH_AFTER, SHRINK_AFTER = 3, 10
"""Calls in a row over the limit, or under a third of it, until periods change."""


class Governor:
    """Stretches periods where measuring costs more than its share of the time.

    Args:
        limit: share of the wall-clock.
        clock: monotonic seconds; tests pass their own.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit = limit
        self._clock = clock
        self._last: float | None = None
        self._share: float | None = None
        self._over = self._under = 0
        self._began = clock()
        self._costs: dict[tuple[int, ...], deque[float]] = {}
        self.stretch = 1
        """What periods are multiplied with."""
        self.spent = 0.0
        """Seconds measured so far [s]."""

    def affordable(self, due: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the tiers that are due which keep all calls to the share of the time.

        A stretched period says what the next calls will cost; this repays what earlier ones did.
        Half of the share is left to tier 2 where that has to wait, or tier 1 would take it all.
        """
        if not due:
            return due
        share = self._limit * (self._clock() - self._began)
        if self.spent + self._expected(due) <= share:
            return due
        if due == (0, 1) and self.spent + self._expected((0,)) <= share / 2:
            return (0,)
        return ()

    def _expected(self, tiers: tuple[int, ...]) -> float:
        """The shorter of the tiers' last two calls, since one may be slow by chance [s].

        Before there are any, tier 1 costs nothing, and with tier 2 a multiple of tier 1.
        """
        if known := self._costs.get(tiers):
            return min(known)
        cheap = self._costs.get((0,))
        if tiers == (0,) or (cheap is None and 0 not in tiers):
            return 0.0
        return DEAR * min(cheap) if cheap else math.inf

    def charge(self, seconds: float, tiers: tuple[int, ...]) -> None:
        """Account for one call; the first of its tiers, which warms up, foretells nothing."""
        now = self._clock()
        self.spent += seconds
        if tiers in self._costs:
            self._costs[tiers].append(seconds)
        else:
            self._costs[tiers] = deque(maxlen=2)
        if self._last is not None:
            share = seconds / max(now - self._last, 1e-9)
            self._share = share if self._share is None else 0.5 * (self._share + share)
            self._judge(self._share)
        self._last = now

    def _judge(self, share: float) -> None:
        self._over = self._over + 1 if share > self._limit else 0
        self._under = self._under + 1 if share < self._limit / 3 else 0
        if self._over >= STRETCH_AFTER:
            self.stretch, self._over, self._share = 2 * self.stretch, 0, share / 2
        if self._under >= SHRINK_AFTER and self.stretch > 1:
            self.stretch, self._under, self._share = self.stretch // 2, 0, 2 * share


class Online:
    """The diagnostics of one run in training.

    Args:
        agent: the learner.
        replay: its ring.
        settings: how often and how much.
        advice: what this run can try, by purpose (``remedies.advice``).
        seed: of the run.
        env_steps: planned environment steps of the run.
        updates: planned gradient steps.
    """

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        settings: DiagnosticsSettings,
        *,
        advice: Mapping[str, str],
        seed: int,
        env_steps: int,
        updates: float,
    ) -> None:
        self._agent = agent
        self._replay = replay
        self._settings = settings
        self._seed = seed
        self._planned = env_steps
        self._anchor: Transitions | None = None
        self._restored: tuple[int, Transitions] | None = None
        """The newest transitions of a resumed run whose ring is empty, and its updates."""
        self._pool: deque[Transitions] = deque(maxlen=ANCHOR_ROLLOUTS)
        self._periods = settings.periods(updates)
        self._due = [*self._periods]
        self._row: dict[str, float] = {}
        self._off: dict[str, str] = {}
        self._seen = -1
        self.governor = Governor(settings.max_overhead)
        self.memory: dict[str, Any] = {}
        """What groups keep from call to call."""
        self._alarms = Alarms(advice)
        self._news: list[str] = []
        self._said: set[str] = set()
        self._skipped = 0
        """Calls that an error ended."""

    def after_update(self, env_steps: int) -> None:
        """Measure what is due; call between updates.

        Args:
            env_steps: so far.
        """
        updates = self._agent.updates
        if not self._settings.enabled or updates == self._seen or not updates:
            return
        self._seen = updates
        due = tuple(tier for tier in (0, 1) if updates >= self._due[tier])
        tiers = self.governor.affordable(due)
        gathers = self._gathers(env_steps)
        if not tiers and not gathers:
            return
        began = time.perf_counter()
        try:
            with isolated(self._agent):
                if gathers:
                    self._keep_anchor(env_steps)
                if tiers:
                    self._measure(tiers)
        except Exception as error:  # whatever it is, training goes on
            self._skipped += 1
            self._row["diag/skipped"] = float(self._skipped)
            self._say("a call", f"diagnostics skipped a call: {first_line(error)}")
        if tiers:
            self.governor.charge(time.perf_counter() - began, tiers)
            for tier in tiers:
                self._due[tier] = updates + self.governor.stretch * self._periods[tier]
        else:
            self.governor.spent += time.perf_counter() - began

    def row(self) -> dict[str, float]:
        """Readings since the last row, under ``diag/``; numbers only."""
        found, self._row = self._row, {}
        if found:
            self._news += self._alarms.watch(self._agent.updates, found)
            found["diag/seconds"] = self.governor.spent
            found["diag/period"] = float(self.governor.stretch * self._settings.tier1_period)
        return found

    def news(self) -> list[str]:
        """Early warnings and what was switched off, since the last call, one line each."""
        found, self._news = self._news, []
        return found

    def _say(self, about: str, text: str) -> None:
        """Once in a run of each thing."""
        if about not in self._said:
            self._said.add(about)
            self._news.append(text)

    # --- transitions ------------------------------------------------------------------------

    def _on_policy(self) -> bool:
        return self._agent.horizon == self._replay.num_rows

    def _gathers(self, env_steps: int) -> bool:
        """Whether rows for the anchor set are to be drawn now."""
        if self._anchor is not None:
            return False
        # A ring that has wrapped has one row of each environment that is being overwritten.
        room = (self._replay.num_rows - 1) * self._replay.num_envs
        enough = min(self._settings.anchor_size, self._planned // 2, room)
        late = env_steps >= ANCHOR_AT * self._planned
        return self._on_policy() or (late and self._replay.size >= enough)

    def _keep_anchor(self, env_steps: int) -> None:
        """Draw the anchor set, or of an on-policy agent one rollout's share of it."""
        random = self._generator("anchor")
        if not self._on_policy():
            self._anchor = draw(self._replay, self._settings.anchor_size, generator=random)
            return
        rows = -(-self._settings.anchor_size // ANCHOR_ROLLOUTS)
        self._pool.append(draw(self._replay, rows, generator=random))
        if env_steps >= ANCHOR_AT * self._planned and len(self._pool) == ANCHOR_ROLLOUTS:
            self._anchor = Transitions.join(list(self._pool))
            self._pool.clear()

    def recent(self) -> Transitions:
        """Newest transitions: of a tenth of the ring, and at least as many as are wanted."""
        if self._restored and self._restored[0] == self._agent.updates:
            return self._restored[1].to(self._agent.device)
        wanted = self._settings.recent_size
        share = max(NEWEST, wanted / max(self._replay.size, 1))
        newest = 1.0 if self._on_policy() else min(1.0, share)
        found = draw(self._replay, wanted, generator=self._generator("recent"), newest=newest)
        return found.to(self._agent.device)

    def _generator(self, name: str) -> torch.Generator:
        return generator_for(self._replay.device, self._seed, self._agent.updates, name)

    # --- measuring --------------------------------------------------------------------------

    def _measure(self, tiers: tuple[int, ...]) -> None:
        subject = subject_of(self._agent, seed=self._seed)
        anchor = None if self._anchor is None else self._anchor.to(self._agent.device)
        context = Context(subject=subject, data=DataSets(recent=self.recent(), anchor=anchor))
        for tier in tiers:
            for group in (TIER1, TIER2)[tier]:
                if group.name not in self._off:
                    self._take(group, context)

    def _take(self, group: Group, context: Context) -> None:
        facts: dict[str, Any] = {"metric": group.name, "network": "run"}
        try:
            found = attempt(lambda: group.measure(context, self.memory), **facts)
        except Exception as error:  # out of memory, no convergence, a mistake: training goes on
            self._off[group.name] = first_line(error)
            text = f"diagnostics {group.name} switched off: {self._off[group.name]}"
            self._say(group.name, text)
            return
        for each in found:
            if each.status == "undefined":
                text = f"diagnostics cannot measure {each.metric} of the {each.network}"
                self._say(f"{each.network} {each.metric}", f"{text}: {each.reason}")
        self._row |= {f"diag/{name}": value for name, value in _numbers(found)}

    # --- saving -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Transitions for ``supple diagnose``, and what a resume continues with."""
        if not self._settings.enabled or not self._agent.updates:
            return {}
        anchor = None if self._anchor is None else self._anchor.state_dict()
        recent = None
        try:
            recent = self.recent().state_dict()
        except Exception as error:  # nothing valid is stored yet, say: the checkpoint goes without
            text = f"a checkpoint has no newest transitions to diagnose: {first_line(error)}"
            self._say("a checkpoint", text)
        pool = [part.state_dict() for part in self._pool]
        told = {"skipped": self._skipped, "said": sorted(self._said)}
        told["alarms"] = self._alarms.state_dict()
        return {"anchor": anchor, "recent": recent, "pool": pool, **told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value; checkpoints without one begin anew."""
        if not state:
            return
        anchor = state["anchor"]
        self._anchor = None if anchor is None else Transitions.from_state(anchor)
        device = self._replay.device
        self._pool.extend(Transitions.from_state(part).to(device) for part in state["pool"])
        self._skipped = state.get("skipped", 0)
        self._said.update(state.get("said", ()))
        self._alarms.load_state_dict(state.get("alarms", {}))
        updates = self._agent.updates
        if not self._replay.size and state["recent"]:
            self._restored = updates, Transitions.from_state(state["recent"])
        self._due = [updates + period for period in self._periods]


def stored_sets(state: Mapping[str, Any]) -> DataSets:
    """The transitions of a checkpoint's ``diagnostics`` entry, as far as there are any."""
    parts = {name: state.get(name) for name in ("anchor", "recent")}
    found = {name: Transitions.from_state(part) for name, part in parts.items() if part}
    return DataSets(**found)


def _numbers(found: list[Reading]) -> Iterator[tuple[str, float]]:
    """Means, and the worst member where there are several; totals, not layers."""
    for each in found:
        if each.value is not None and each.member in (MEAN, WORST):
            yield each.name, each.value
