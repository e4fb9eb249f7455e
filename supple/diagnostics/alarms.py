"""Early warnings while training: readings that went over a line and stayed, each said once.

They are hints, not verdicts: the rules of ``supple diagnose`` need evidence of a second kind. What
to try is named as there, by purpose, with the flag of the run's own agent. Every line below is a
project default, none a finding of the literature.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from supple.diagnostics import remedies
from supple.diagnostics.movement import growth
from supple.errors import InputError

LOGS = 20
"""Over which a trend is fitted."""
CLEAR = 0.8
"""R^2 of a trend that is worth saying."""
SOON = 3.0
"""A limit is near where the trend reaches it before three times the updates so far."""
DOUBLED = 2.0
"""Growth of another reading over the same calls without which some lines are no sign: healthy
critics of full size stay beyond Adam's limit, healthy Hoppers above no self-excitation."""


class Line(NamedTuple):
    """A reading that should not stay above a limit."""

    metric: str
    above: float
    times: int
    """In a row."""
    purposes: tuple[str, ...]
    """Purposes of ``remedies.ADVICE``; a run is told those it has a flag for."""
    means: str = ""
    grows: str = ""
    """Metric of the same network that has to double meanwhile, and to be measured."""


class Limit(NamedTuple):
    """A reading that should not grow to a limit."""

    metric: str
    at: float
    relative: bool
    """``at`` times the first reading."""
    purposes: tuple[str, ...]
    means: str


FEWER = ("fewer updates", "fewer epochs", "reset units")
LINES = (
    Line("dormant_0.1", 50, 3, FEWER),
    Line("dead_var", 30, 3, FEWER),
    Line("support_clip", 0.1, 3, ("wider range", "reward scale")),
    Line("stab_adam", 2, 3, ("lower rate", "larger batch"), grows="grad_norm"),
    Line("seem_norm", 0, 5, ("slower target",), "bootstrapping may feed its own errors", "q_abs"),
    Line("churn_flip_1", 0.1, 3, ("lower rate",), "single updates change decisions"),
    Line("act_sat", 0.3, 5, ("limits", "entropy")),
    Line("eps_frac", 0.5, 3, (), "gradients are so small that Adam's epsilon shrinks the steps"),
    Line("flow_conv", 0.05, 3, ("flow steps",), "the flow is read too coarsely"),
)
LONGEST = max(line.times for line in LINES)
LIMITS = (
    Limit("feat_norm", 10, True, ("project", "weight decay"), "features grow"),
    Limit("logit_pre", 10, False, ("lower rate",), "the actor's means grow"),
    Limit("logit_z", 50, False, (), "logits grow; a fault only if features or gradients do too"),
)


class Alarms:
    """Watches metric rows.

    Args:
        advice: what this run can try, by purpose (``remedies.advice``); by default without flags.
    """

    def __init__(self, advice: Mapping[str, str] | None = None) -> None:
        self._advice = remedies.advice(None) if advice is None else advice
        self._above: dict[str, list[float]] = defaultdict(list)
        """Since readings went above their line, of what has to grow meanwhile, its size."""
        self._newest: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._logs: dict[str, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=LOGS))
        self._said: set[str] = set()

    def watch(self, updates: int, row: Mapping[str, float]) -> list[str]:
        """New warnings, one line each.

        Args:
            updates: gradient steps so far.
            row: ``diag/...`` columns.
        """
        found = []
        self._newest |= row
        for name, value in row.items():
            network, _, rest = name.removeprefix("diag/").partition("/")
            member, metric = rest.split("/")[-2:] if "/" in rest else ("", rest)
            if member != "mean":
                continue
            lines = self._lines(network, metric, value)
            for key, text in (*lines, *self._trend(network, metric, value, updates)):
                if key not in self._said:
                    self._said.add(key)
                    found.append(text)
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was said, and what readings have come to so far."""
        return {
            "said": sorted(self._said),
            "first": dict(self._first),
            "newest": dict(self._newest),
            "above": {key: sizes[-LONGEST:] for key, sizes in self._above.items()},
            "logs": {key: [list(log) for log in logs] for key, logs in self._logs.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value; checkpoints without one begin anew."""
        if not state:
            return
        self._said.update(state["said"])
        self._first |= state["first"]
        self._newest |= state["newest"]
        self._above.update(state["above"])
        for key, logs in state["logs"].items():
            self._logs[key].extend((updates, value) for updates, value in logs)

    def _lines(self, network: str, metric: str, value: float) -> Iterator[tuple[str, str]]:
        for line in LINES:
            if metric.startswith(line.metric):
                key = f"{network}/{metric}"
                sizes = self._above[key]
                if value <= line.above:
                    sizes.clear()
                    continue
                sizes.append(self._newest.get(f"diag/{network}/all/mean/{line.grows}", 0.0))
                first = sizes[-line.times :][0]
                grown = not line.grows or sizes[-1] >= DOUBLED * first > 0
                if len(sizes) >= line.times and grown:
                    what = f"{network} {metric} is {value:.3g}, above {line.above:g}"
                    yield key, self._warning(f"{what}, {line.times} times running", line)

    def _trend(
        self, network: str, metric: str, value: float, updates: int
    ) -> Iterator[tuple[str, str]]:
        for limit in LIMITS:
            if metric != limit.metric:
                continue
            key = f"{network}/{metric}"
            self._logs[key].append((float(updates), value))
            at = limit.at * self._first.setdefault(key, value) if limit.relative else limit.at
            logs = list(self._logs[key])
            if len(logs) < LOGS // 2:
                return
            try:
                trend = growth([u for u, _ in logs], [v for _, v in logs], at)
            except InputError:
                return
            near = trend.crossing is not None and trend.crossing < SOON * updates
            if near and trend.r2 > CLEAR and trend.crossing is not None:
                when = f"reaches {at:.3g} at about update {trend.crossing:,.0f}"
                what = f"{network} {metric} grows as updates^{trend.slope:.2g} and {when}"
                yield f"trend {key}", self._warning(what, limit)

    def _warning(self, what: str, of: Line | Limit) -> str:
        tries = [self._advice[purpose] for purpose in of.purposes if purpose in self._advice]
        return "; ".join(filter(None, (f"early warning: {what}", of.means, ", or ".join(tries))))
