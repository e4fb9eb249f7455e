"""Plots of learning: returns, features, new targets, gradients, learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from supple.diagnostics.report import svg
from supple.diagnostics.report.source import Figure, Source

COSINES = 32
"""Rows and columns that a matrix of gradients' cosines is averaged to."""


def returns(source: Source) -> Iterator[Figure]:
    """Returns, and how far they fell below what was already reached."""
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


def spectra(source: Source) -> Iterator[Figure]:
    """Singular values of the last features."""
    for target in source.last():
        found: dict[str, list[float]] = {}
        for name, array in source.arrays_of(target["id"], ""):
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


def overwriting(source: Source) -> Iterator[Figure]:
    """What changed between checkpoints."""
    runs, several = {t["id"]: t["run"] for t in source.document["targets"]}, len(source.runs()) > 1
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
        kinds = dict.fromkeys((runs[e["target"][1]], e["network"]) for e in entries)
        for run, network in kinds:
            own = {
                tuple(e["target"]): e["value"]
                for e in entries
                if (runs[e["target"][1]], e["network"]) == (run, network)
            }
            of = f"{run}, {network}" if several else network
            numbers = sorted({n for pair in own for n in pair})
            if len(own) < len(numbers):  # each checkpoint and the next only
                yield from _from_next_to_next(source, of, title, own, f"0 {low}, 1 {high}")
                continue
            matrix = [[own.get((a, b)) for b in numbers] for a in numbers]
            names = [svg.number(source.document["targets"][n]["env_step"]) for n in numbers]
            yield Figure(
                "Can it still learn?",
                title,
                f"{of}, checkpoints by environment steps",
                svg.heat(matrix, names, title=title, low=low, high=high),
                "Row: the earlier checkpoint; column: the later one.",
            )


def _from_next_to_next(
    source: Source, of: str, title: str, own: Mapping[tuple[int, ...], float], ends: str
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
        f"{of}, from each checkpoint to the next",
        frame.render(title),
        "Change that does not fade late in training: features are still being rewritten.",
    )


def learning_curves(source: Source) -> Iterator[Figure]:
    """How a network and untrained ones come to fit the same new targets."""
    for target in source.last():
        for network in ("critic", "value", "actor"):
            curves: dict[str, list[Tensor]] = {}
            for name, curve in source.arrays_of(target["id"], f"{network}/all/"):
                learner, _, what = name.partition("/")
                if what.startswith("fit_curve_smooth"):
                    who = "this network" if learner == "trained" else "untrained networks"
                    curves.setdefault(who, []).append(curve)
            if "this network" not in curves:
                continue
            means = {who: torch.stack(own).mean(0).tolist() for who, own in curves.items()}
            points = {who: [(0.0, 1.0), *map(tuple, own)] for who, own in means.items()}
            frame = svg.chart(
                [x for own in points.values() for x, _ in own],
                [y for own in points.values() for _, y in own],
                xlabel="gradient steps on new targets",
                ylabel="error / variance of the targets",
                zero=True,
            )
            for kind, (who, own) in enumerate(points.items()):
                frame.line(own, who, kind=kind, dots=True)
            title = f"How the {network} learns new targets"
            yield Figure(
                "Can it still learn?",
                title,
                f"{target['label']}, mean of {len(curves['this network'])} smooth functions",
                frame.render(title),
                "Where it ends far above the untrained ones, part of the ability to learn is gone.",
            )


def cosines(source: Source) -> Iterator[Figure]:
    """Whether single samples ask for the same change."""
    for target in source.last():
        for network in ("critic", "value", "actor"):
            for name, cosine in source.arrays_of(target["id"], f"{network}/all/0/"):
                if name != "grad_cos":
                    continue
                size = len(cosine) // COSINES
                if not size:
                    continue
                kept = cosine[: size * COSINES, : size * COSINES]
                shown = kept.unflatten(0, (COSINES, size)).unflatten(2, (COSINES, size))
                of = f"{target['label']}, first member, {len(cosine)} transitions in order of time"
                section, title = "Can it still learn?", f"Gradients of the {network}'s samples"
                yield Figure(
                    section,
                    title,
                    of,
                    svg.tiles(shown.mean((1, 3)).tolist(), title=title),
                    "Each tile is the mean cosine of two stretches of time. Blocks: stretches that"
                    " are fitted together; pale everywhere: samples leave each other alone.",
                )
                off = ~torch.eye(len(cosine), dtype=torch.bool)
                counts = torch.histc(cosine[off].float(), 40, -1, 1) / off.sum()
                frame = svg.chart(
                    [-1, 1],
                    counts.tolist(),
                    xlabel="cosine of two samples' gradients",
                    ylabel="share of pairs",
                    zero=True,
                )
                for index, count in enumerate(counts.tolist()):
                    frame.column(-1 + index / 20, -0.95 + index / 20, count)
                title = f"How alike the {network}'s gradients are"
                yield Figure(
                    section,
                    title,
                    of,
                    frame.render(title),
                    "Mass near 1: all samples ask for the same change. Much below 0: what helps one"
                    " sample harms another.",
                )


def sweep(source: Source) -> Iterator[Figure]:
    """Final returns over learning rates, where the run is part of a sweep."""
    for series in source.document["series"]:
        if series["id"] != "lr_sweep":
            continue
        points = list(zip(series["x"], series["y"], strict=True))
        frame = svg.chart(
            series["x"],
            series["y"],
            xlabel="learning rate",
            ylabel="final return",
            log=(True, False),
        )
        frame.line(points, dots=True)
        title = "Return by learning rate"
        found = next(source.entries("lr_sens", target=series["target"]), None)
        said = "" if found is None else f", sensitivity {found['value']:.2f}"
        yield Figure(
            "Is the step size stable?",
            title,
            f"{len(points)} rates{said}",
            frame.render(title),
            "A broad top: the rate matters little. Numbers of other grids do not compare.",
        )
