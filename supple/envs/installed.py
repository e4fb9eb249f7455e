"""Whether a simulator's packages are here and go together, and what to say where they do not."""

from __future__ import annotations

import importlib.util
import re
from typing import NamedTuple

from supple import machine
from supple.errors import InputError, how_to_install


class Clash(NamedTuple):
    """Two packages that do not work together, though their metadata allow it."""

    tasks: str
    """A pattern of those that cannot be built."""
    package: str
    last: tuple[int, ...]
    """Its newest version that is known to fail."""
    other: str
    first: tuple[int, ...]
    """The version of the other from which on it does."""
    what: str
    remedy: str


CLASHES = (
    # It reads MjModel.flex_vertedge, which is gone.
    Clash(
        *("dmc/", "dm-control", (1, 0, 50), "mujoco", (4,)),
        what="builds no task",
        remedy="pip install 'mujoco>=3.17,<4'",
    ),
    # It asserts that a joint's type, a number, is among members of an enumeration.
    Clash(
        *("gym/(.*:)?(Fetch|Hand|FrankaKitchen)", "gymnasium-robotics", (1, 4, 2)),
        *("mujoco", (3, 12)),
        what="builds no Fetch, Hand and Kitchen task",
        remedy="pip install 'mujoco<3.12'",
    ),
)


def clashes(simulator: str, task: str = "") -> str:
    """What is known not to work together of what is installed, and what to do; empty: nothing.

    Args:
        simulator: of which it is asked.
        task: only where it is why this one cannot be built.
    """
    told = []
    for clash in CLASHES:
        here = machine.installed((clash.package, clash.other))
        ours = clash.tasks.startswith(f"{simulator}/") and (not task or re.match(clash.tasks, task))
        if not ours or len(here) < 2:
            continue
        package, other = here[clash.package], here[clash.other]
        if _numbers(package) <= clash.last and _numbers(other) >= clash.first:
            told.append(
                f"{clash.package} {package} {clash.what} with {clash.other} {other}: {clash.remedy}"
            )
    return "; ".join(told)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def is_installed(package: str) -> bool:
    """Whether it could be imported; nothing is imported to find out."""
    return importlib.util.find_spec(package) is not None


def status(package: str, simulator: str) -> str:
    """For ``supple list``: installed, or how to install it."""
    if is_installed(package):
        return "installed"
    return f"not installed: {how_to_install(simulator)}, or make sim-{simulator}"


def require(package: str, simulator: str, task_id: str) -> None:
    """Refuse to build a task whose simulator is missing.

    Raises:
        InputError: names the extra to install.
    """
    if not is_installed(package):
        raise InputError(f"{task_id} needs {package}, {status(package, simulator)}")
