"""``--env.config KEY=VALUE ...``: a simulator's own configuration, changed from the command line.

A key is a keyword argument of what makes the environment, or, with dots, an entry of configuration
objects and dicts within each other. A value is JSON where it parses as such, else text. What is
there already says which keys exist, and which kind of value fits.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from supple.errors import InputError

FLAG = "--env.config"
_UNKNOWN = (None, inspect.Parameter.empty, dataclasses.MISSING)
"""Values that do not tell which kind belongs there."""


def pairs(config: Sequence[str]) -> dict[str, str]:
    """Keys and the text of their values.

    Raises:
        InputError: one is not ``KEY=VALUE``, or a key comes twice.
    """
    found: dict[str, str] = {}
    for each in config:
        key, equals, text = str(each).partition("=")
        if not (key and equals):
            raise InputError(f"{FLAG} takes KEY=VALUE, got {each}")
        if key in found:
            raise InputError(f"{FLAG} has {key} twice: leave one out")
        found[key] = text
    return found


def override(
    target: Any, config: Sequence[str], task_id: str, *, fixed: Mapping[str, str]
) -> list[str]:
    """Change a configuration in place.

    Args:
        target: an object or dict, of objects, dicts and plain values.
        config: ``KEY=VALUE`` each.
        task_id: named in errors.
        fixed: keys that are set elsewhere, and where.

    Returns:
        The entries of ``target`` itself that were changed, or changed within.

    Raises:
        InputError: a key is unknown (with the nearest names) or fixed, or a value does not fit.
    """
    changed = []
    for key, text in pairs(config).items():
        if key in fixed:
            raise InputError(f"{FLAG} {key}: {task_id} takes it from {fixed[key]}")
        changed.append(_set(target, key, text, task_id, before=""))
    return changed


def arguments(
    factory: Callable[..., Any],
    config: Sequence[str],
    task_id: str,
    *,
    fixed: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The keyword arguments that change what a callable makes.

    Args:
        factory: whose signature tells them; of a class, also those it hands on to its bases.
        config: ``KEY=VALUE`` each.
        task_id: named in errors.
        fixed: arguments that are set elsewhere, and where.
        defaults: in place of the signature's, and further ones.

    Raises:
        InputError: as ``override``.
    """
    if not config:
        return {}
    found, takes_any = parameters(factory)
    takes_more = takes_any and not isinstance(factory, type)
    found |= defaults or {}
    known = {name: default for name, default in found.items() if name not in fixed}
    for key in pairs(config):
        name, dot, _ = key.partition(".")
        if dot and name in known:  # changed in place, and the callable's own
            known[name] = copy.deepcopy(known[name])
        elif takes_more and not dot:
            known.setdefault(name, None)
    return {name: known[name] for name in override(known, config, task_id, fixed=fixed)}


def parameters(factory: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Keyword arguments with their defaults, and whether any others are taken, too."""
    found: dict[str, Any] = {}
    chain = [factory]
    if isinstance(factory, type):
        own: list[Any] = [vars(kind).get("__init__") for kind in factory.__mro__[:-1]]
        chain = [function for function in own if function is not None]
        if not chain:  # object's, which takes nothing
            return {}, False
    for function in chain:
        taken = inspect.signature(function).parameters.values()
        named = {
            each.name: each.default
            for each in taken
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self"
        }
        found = named | found
        if not any(each.kind is each.VAR_KEYWORD for each in taken):
            return found, False
    return found, True


def nearest(name: str, choices: Sequence[str], prefix: str = "") -> str:
    """``; did you mean …?`` with the nearest names, each after the prefix; empty without any."""
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.5)
    if not found:
        return ""
    return "; did you mean " + " or ".join(prefix + lower[each] for each in found) + "?"


def _set(node: Any, path: str, text: str, task_id: str, *, before: str) -> str:
    """Set an entry somewhere below a node; the node's own entry on the way there."""
    entries = _entries(node)
    # Keys of dicts may hold dots themselves, as patterns of joints' names do.
    on_the_way = [name for name in entries if path == name or path.startswith(name + ".")]
    if not on_the_way:
        near = nearest(path.partition(".")[0], list(entries), before)
        near = near or f"; there are {', '.join(entries) or 'none'}"
        raise InputError(f"{FLAG} {before}{path}: {task_id} knows no such entry{near}")
    name = max(on_the_way, key=len)
    if path != name:
        rest = path.removeprefix(name + ".")
        _set(entries[name], rest, text, task_id, before=f"{before}{name}.")
        return name
    value = _value(text, entries[name], f"{FLAG} {before}{path}: {task_id}")
    try:
        if hasattr(node, "keys"):
            node[name] = value
        else:
            setattr(node, name, value)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{FLAG} {before}{path}: {task_id} refuses {text}: {error}") from error
    return name


def _entries(node: Any) -> Mapping[str, Any]:
    """Of a dict, or of what is like one; else an object's public attributes."""
    if hasattr(node, "keys"):
        names = list(node.keys())  # a dict, or something that only resembles one
        return {name: node[name] for name in names if isinstance(name, str)}
    public = getattr(node, "__dict__", {})
    return {name: value for name, value in public.items() if not name.startswith("_")}


def _value(text: str, old: Any, where: str) -> Any:
    """A value of the kind that is there.

    Raises:
        InputError: it is of another.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if value is None or any(old is each for each in _UNKNOWN):
        return value
    if isinstance(old, str):
        return value if isinstance(value, str) else text
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(old, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(old, int | float):
        fits, kind = number, "a number"
        value = float(value) if number and isinstance(old, float) else value
    elif isinstance(old, list | tuple):
        fits, kind = isinstance(value, list), "a list such as [1, 2]"
        value = tuple(value) if fits and isinstance(old, tuple) else value
    elif hasattr(old, "keys"):
        fits, kind = isinstance(value, dict), "one of its keys after a dot, an object or null"
    else:
        fits, kind = False, "one of its keys after a dot, or null"
    if not fits:
        raise InputError(f"{where} expects {kind}, got {text}")
    return value
