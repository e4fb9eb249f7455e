"""Observation terms, put together from the contract's entries: what a robot must feed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from supple.deploy.golden import channel_of
from supple.deploy.joints import is_number
from supple.envs.base import Box, Channel, Deployment, EnvSpec
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
    last_action: Mapping[str, Any] | None
    """Where it shows the policy's own actions: ``factor`` and ``steps`` of ``LastAction``, and
    ``bounded``, whether to [-1, 1] first."""


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
    for channel in spec.channels or ():
        _check_last_action(channel, spec)
    commands = (spec.deployment or Deployment()).commands
    named = commands is None or isinstance(commands, Mapping)
    if not named or any(not isinstance(each, Mapping | None) for each in (commands or {}).values()):
        raise InputError(
            f"EnvSpec.deployment.commands is {commands!r}, expected names with their ranges, as in"
            ' {"base_velocity": {"lin_vel_x": [-0.5, 1.0]}}'
        )
    for name, ranges in (commands or {}).items():
        for entry, limits in (ranges or {}).items():
            _check_range(f"{name}.{entry}", limits)


def _check_range(name: str, limits: Any) -> None:
    """A pair of numbers, or null; what is no pair is the simulator's own word for something."""
    numbers = isinstance(limits, list | tuple) and all(map(is_number, limits))
    if numbers and len(limits) == 2 and not limits[0] <= limits[1]:
        raise InputError(
            f"EnvSpec.deployment.commands: the range of {name} is {limits!r}, expected [low, high]"
            " or null"
        )


def _check_last_action(channel: Channel, spec: EnvSpec) -> None:
    shown, what = channel.last_action, f"EnvSpec.channels: the last_action of {channel.name}"
    if shown is None:
        return
    if not isinstance(spec.action, Box):
        raise InputError(f"{what} cannot be told of a policy that chooses")
    whole = type(shown.index) is int and type(shown.steps) is int
    if not whole or not 0 <= shown.index < spec.action.size or shown.steps < 1:
        raise InputError(
            f"{what} has index {shown.index!r} and steps {shown.steps!r}, expected one of"
            f" {spec.action.size} actions, from 0, and steps >= 1"
        )
    if not is_number(shown.factor) or not 0 < shown.factor < math.inf:
        raise InputError(f"{what} has the factor {shown.factor!r}, expected a number above 0")
    if channel.scale is None or channel.clip is None:
        raise InputError(f"{what} needs the channel's scale and clip as well: 1 and false for none")


def terms_of(contract: Mapping[str, Any]) -> list[Term]:
    """The policy's terms in the order of their first entries."""
    entries: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    observed = contract["observation"]
    shown = {
        each["observation"]: {**each, "bounded": clips_actions(contract)}
        for each in observed["last_action"] or ()
    }
    for place, entry in enumerate(observed["terms"]):
        name = (entry["source"] or {}).get("term") or channel_of(entry)[0]
        own = {**entry, "last_action": shown.get(place)}
        entries.setdefault((entry["group"], name), []).append(own)
    return [_term(name, own) for (_, name), own in entries.items()]


def clips_actions(contract: Mapping[str, Any]) -> bool:
    """Whether what the policy gives may be beyond what the simulator takes."""
    squash, clip, *_ = contract["action"]["pipeline"]
    return clip["low"] is not False and squash["function"] != "tanh"


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
        last_action=newest[0]["last_action"],
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
    line = f"{term.name} ({size}): {clip}, {'then ' if term.clip else ''}{scale}"
    return f"{line}; {_whose(term.last_action)}" if term.last_action else line


def _whose(shown: Mapping[str, Any]) -> str:
    before = "the step" if shown["steps"] == 1 else f"{shown['steps']} steps"
    what = f"the policy's own action of {before} before, 0 where there is none"
    what += ", within [-1, 1]" if shown["bounded"] else ""
    what += "" if shown["factor"] == 1 else f", times {shown['factor']:g} before that"
    return f"{what}, which supple_runner fills in"
