"""Plots of values: against returns, on their atoms, along the flow."""

from __future__ import annotations

from collections.abc import Iterator

from supple.diagnostics.report import svg
from supple.diagnostics.report.source import Figure, Source

SECTION = "Is the value right?"
MOST_DOTS = 600
STRETCHES = 20
"""Parts of an episode over which bias is averaged."""


def against_returns(source: Source) -> Iterator[Figure]:
    """Predictions and what followed; bias over the episode."""
    for target in source.last():
        for network in ("critic", "value"):
            found = dict(source.arrays_of(target["id"], f"{network}/all/joined/"))
            if not {"value", "return", "step"} <= found.keys() or len(found["value"]) < 2:
                continue
            value, earned, step = (found[name].double() for name in ("value", "return", "step"))
            every = -(-len(value) // MOST_DOTS)
            ends = [float(earned.min()), float(earned.max())]
            frame = svg.chart(
                [*ends],
                [*ends, float(value.min()), float(value.max())],
                xlabel="return that followed [scaled]",
                ylabel="predicted value",
            )
            pairs = zip(earned[::every].tolist(), value[::every].tolist(), strict=True)
            frame.dots(list(pairs), "a step", kind=3, radius=2.5)
            frame.line([(end, end) for end in ends], "right", kind=1)
            title = "Values against returns"
            rank = next(source.entries("value_rank", target=target["id"]), None)
            order = "" if rank is None else f", rank correlation {rank['value']:.2f}"
            of = f"{target['label']}, {len(value):,} steps of sampled episodes"
            yield Figure(
                SECTION,
                title,
                of + order,
                frame.render(title),
                "Above the line: too high. A cloud without a slope cannot order its own states.",
            )
            width = max(1.0, (float(step.max()) + 1) / STRETCHES)
            part = (step / width).long()
            bias = [
                ((k + 0.5) * width, float((value - earned)[part == k].mean()))
                for k in part.unique().tolist()
            ]
            frame = svg.chart(
                [x for x, _ in bias],
                [y for _, y in bias],
                xlabel="step of the episode",
                ylabel="value minus return [scaled]",
                zero=True,
            )
            frame.level(0.0, "right")
            frame.line(bias, dots=True)
            title = "Bias over the episode"
            yield Figure(
                SECTION,
                title,
                of,
                frame.render(title),
                "A bias at the start only concerns states that are seldom visited later.",
            )


def atoms(source: Source) -> Iterator[Figure]:
    """Where a categorical critic's predictions and targets put their mass."""
    for target in source.last():
        found = dict(source.arrays_of(target["id"], "critic/all/"))
        places = found.get("mean/support_atoms")
        lines = [
            ("targets", found.get("mean/support_target")),
            ("predictions, first member", found.get("0/support_prediction")),
        ]
        if places is None or any(mass is None for _, mass in lines):
            continue
        masses = {name: mass.tolist() for name, mass in lines if mass is not None}
        frame = svg.chart(
            places.tolist(),
            [each for mass in masses.values() for each in mass],
            xlabel="value [scaled reward]",
            ylabel="mean mass",
            zero=True,
        )
        for kind, (name, mass) in enumerate(masses.items()):
            frame.line(list(zip(places.tolist(), mass, strict=True)), name, kind=kind)
        title = "Mass on the value range"
        clip = next(source.entries("support_clip", target=target["id"]), None)
        clipped = "" if clip is None else f", {clip['value']:.1%} of the target mass clipped"
        yield Figure(
            SECTION,
            title,
            f"{target['label']}, {len(places)} atoms{clipped}",
            frame.render(title),
            "Mass at either end: the range is too narrow. All mass on a few atoms: too wide.",
        )


def flow(source: Source) -> Iterator[Figure]:
    """Paths from noise to values, and what becomes of an error on the way."""
    for target in source.last():
        for _, paths in source.arrays_of(target["id"], "flow/all/mean/paths"):
            steps = len(paths) - 1
            frame = svg.chart(
                [0, 1],
                [float(paths.min()), float(paths.max())],
                xlabel="flow time",
                ylabel="state [scaled reward]",
            )
            rows = paths[:, :3].unbind(1)
            for kind, row in enumerate(rows):
                for number, path in enumerate(row.unbind(1)):
                    points = [(k / steps, float(v)) for k, v in enumerate(path)]
                    frame.line(points, "" if number else f"state {kind + 1}", kind=kind)
            title = "Paths of the flow"
            straight = next(
                source.entries("flow_straight", target=target["id"], member="mean"), None
            )
            bent = "" if straight is None else f", straightness {straight['value']:.3f}"
            yield Figure(
                SECTION,
                title,
                f"{target['label']}, first member, {paths.shape[2]} noise samples each{bent}",
                frame.render(title),
                "Paths of one state should meet at its value. Straight from the start, the steps do"
                " no more than one would.",
            )
        points = sorted(
            (float(entry["params"]["tau"]), entry["value"])
            for entry in source.entries("flow_recovery", target=target["id"], member="mean")
        )
        if not points:
            continue
        frame = svg.chart(
            [x for x, _ in points],
            [1.0, *(y for _, y in points)],
            xlabel="flow time at which an error is put in",
            ylabel="share left at the end",
            zero=True,
        )
        frame.level(1.0, "nothing is recovered")
        frame.line(points, dots=True)
        title = "Recovery from errors on the way"
        yield Figure(
            SECTION,
            title,
            target["label"],
            frame.render(title),
            "Below 1 later steps correct earlier errors; above 1 they amplify them.",
        )
