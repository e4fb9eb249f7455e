"""What plots are made from, and the plot that several metrics share: a course over checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from supple.diagnostics.instability import Instability
from supple.diagnostics.report import svg
from supple.diagnostics.thresholds import THRESHOLDS

Entry = Mapping[str, Any]


class Figure(NamedTuple):
    """One plot."""

    section: str
    title: str
    of: str
    """Data set and size."""
    picture: str
    caption: str
    """How to read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What plots are made from."""

    document: Mapping[str, Any]
    analyses: Mapping[tuple[int, str], Instability]
    arrays: Mapping[int, Mapping[str, Tensor]]

    def runs(self) -> dict[str, list[Entry]]:
        """Targets by run, in order."""
        found: dict[str, list[Entry]] = {}
        for target in self.document["targets"]:
            found.setdefault(target["run"], []).append(target)
        return found

    def entries(self, metric: str, **where: Any) -> Iterator[Entry]:
        """Metrics with a value, by their fields and parameters."""
        for entry in self.document["metrics"]:
            if entry["id"] != metric or entry["value"] is None:
                continue
            if all(entry.get(k, entry["params"].get(k)) == v for k, v in where.items()):
                yield entry

    def course(self, metric: str, run: Sequence[Entry], **where: Any) -> list[tuple[float, Entry]]:
        """One entry of each checkpoint of a run, by environment steps."""
        found = []
        for target in run:
            entry = next(self.entries(metric, target=target["id"], **where), None)
            if entry is not None:
                found.append((float(target["env_step"]), entry))
        return found

    def pick(self, metric: str, run: Sequence[Entry], **where: Any) -> list[tuple[float, Entry]]:
        """The course on the data set that most checkpoints have."""
        courses = [self.course(metric, run, data=data, **where) for data in ("anchor", "recent")]
        courses.append(self.course(metric, run, **where))
        return max(courses, key=len)

    def arrays_of(self, target: int, start: str) -> Iterator[tuple[str, Tensor]]:
        """What was kept of a checkpoint under names that begin so, without that beginning."""
        for name, array in self.arrays.get(target, {}).items():
            if name.startswith(start):
                yield name.removeprefix(start), array

    def last(self) -> Iterator[Entry]:
        """The last checkpoint of each run."""
        for targets in self.runs().values():
            yield targets[-1]

    def label(self, number: int) -> str:
        """What reports call a checkpoint."""
        return str(self.document["targets"][number]["label"])


def over_checkpoints(
    section: str,
    title: str,
    lines: Sequence[tuple[str, str, Mapping[str, Any]]],
    ylabel: str,
    caption: str,
    *,
    share_of_width: bool = False,
) -> Callable[[Source], Iterator[Figure]]:
    """A plot of some metrics over a run's checkpoints.

    Args:
        section: the question it belongs to.
        title: of the plot.
        lines: name, metric and filter of each line.
        ylabel: with its unit.
        caption: how to read it.
        share_of_width: divide by the reading's feature width.
    """

    def make(source: Source) -> Iterator[Figure]:
        for run, targets in source.runs().items():
            drawn = []
            for name, metric, where in lines:
                course = source.pick(metric, targets, **where)
                points = []
                for x, entry in course:
                    width = entry["reference"].get("width", 1.0) if share_of_width else 1.0
                    points.append((x, entry["value"] / width))
                if points:
                    drawn.append((name, metric, course, points))
            if not drawn or max(len(points) for *_, points in drawn) < 2:
                continue
            everything = [p for *_, points in drawn for p in points]
            entries = drawn[0][2] if len(drawn) == 1 and not share_of_width else []
            bars = [(x, *entry["ci95"]) for x, entry in entries if entry["ci95"] is not None]
            frame = svg.chart(
                [x for x, _ in everything],
                [*(y for _, y in everything), *(end for _, *ends in bars for end in ends)],
                xlabel="environment steps",
                ylabel=ylabel,
                zero=True,
            )
            for kind, (name, *_, points) in enumerate(drawn):
                frame.line(points, name, kind=kind, dots=True)
            for bar in bars:
                frame.bar(*bar)
            line = THRESHOLDS.get(drawn[0][1])
            if line is not None and line.warn is not None and not share_of_width:
                for at in (line.warn, -line.warn) if line.absolute else (line.warn,):
                    frame.level(at, f"project default {svg.number(at)}")
            first = drawn[0][2][-1][1]
            data = first["params"].get("data", "")
            of = ", ".join(filter(None, [run, f"n = {first['n']}" if first["n"] else "", data]))
            yield Figure(section, title, of, frame.render(title), caption)

    return make
