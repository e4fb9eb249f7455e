"""What a report is about: checkpoints of one or several runs, in order, with data to look at.

A checkpoint written with diagnostics on brings its data sets along. Of others, the newest still
have their replay rows beside them; whatever was found is shared with the rest, so that all are
looked at on the same transitions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supple import checkpoint
from supple.agents.base import Agent
from supple.checkpoint import MANIFEST, Checkpoint, following_format
from supple.configs.base import Settings
from supple.diagnostics.data import NEWEST, ROWS, DataSets, Transitions, draw, generator_for
from supple.diagnostics.online import stored_sets
from supple.envs.base import EnvSpec
from supple.errors import InputError
from supple.metrics import best_evaluation
from supple.replay import Replay, Segments
from supple.run import REPLAY_FOLDER
from supple.signed_json import sha256
from supple.trained import agent_of, as_recorded, on_this_machine, read_settings

MOST = 10
"""Checkpoints of a run that its report looks at: first, best, last, and some between."""
LEAST_SHARE = 512
"""Rows that each checkpoint gives to the common set, at least [spec of the diagnostics, 1.2]."""


@dataclass(kw_only=True)
class Target:
    """One checkpoint."""

    number: int
    path: Path
    run: Path
    run_name: str
    """Of its folder; with as much of the path in front as tells it from others."""
    label: str
    roles: tuple[str, ...]
    """``first``, ``best``, ``last``, ``baseline``; ``named`` where its folder was given."""
    settings: Settings
    spec: EnvSpec
    agent: Agent
    env_steps: int
    digest: str
    """Of its manifest, which holds those of its files."""
    progress: Mapping[str, Any]
    """Of its simulator, ``Env.progress()``."""
    data: DataSets = field(default_factory=DataSets)

    @property
    def looked_at_closely(self) -> bool:
        """Whether the slow measurements are made of it."""
        return bool({"last", "best", "baseline", "named"} & set(self.roles))


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    run: Path
    roles: tuple[str, ...]


def load_targets(
    paths: Sequence[Path], *, baseline: Path | None = None, device: str = ""
) -> tuple[list[Target], list[str]]:
    """The checkpoints that some folders stand for, by run and environment step.

    Args:
        paths: run folders (first, best, last and some between, ten in all), or checkpoint folders.
        baseline: a checkpoint folder to compare with.
        device: where networks act; by default on the run's own, or the CPU where that is missing.

    Returns:
        The targets, and in one line each what was left out and why.

    Raises:
        InputError: nothing there, or nothing intact.
    """
    notes: list[str] = []
    wanted: list[_Place] = []
    for path in paths:
        path = path.resolve()
        wanted += [_named(path)] if (path / MANIFEST).exists() else _of_run(path, notes)
    if baseline is not None:
        named = _named(baseline.resolve())
        wanted.append(dataclasses.replace(named, roles=("baseline",)))
    places: dict[Path, _Place] = {}
    for place in wanted:
        known = places.get(place.path)
        roles = place.roles if known is None else tuple(dict.fromkeys(known.roles + place.roles))
        places[place.path] = dataclasses.replace(place, roles=roles)
    runs = list(dict.fromkeys(place.run for place in places.values()))
    names, found = _told_apart(runs), []
    for place in places.values():
        loaded = checkpoint.load(place.path)
        found.append(_target(place, loaded, names, device=device))
    found.sort(key=lambda target: (runs.index(target.run), target.env_steps))
    for number, target in enumerate(found):
        target.number = number
    for run in runs:
        _give_data([target for target in found if target.run == run], notes)
    return found, notes


def _told_apart(runs: Sequence[Path]) -> dict[Path, str]:
    """Each run's name: ``supple compare`` calls one of every variant seed0."""
    parts, names = 1, [run.name for run in runs]
    while len(set(names)) < len(names):
        parts += 1
        names = ["/".join(run.parts[-parts:]) for run in runs]
    return dict(zip(runs, names, strict=True))


def _named(path: Path) -> _Place:
    checkpoint.read_header(path)  # says what is wrong with it
    return _Place(path, path.parent.parent, ("named",))


