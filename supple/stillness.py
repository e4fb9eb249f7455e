"""Observations that never change: a frozen simulator, or a sensor that is not connected.

Looked for in the newest rows of the replay ring when a metric row is written, so that a step costs
nothing. A constant is legal, so it is said, once, and nothing else happens.
"""

from __future__ import annotations

import torch

from supple.replay import Replay

ROWS, CELLS = 32, 1024
"""Vector steps looked at, at least, and transitions: fewer prove nothing."""
NAMED = 5
"""Channels or environments named in one line."""


class StillWatch:
    """Remembers what was said already."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @torch.no_grad()
    def news(self, replay: Replay) -> list[str]:
        """A line for each kind of constant not said before; copies to the host."""
        wanted = max(ROWS, CELLS // replay.num_envs)
        rows = replay.stored_rows()[-wanted:]
        if len(rows) < min(wanted, replay.num_rows) or len(rows) < 2:
            return []
        found = []
        for group in replay.storage:
            obs_TND = replay.ring(group)[rows]
            channels = (obs_TND == obs_TND[0, 0]).all(0).all(0)
            envs = (obs_TND[1:] == obs_TND[:-1]).all(0).all(-1)
            steps, names = len(rows), _channel_names(replay, group)
            still = [names[number] for number in channels.nonzero().flatten().tolist()]
            frozen = [str(number) for number in envs.nonzero().flatten().tolist()]
            if steps * replay.num_envs >= CELLS:
                found += self._say(f"channels of observation/{group}", still, steps)
            if steps >= ROWS and not channels.all():  # said already
                found += self._say(f"observation/{group} of environments", frozen, steps)
        return found

    def _say(self, what: str, which: list[str], steps: int) -> list[str]:
        if not which or what in self._said:
            return []
        self._said.add(what)
        more = f" and {len(which) - NAMED} more" if len(which) > NAMED else ""
        return [
            f"{what} {', '.join(which[:NAMED])}{more} did not change over the newest {steps} steps:"
            " a frozen simulator, or a sensor that is not connected?"
        ]


def _channel_names(replay: Replay, group: str) -> list[str]:
    width = replay.spec.observation[group]
    own = [channel.name for channel in replay.spec.channels or () if channel.group == group]
    return own if len(own) == width else [str(number) for number in range(width)]
