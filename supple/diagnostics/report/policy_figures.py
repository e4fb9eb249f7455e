"""Plots of the policy: directions in space and time, finite steps, disturbances, movement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from supple.diagnostics.instability import Instability
from supple.diagnostics.perturbation import SIZES
from supple.diagnostics.report import svg
from supple.diagnostics.report.source import Figure, Source
from supple.diagnostics.rules.policy import leading_channels


def space(source: Source) -> Iterator[Figure]:
    """How concentrated the instability is, and on which channels."""
    for (number, mode), one in source.analyses.items():
        if mode in ("information", "fisher"):
            continue
        label, named = source.label(number), _mode(one)
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
        agreement = "unknown" if isinstance(one.split, str) else f"{one.split.cosine:.3f}"
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
        rows = leading_channels(one, one.worst, 12)
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


def _mode(one: Instability) -> str:
    on = "whole episodes" if one.source == "rollout" else "replay states, not on-policy"
    return f"mode {one.mode}, {on}"


def response(source: Source) -> Iterator[Figure]:
    """What finite steps along the directions do."""
    for (number, mode), one in source.analyses.items():
        if mode == "information":
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
        noise = one.noise_along(one.worst)
        if noise:
            frame.moment(noise, "declared noise")
        times = found.times
        title = "Finite steps along the directions"
        yield Figure(
            "Is it robust to its sensors?",
            title,
            f"{source.label(number)}, {_mode(one)}"
            + ("" if times is None else f", {times:.1f} times the median random direction at 0.1"),
            frame.render(title),
            "The worst line should lie above the band and the least below it: then the linear"
            " analysis holds for real disturbances.",
        )


def time(source: Source) -> Iterator[Figure]:
    """Sensitivity along episodes."""
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
        course = "" if isinstance(one.course, str) else f"{one.course['cv']:.2f}"
        yield Figure(
            "Is the policy steady?",
            title,
            f"{source.label(number)}, {_mode(one)}"
            + (f", deviation / mean {course}" if course else ""),
            frame.render(title),
            "Spikes are moments at which a small error changes the decision most: contacts, phases,"
            " commands. In the mode choice they are states near a tie.",
        )


def distance(source: Source) -> Iterator[Figure]:
    """How far states are from another decision."""
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
        noise = one.noise_along(one.worst)
        if noise:
            frame.moment(noise, "declared noise")
        title = "Distance to another decision"
        yield Figure(
            "Is it robust to its sensors?",
            title,
            f"{source.label(number)}, {_mode(one)}, {len(values):,} states",
            frame.render(title),
            "States left of the sensors' noise change their decision by noise alone.",
        )


def shifts(source: Source) -> Iterator[Figure]:
    """What disturbances cost in closed loop."""
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


def churn(source: Source) -> Iterator[Figure]:
    """What single updates changed elsewhere, while training."""
    for target in source.document["targets"]:
        lines = {
            series["id"]: list(zip(series["x"], series["y"], strict=True))
            for series in source.document["series"]
            if series["target"] == target["id"] and series["id"].startswith("churn")
        }
        if not any(lines.values()):
            continue
        frame = svg.chart(
            [x for own in lines.values() for x, _ in own],
            [y for own in lines.values() for _, y in own],
            xlabel="environment steps",
            ylabel="share, or deviations of values",
            zero=True,
        )
        for kind, (name, points) in enumerate(lines.items()):
            frame.line(points, name.removeprefix("churn: "), kind=kind, dots=len(points) < 40)
        title = "What one update changes elsewhere"
        yield Figure(
            "Is the policy steady?",
            title,
            f"{target['run']}, as logged while training, on states of the anchor set",
            frame.render(title),
            "Rising at a constant learning rate is a warning; 0 while returns fall is one too.",
        )


def methods(source: Source) -> Iterator[Figure]:
    """How alike the instabilities of different runs' policies are, on the same states."""
    rows, with_ = [], ""
    for metric, name in (("ranld_overlap", "direction shared"), ("ranld_jaccard", "top channels")):
        for entry in source.entries(metric):
            with_ = str(entry["params"]["with"])
            rows.append((f"{name}: {source.label(entry['target'])}", entry["value"]))
    for target in source.last() if rows else ():
        for metric, name in (("ranld_conc", "concentration"), ("ranld_cv", "unsteadiness")):
            found = next(source.entries(metric, target=target["id"], mode="action"), None)
            found = found or next(source.entries(metric, target=target["id"], mode="choice"), None)
            if found is not None:
                rows.append((f"{name}: {target['label']}", found["value"]))
    if rows:
        title = "Policies side by side"
        yield Figure(
            "Is it robust to its sensors?",
            title,
            f"compared with {with_}, on its states",
            svg.bars(
                rows,
                unit="0 to 1; unsteadiness: deviation / mean",
                title=title,
                format="{:.2f}".format,
            ),
            "Shared directions: the methods depend on the same inputs. Neither number alone ranks"
            " them.",
        )