def _of_run(run: Path, notes: list[str]) -> list[_Place]:
    """First, best, last, and evenly spaced ones between, as far as they are intact."""
    read_settings(run)  # says "no run here" before "no checkpoint here"
    intact: dict[int, Path] = {}
    for path in checkpoint.list_checkpoints(run):
        try:
            intact[int(checkpoint.load(path).header["env_steps"])] = path
        except InputError as error:
            notes.append(f"damaged, left out: {error}")
    if not intact:
        checkpoint.newest_intact(run)  # says why there is none
    steps = sorted(intact)
    best = _best_step(run, steps)
    chosen = {steps[0], steps[-1], best}
    between = [step for step in steps if step not in chosen]
    count = min(MOST - len(chosen), len(between))
    chosen |= {between[(2 * k + 1) * len(between) // (2 * count)] for k in range(count)}
    if len(chosen) < len(steps):
        notes.append(
            f"{run.name}: {len(chosen)} of {len(steps)} checkpoints are looked at; give the folder"
            " of another to see it"
        )
    names = {"first": steps[0], "best": best, "last": steps[-1]}
    return [
        _Place(intact[step], run, tuple(name for name, at in names.items() if at == step))
        for step in sorted(chosen)
    ]


def _best_step(run: Path, steps: Sequence[int]) -> int:
    """The checkpoint nearest to the best evaluation; the last without any."""
    found = best_evaluation(run)
    if found is None:
        return steps[-1]
    at, _ = found
    return min(steps, key=lambda step: abs(step - at))


def _target(place: _Place, found: Checkpoint, names: Mapping[Path, str], *, device: str) -> Target:
    settings = as_recorded(on_this_machine(read_settings(place.run), device), found)
    with following_format(place.path):
        spec = EnvSpec.from_json(found.header["spec"])
        env_steps = int(found.header["env_steps"])
    agent = agent_of(found, settings, spec)
    with following_format(place.path):
        progress = found.progress
    label = f"step {env_steps:,}"
    if len(names) > 1:
        label = f"{names[place.run]}, {label}"
    target = Target(
        number=0,
        path=place.path,
        run=place.run,
        run_name=names[place.run],
        label=label,
        roles=place.roles,
        settings=settings,
        spec=spec,
        agent=agent,
        env_steps=env_steps,
        digest=sha256((place.path / MANIFEST).read_bytes()),
        progress=progress,
    )
    target.data = _own_data(target, found)
    return target


def _own_data(target: Target, found: Checkpoint) -> DataSets:
    """What the checkpoint brings along, or else its replay rows hold."""
    agent = target.agent
    with following_format(target.path):
        data = stored_sets(found.state.get("diagnostics") or {})
    data = data.to(agent.device)
    if data.recent is not None:
        return data
    try:
        replay = Replay(
            target.spec,
            agent.ring(target.settings.replay),
            extra_spec=agent.extra_spec,
            device=agent.device,
        )
        replay.load_state_dict(found.state["replay"])
        Segments(replay, target.run / REPLAY_FOLDER).load(found.header["replay"])
        if replay.vector_steps == 0:  # not kept, or forgotten by an on-policy agent before saving
            return data
        generator = generator_for(agent.device, target.settings.seed, target.env_steps, "recent")
        return dataclasses.replace(
            data, recent=draw(replay, ROWS, generator=generator, newest=NEWEST)
        )
    except (InputError, LookupError):
        return data


def _give_data(targets: Sequence[Target], notes: list[str]) -> None:
    """A set common to all checkpoints of a run, where they have no anchor of their own."""
    with_own = [target for target in targets if target.data.recent is not None]
    if not with_own:
        notes.append(
            f"{targets[0].run.name}: no checkpoint brings transitions and no replay rows are left:"
            " only what episodes show can be measured (--suite standard)"
        )
        return
    anchor = next((t.data.anchor for t in targets if t.data.anchor is not None), None)
    if anchor is None:
        share = max(LEAST_SHARE, ROWS // len(with_own))
        parts = [target.data.recent for target in with_own if target.data.recent is not None]
        anchor = Transitions.join([part.rows(_spread(len(part), share)) for part in parts])
    for target in targets:
        if target.data.anchor is None:
            target.data = dataclasses.replace(target.data, anchor=anchor)


def _spread(rows: int, wanted: int) -> slice:
    return slice(None, None, max(1, rows // wanted))
