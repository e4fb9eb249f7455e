"""Observation terms, put together from the contract's entries: what a robot must feed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from supple.deploy.golden import channel_of
from supple.deploy.joints import is_number
from supple.envs.base import Deployment, EnvSpec
from supple.errors import InputError

SHOWN = 8
"""Names of unknown terms in a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """What one function of the simulator's gives; None is unknown."""

    name: str
    channels: tuple[str, ...]
    """Its entries in one frame, in order."""
    frames: int
    """Of its history; 1 without one."""
    scale: list[float] | None
    """What each entry is multiplied by, clipped."""
    clip: list[float] | bool | None
    """[low, high] before the scale; False: none."""
    params: Mapping[str, Any] | None
    """What the function is called with."""


def check_terms(spec: EnvSpec) -> None:
    """Scales, clips and commands, which may be written by hand, are what they should be.

    Raises:
        InputError: names the first that is not.
    """
    for channel in spec.channels or ():
        scale, clip = channel.scale, channel.clip
        if scale is not None and not (is_number(scale) and math.isfinite(scale)):
            raise InputError(
                f"EnvSpec.channels: the scale of {channel.name} is {scale!r}, expected a number"
            )
        if clip is None or clip is False:
            continue
        pair = isinstance(clip, Sequence) and len(clip) == 2 and all(map(is_number, clip))
        if not pair or not clip[0] <= clip[1]:
            raise InputError(
                f"EnvSpec.channels: the clip of {channel.name} is {clip!r}, expected [low, high],"
                " or false for none"
            )
    commands = (spec.deployment or Deployment()).commands
    named = commands is None or isinstance(commands, Mapping)
    if not named or any(not isinstance(each, Mapping | None) for each in (commands or {}).values()):
        raise InputError(
            f"EnvSpec.deployment.commands is {commands!r}, expected names with their ranges, as in"
            ' {"base_velocity": {"lin_vel_x": [-0.5, 1.0]}}'
        )


def terms_of(contract: Mapping[str, Any]) -> list[Term]:
    """The policy's terms in the order of their first entries."""
    entries: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in contract["observation"]["terms"]:
        name = (entry["source"] or {}).get("term") or channel_of(entry)[0]
        entries.setdefault((entry["group"], name), []).append(entry)
    return [_term(name, own) for (_, name), own in entries.items()]


def _term(name: str, own: Sequence[Mapping[str, Any]]) -> Term:
    ages = [entry["history"] or 0 for entry in own]
    newest = [entry for entry, age in zip(own, ages, strict=True) if age == min(ages)]
    scale, clips = ([entry[key] for entry in newest] for key in ("scale", "clip"))
    clip = clips[0] if clips.count(clips[0]) == len(clips) else None
    return Term(
        name=name,
        channels=tuple(channel_of(entry)[0] for entry in newest),
        frames=1 + max(ages),
        scale=None if None in scale else [float(each) for each in scale],
        # The contract has infinity as text.
        clip=[float(each) for each in clip] if isinstance(clip, list) else clip,
        params=(newest[0]["source"] or {}).get("params", {}),
    )


def layouts(contract: Mapping[str, Any], terms: Sequence[Term]) -> list[str]:
    """How histories lie if they begin with the oldest frame: ``term_major``, ``time_major``.

    Both where there is one frame or one term; none where they lie otherwise.
    """
    length = max(term.frames for term in terms)
    if contract["history"]["length"] != length:
        return []
    found = [channel_of(entry) for entry in contract["observation"]["terms"]]
    by_term = [
        [(channel, age) for age in reversed(range(term.frames)) for channel in term.channels]
        for term in terms
    ]
    by_time = [
        [(channel, age) for term in terms for channel in term.channels]
        for age in reversed(range(length))
    ]
    both = {"term_major": by_term, "time_major": by_time}
    return [name for name, blocks in both.items() if found == list(chain(*blocks))]


def feed(contract: Mapping[str, Any]) -> list[str]:
    """What to feed, a line for each term; terms of which nothing is known share the last one."""
    terms = terms_of(contract)
    unknown = [term.name for term in terms if term.scale is None and term.clip is None]
    lines = [_line(term) for term in terms if term.name not in unknown]
    if unknown:
        which = ", ".join(unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
        lines.append(f"{len(unknown)} of {len(terms)} terms, scale and clip not known: {which}")
    return lines


def _line(term: Term) -> str:
    size = f"{len(term.channels)} wide"
    size += f", {term.frames} frames" if term.frames > 1 else ""
    clip = "clip not known" if term.clip is None else "not clipped"
    if isinstance(term.clip, list):
        clip = "clipped to [{:g}, {:g}]".format(*term.clip)
    scale = "scale not known"
    if term.scale is not None:
        same = len(set(term.scale)) == 1
        text = f"{term.scale[0]:g}" if same else f"[{', '.join(f'{x:g}' for x in term.scale)}]"
        scale = "not scaled" if same and term.scale[0] == 1 else f"times {text}"
    return f"{term.name} ({size}): {clip}, {'then ' if term.clip else ''}{scale}"
