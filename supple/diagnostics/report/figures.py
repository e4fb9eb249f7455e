"""The plots of a report. Each is left out where its data were not measured.

All read the document and what ``analyse`` found; none measures anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from supple.diagnostics.instability import Instability
from supple.diagnostics.perturbation import SIZES
from supple.diagnostics.report import svg
from supple.diagnostics.rules.policy import leading_channels
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


def figures(source: Source) -> list[Figure]:
    """All plots, in the order of the page."""
    found = []
    for make in MAKERS:
        found += list(make(source))
    return found


def _returns(source: Source) -> Iterator[Figure]:
    for target in source.document["targets"]:
        curves = {s["id"]: s for s in source.document["series"] if s["target"] == target["id"]}
        evaluated = curves.get("eval/return_mean")
        if evaluated is None or not evaluated["x"]:
            continue
        trained = curves.get("train/return_mean", {"x": [], "y": []})
        points = list(zip(evaluated["x"], evaluated["y"], strict=True))
        best, top = [], -math.inf
        for x, y in points:
            top = max(top, y)
            best.append((x, top))
        frame = svg.chart(
            [*evaluated["x"], *trained["x"]],
            [*evaluated["y"], *trained["y"]],
            xlabel="environment steps",
            ylabel="return of an episode",
        )
        frame.band(points, best, "below the best so far")
        frame.line(list(zip(trained["x"], trained["y"], strict=True)), "training", kind=2)
        frame.line(best, "best so far", kind=3)
        frame.line(points, "evaluation", dots=True)
        title = "Return over training"
        yield Figure(
            "Was training steady?",
            title,
            f"{target['run']}, {len(points)} evaluations",
            frame.render(title),
            "Shaded: how far the return fell below what the run had already reached. A fall that"
            " lasts is a reason to ship an earlier checkpoint.",
        )


def _over_checkpoints(
    section: str,
    title: str,
    lines: Sequence[tuple[str, str, Mapping[str, Any]]],
    ylabel: str,
    caption: str,
    *,
    share_of_width: bool = False,
    zero: bool = True,
) -> Callable[[Source], Iterator[Figure]]:
    """A plot of some metrics over a run's checkpoints.

    Args:
        section: the question it belongs to.
        title: of the plot.
        lines: name, metric and filter of each line.
        ylabel: with its unit.
        caption: how to read it.
        share_of_width: divide by the reading's feature width.
        zero: whether the scale holds 0.
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
            frame = svg.chart(
                [x for x, _ in everything],
                [y for _, y in everything],
                xlabel="environment steps",
                ylabel=ylabel,
                zero=zero,
            )
            for kind, (name, _, course, points) in enumerate(drawn):
                frame.line(points, name, kind=kind, dots=True)
                if len(drawn) == 1:
                    for x, entry in course:
                        if entry["ci95"] is not None:
                            frame.bar(x, *entry["ci95"])
            line = THRESHOLDS.get(drawn[0][1])
            if line is not None and line.warn is not None and not share_of_width:
                frame.level(line.warn, f"project default {svg.number(line.warn)}")
            first = drawn[0][2][-1][1]
            data = first["params"].get("data", "")
            of = ", ".join(filter(None, [run, f"n = {first['n']}" if first["n"] else "", data]))
            yield Figure(section, title, of, frame.render(title), caption)

    return make


def _spectra(source: Source) -> Iterator[Figure]:
    for target in source.document["targets"]:
        last = [t["id"] for t in source.document["targets"] if t["run"] == target["run"]][-1]
        if target["id"] != last:
            continue
        found: dict[str, list[float]] = {}
        for name, array in source.arrays.get(last, {}).items():
            network, layer, member, *rest = [*name.split("/"), "", ""]
            if layer == "penultimate" and rest and rest[0].startswith("spectrum"):
                if member != "0" or network in found:
                    continue
                found[network] = [float(v) for v in array]
        lines = {n: [v / s[0] for v in s] for n, s in found.items() if s and s[0] > 0}
        if not lines:
            continue
        frame = svg.chart(
            [1, max(len(v) for v in lines.values())],
            [max(v, 1e-6) for values in lines.values() for v in values],
            xlabel="index",
            ylabel="singular value / largest",
            log=(False, True),
        )
        for kind, (name, values) in enumerate(lines.items()):
            points = [(i + 1, v) for i, v in enumerate(values) if v > 1e-6]
            frame.line(points, name, kind=kind)
        title = "Spectrum of the last features"
        yield Figure(
            "Are its features healthy?",
            title,
            f"{target['label']}, first member of each network",
            frame.render(title),
            "A cliff means that the features use few directions. Compare with earlier checkpoints,"
            " not with a line.",
        )


