"""What a rule may look at: the readings of one checkpoint and of those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from supple.diagnostics.instability import Instability
from supple.diagnostics.reading import WORST, Reading

Level = Literal["info", "ok", "warn", "bad"]
LEVELS: tuple[Level, ...] = ("info", "ok", "warn", "bad")
Confidence = Literal["low", "medium", "high"]


class Hit(NamedTuple):
    """A reading, and its place in the document's list."""

    place: int
    reading: Reading

    @property
    def value(self) -> float:
        """It has one: hits are readings that are ok."""
        assert self.reading.value is not None
        return self.reading.value

    def fresh(self) -> float | None:
        """The same of untrained twins."""
        return self.reading.reference.get("fresh")


@dataclass(kw_only=True, slots=True)
class Evidence:
    """Everything known of one checkpoint."""

    target: int
    label: str
    env_steps: int
    readings: list[Hit]
    earlier: Sequence[Evidence] = ()
    """Checkpoints of the same run before this one, oldest first."""
    course: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What the run measured of itself before this checkpoint, by reading name, oldest first."""
    analyses: Mapping[str, Instability] = field(default_factory=dict)
    """Of policy instability, by mode."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """What this run could try, by purpose (``remedies.advice``)."""
    last_of_run: bool = True
    """Whether the run goes no further: rules about the whole run speak here."""

    def find(self, metric: str, network: str = "", **params: float | str) -> Iterator[Hit]:
        """All readings of a metric that have a value.

        Args:
            metric: its name.
            network: only of this one.
            params: only with these parameters, for example ``threshold=0.1``.
        """
        for hit in self.readings:
            found = hit.reading
            if found.metric != metric or found.value is None:
                continue
            if network and found.network != network:
                continue
            if all(found.params.get(name) == value for name, value in params.items()):
                yield hit

    def networks(self, *metrics: str) -> list[str]:
        """Those that have a value of some of these metrics."""
        found = (hit.reading.network for metric in metrics for hit in self.find(metric))
        return list(dict.fromkeys(found))

    def highest(self, metric: str, network: str = "", **params: float | str) -> Hit | None:
        """The largest value of a metric over layers, members and data sets.

        Of an ensemble ``worst``: which member that is may change, and runs measure it by this name.
        """
        return max(
            self.find(metric, network, **params),
            key=lambda hit: (hit.value, hit.reading.member == WORST),
            default=None,
        )

    def lowest(self, metric: str, network: str = "", **params: float | str) -> Hit | None:
        """The smallest one."""
        return min(self.find(metric, network, **params), key=lambda hit: hit.value, default=None)

    def one(self, metric: str, network: str = "", **params: float | str) -> Hit | None:
        """Of the whole network: the mean over members, not one layer or member."""
        found = [
            hit
            for hit in self.find(metric, network, **params)
            if not hit.reading.member.isdigit() and hit.reading.member != WORST
        ]
        whole = [hit for hit in found if hit.reading.layer == "all"]
        return next(iter(whole or found), None)

    def advise(self, *purposes: str) -> list[str]:
        """What to try, as far as it applies."""
        return [self.advice[purpose] for purpose in purposes if purpose in self.advice]

    def before(self, hit: Hit) -> list[float]:
        """Values of the same reading at earlier checkpoints, oldest first."""
        name, found = hit.reading.name, []
        for each in self.earlier:
            values = [other.value for other in each.readings if other.reading.name == name]
            found += [value for value in values if value is not None]
        return found

    def lately(self, hit: Hit) -> list[float]:
        """Values of the same reading until now, oldest first.

        As the run measured it while training; else at earlier checkpoints, of which slow
        measurements are made at one or two only.
        """
        return [*self.course.get(hit.reading.name, self.before(hit)), hit.value]

    def own_max(self, hit: Hit) -> float:
        """The largest value so far, this one included."""
        return max([hit.value, *self.before(hit)])

    def rising(self, hit: Hit | None, by: float = 0.0) -> bool:
        """Whether it is above all earlier values, by a share of the last of them."""
        if hit is None or not self.before(hit):
            return False
        return hit.value > (1 + by) * max(self.before(hit))

    def falling(self, hit: Hit | None) -> bool:
        """Whether it is below all earlier values."""
        return hit is not None and bool(self.before(hit)) and hit.value < min(self.before(hit))


def above_fresh(hit: Hit | None, times: float, least: float) -> bool:
    """Whether a reading exceeds that of untrained twins so many times, and a floor."""
    if hit is None or hit.fresh() is None:
        return False
    return hit.value > times * (hit.fresh() or 0.0) and hit.value > least


def those(*pairs: tuple[Hit | None, bool]) -> list[Hit]:
    """The hits whose condition holds."""
    return [hit for hit, holds in pairs if hit is not None and holds]


def places(*hits: Hit | None) -> list[int]:
    """Where the hits stand that there are."""
    return [hit.place for hit in hits if hit is not None]


class Verdict(NamedTuple):
    """What was seen, how sure, and what to try."""

    rule: str
    level: Level
    confidence: Confidence
    target: int
    sentence: str
    evidence: list[int]
    against: list[int]
    actions: list[str]
    reconsider: str
    """What would change this verdict."""


Rule = Callable[[Evidence], Verdict | None]


def confidence(main_is_clear: bool, supports: int, against: int) -> Confidence:
    """High: the interval is clear of the line and two supports; low: something speaks against."""
    if against > supports:
        return "low"
    return "high" if main_is_clear and supports >= 2 else "medium"