def _space(source: Source) -> Iterator[Figure]:
    for (number, mode), one in source.analyses.items():
        if mode in ("information", "fisher"):
            continue
        label, named = _label(source, number), _mode(one)
        values = [float(v) for v in one.found.value_D / one.found.value_D.sum()]
        frame = svg.chart(
            [0.5, len(values) + 0.5],
            [0, max(values)],
            xlabel="direction, worst first",
            ylabel="share of sensitivity",
            zero=True,
            xnames=[(i, str(i)) for i in _few(len(values))],
        )
        for index, value in enumerate(values):
            frame.column(index + 0.6, index + 1.4, value, strong=index == 0)
        even = 1 / len(values)
        frame.level(even, f"evenly spread: {even:.2f}")
        agreement = "one episode" if one.split is None else f"{one.split.cosine:.3f}"
        title = "How concentrated the instability is"
        yield Figure(
            "Is it robust to its sensors?",
            title,
            f"{label}, {named}, {one.states:,} states, split-half cosine {agreement}",
            frame.render(title),
            "A tall first bar: one shared direction of the observation governs the decision."
            + (
                ""
                if one.identified
                else " The halves disagree or the second is close: read the"
                " leading bars together, not the first alone."
            ),
        )
        rows = leading_channels(one, 12)
        title = "Which inputs carry it"
        yield Figure(
            "Is it robust to its sensors?",
            title,
            f"{label}, {named}, share of the worst direction's energy; {_families(one)}",
            svg.bars(rows, unit="share of energy", title=title, format=lambda v: f"{v:.0%}"),
            "Sensors at the top deserve the best calibration, noise in training, or a filter."
            + ("" if one.layout.named else " The simulator names no channels."),
        )


def _families(one: Instability) -> str:
    shares = sorted(one.families.items(), key=lambda item: -item[1][0])[:3]
    return ", ".join(f"{name} {direction:.0%}" for name, (direction, _) in shares)


def _few(count: int) -> list[int]:
    step = max(1, -(-count // 10))
    return list(range(1, count + 1, step))


def _label(source: Source, number: int) -> str:
    return str(source.document["targets"][number]["label"])


def _mode(one: Instability) -> str:
    on = "whole episodes" if one.source == "rollout" else "replay states, not on-policy"
    return f"mode {one.mode}, {on}"


def _response(source: Source) -> Iterator[Figure]:
    for (number, mode), one in source.analyses.items():
        if mode in ("information",):
            continue
        found = one.responses
        rows = [found.worst_S, found.local_S, found.least_S]
        random = found.random_KS
        positive = [float(v) for row in (*rows, *random) for v in row if v > 0]
        if not positive:
            continue
        frame = svg.chart(
            SIZES,
            positive,
            xlabel="size of the step [standard deviations]",
            ylabel="choices changed"
            if mode in ("choice", "critic")
            else "change of the command"
            if mode == "action"
            else "change of the distribution",
            log=(True, True),
            xnames=[(size, f"{size:g}") for size in SIZES],
        )
        floor = frame.y.low
        low = [(s, max(float(v), floor)) for s, v in zip(SIZES, random.min(0).values, strict=True)]
        high = [(s, max(float(v), floor)) for s, v in zip(SIZES, random.max(0).values, strict=True)]
        frame.band(low, high, "20 random directions")
        for kind, (name, row) in enumerate(
            (("worst shared", rows[0]), ("worst of each state", rows[1]), ("least", rows[2]))
        ):
            frame.line(
                [(s, float(v)) for s, v in zip(SIZES, row, strict=True) if v > 0],
                name,
                kind=kind,
                dots=True,
            )
        noise = one.noise_norm()
        if noise is not None:
            frame.moment(noise, "declared noise")
        times = found.times
        title = "Finite steps along the directions"
        yield Figure(
            "Is it robust to its sensors?",
            title,
            f"{_label(source, number)}, {_mode(one)}"
            + ("" if times is None else f", {times:.1f} times the median random direction at 0.1"),
            frame.render(title),
            "The worst line should lie above the band and the least below it: then the linear"
            " analysis holds for real disturbances.",
        )


def _time(source: Source) -> Iterator[Figure]:
    for (number, mode), one in source.analyses.items():
        if mode not in ("action", "choice") or not one.series:
            continue
        strengths = [[float(v) for v in strength] for strength, _ in one.series]
        frame = svg.chart(
            [0, max(len(s) for s in strengths)],
            [v for s in strengths for v in s],
            xlabel="step of the episode",
            ylabel="sensitivity per sd",
            zero=True,
        )
        for kind, strength in enumerate(strengths):
            frame.line(list(enumerate(strength)), f"episode {kind + 1}", kind=kind)
        title = "When it is sensitive"
        numbers = one.course
        yield Figure(
            "Is the policy steady?",
            title,
            f"{_label(source, number)}, {_mode(one)}"
            + (f", deviation / mean {numbers['cv']:.2f}" if numbers else ""),
            frame.render(title),
            "Spikes are moments at which a small error changes the decision most: contacts, phases,"
            " commands. In the mode choice they are states near a tie.",
        )


def _distance(source: Source) -> Iterator[Figure]:
    for (number, mode), one in source.analyses.items():
        if mode not in ("action", "choice"):
            continue
        values = sorted(float(v) for v in one.distance if math.isfinite(float(v)) and v > 0)
        if len(values) < 10:
            continue
        low, high = values[0], values[int(0.99 * (len(values) - 1))]
        if high <= low:
            continue
        edges = [low * (high / low) ** (i / 30) for i in range(31)]
        counts = [sum(a <= v < b for v in values) / len(values) for a, b in pairwise(edges)]
        frame = svg.chart(
            edges,
            counts,
            xlabel="distance [standard deviations]",
            ylabel="share of states",
            log=(True, False),
            zero=True,
        )
        for (a, b), count in zip(pairwise(edges), counts, strict=True):
            frame.column(a, b, count)
        frame.moment(one.quantile(0.05), "5 % are nearer")
        noise = one.noise_norm()
        if noise is not None:
            frame.moment(noise, "declared noise")
        title = "Distance to another decision"
        yield Figure(
            "Is it robust to its sensors?",
            title,
            f"{_label(source, number)}, {_mode(one)}, {len(values):,} states",
            frame.render(title),
            "States left of the sensors' noise change their decision by noise alone.",
        )


def _shifts(source: Source) -> Iterator[Figure]:
    for target in source.document["targets"]:
        drops = list(source.entries("ranld_drop", target=target["id"]))
        if not drops:
            continue
        rows = [(e["params"]["shift"], e["value"]) for e in drops]
        rows.sort(key=lambda row: -row[1])
        title = "What disturbances cost"
        yield Figure(
            "Is it robust to its sensors?",
            title,
            f"{target['label']}, {drops[0]['n']} paired episodes each",
            svg.bars(
                rows, unit="share of the return lost", title=title, format=lambda v: f"{v:.0%}"
            ),
            "Share of what the policy earns above random actions that it loses. Below 0 is luck.",
        )


def _overwriting(source: Source) -> Iterator[Figure]:
    for metric, title, low, high in (
        ("retention", "What later features keep of earlier values", "lost", "kept"),
        ("reuse", "What features say of other checkpoints' values", "nothing", "all"),
        ("rdm_drift", "How far geometry moved", "same", "other"),
    ):
        entries = [
            e
            for e in source.document["metrics"]
            if e["id"] == metric and isinstance(e["target"], list) and e["value"] is not None
        ]
        for network in dict.fromkeys(e["network"] for e in entries):
            own = {tuple(e["target"]): e["value"] for e in entries if e["network"] == network}
            numbers = sorted({n for pair in own for n in pair})
            if len(own) < len(numbers):  # each checkpoint and the next only
                yield from _from_next_to_next(source, network, title, own, f"0 {low}, 1 {high}")
                continue
            matrix = [[own.get((a, b)) for b in numbers] for a in numbers]
            names = [svg.number(source.document["targets"][n]["env_step"]) for n in numbers]
            yield Figure(
                "Can it still learn?",
                title,
                f"{network}, checkpoints by environment steps",
                svg.heat(matrix, names, title=title, low=low, high=high),
                "Row: the earlier checkpoint; column: the later one.",
            )


def _from_next_to_next(
    source: Source, network: str, title: str, own: Mapping[tuple[int, ...], float], ends: str
) -> Iterator[Figure]:
    steps = [float(target["env_step"]) for target in source.document["targets"]]
    points = sorted((steps[after], value) for (_, after), value in own.items())
    if len(points) < 2:
        return
    frame = svg.chart(
        [x for x, _ in points],
        [y for _, y in points],
        xlabel="environment steps",
        ylabel=ends,
        zero=True,
    )
    frame.line(points, dots=True)
    yield Figure(
        "Can it still learn?",
        title,
        f"{network}, from each checkpoint to the next",
        frame.render(title),
        "Change that does not fade late in training: features are still being rewritten.",
    )


MAKERS: tuple[Callable[[Source], Iterator[Figure]], ...] = (
    _returns,
    _over_checkpoints(
        "Can it still learn?",
        "Ability to fit new targets",
        [(n, "fit_gap", {"network": n, "member": "mean"}) for n in ("critic", "value", "actor")],
        "gap to a new network",
        "0: as plastic as a new network. Bars: 95 % over targets and twins.",
    ),
    _overwriting,
    _over_checkpoints(
        "Are its features healthy?",
        "Inactive units",
        [
            (
                f"{n}, {text}",
                metric,
                {"network": n, "layer": "all", "member": "mean", "threshold": t},
            )
            for n in ("critic", "value", "actor")
            for metric, text, t in (
                ("dormant", "inactive", 0.1),
                ("grad_dormant", "no gradient", 0.01),
            )
        ][:6],
        "% of units",
        "Growth over training matters, not the level: untrained networks have some too.",
    ),
    _over_checkpoints(
        "Are its features healthy?",
        "Dimensions of the last features",
        [
            (f"{n}, {text}", metric, {"network": n, "layer": "penultimate", "member": "mean"})
            for n in ("critic", "value", "actor")
            for metric, text in (("erank", "effective rank"), ("pca_rank", "99 % of variance"))
        ],
        "share of the width",
        "Falling below half of its own maximum supports a loss of plasticity; alone it is none.",
        share_of_width=True,
    ),
    _spectra,
    _over_checkpoints(
        "Are its features healthy?",
        "Length of the features",
        [(n, "feat_norm", {"network": n, "member": "mean"}) for n in ("critic", "value", "actor")],
        "mean length",
        "Before the last norm. Steady growth together with sinking rank is a warning.",
    ),
    _over_checkpoints(
        "Is the value right?",
        "Self-excitation of bootstrapping",
        [(n, "seem_norm", {"network": n}) for n in ("critic", "value")],
        "largest growth rate / norm",
        "Above 0 value errors feed themselves along one direction; a target network damps it.",
    ),
    _over_checkpoints(
        "Is the value right?",
        "Value bias",
        [(n, "value_bias_norm", {"network": n}) for n in ("critic", "value")],
        "bias / mean return",
        "0 is right, above 0 is too high. Bars: 95 % over episodes.",
    ),
    _over_checkpoints(
        "Is the step size stable?",
        "Curvature against the step size",
        [(n, "stab_adam", {"network": n}) for n in ("critic", "value", "actor")],
        "ratio, 1 is the limit",
        "0.5 to 1.2 is the normal zone of large-step training; above 2 for long is not.",
    ),
    _over_checkpoints(
        "Is the policy steady?",
        "Saturated commands",
        [("commands at their limits", "act_sat", {})],
        "share",
        "A saturated command cannot be disturbed: robustness figures for it mean little.",
    ),
    _time,
    _space,
    _response,
    _distance,
    _shifts,
)
