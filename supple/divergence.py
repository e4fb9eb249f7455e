"""What happens when gradient steps are not finite: they are named, kept for replay, and cured.

The steps themselves are left out on the device (``agents/care.py``). Here, on the host, the first
of them is repeated under a watch that finds its first bad tensor, and written down with all it
takes to repeat it elsewhere; many in a row take the networks back to the newest checkpoint. A GPU
keeps the newest step alone: there it is the first that was the last one of its bout.

A dump is a folder in the format of checkpoints, ``<run>/nan/checkpoints/step_<k>``; a simulator's
bad rows leave one in ``<run>/nan/rows``, too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supple import checkpoint
from supple.agents.base import Agent
from supple.agents.care import CareSettings, Caught
from supple.checkpoint import Checkpoint
from supple.distributed import from_first, world
from supple.errors import DivergedError, InputError
from supple.region import eagerly
from supple.replay import Replay

DUMPS = "nan"
"""Folder of a run's dumps."""
MOST_DUMPS = 4
"""Per run: they show one fault again and again."""
KEPT_STEPS = 16
"""Newest vector steps in a dump."""
KEPT_ENVS = 64
"""Environments of those, at most."""


class Divergence:
    """Looks after one run's gradient steps.

    Args:
        settings: what to do.
        agent: whose steps.
        replay: the newest steps of a dump come from here.
        folder: the run's.
        header: what the run is, for dumps: plain values.
    """

    def __init__(
        self,
        settings: CareSettings,
        *,
        agent: Agent,
        replay: Replay,
        folder: Path,
        header: Mapping[str, Any],
    ) -> None:
        self._settings, self._agent, self._replay = settings, agent, replay
        self._folder, self._header = folder, dict(header)
        self._told = self._dumps = self._rollbacks = 0

    def after_update(self, env_steps: int) -> list[str]:
        """Act on what was left out since the last call; copies to the host.

        Returns:
            What to say of it.

        Raises:
            DivergedError: going back did not help, or there is nothing to go back to.
        """
        skips = self._agent.skips
        in_a_row = skips.longest()
        if in_a_row:
            skips.catch(lambda: copy.deepcopy(self._agent.state_dict()))
        news = []
        caught, skips.caught = skips.caught, None
        if (caught or in_a_row) and skips.skipped() >= 2 * self._told:
            self._told = skips.skipped()
            found = self._describe(caught, env_steps)
            news.append(
                f"a gradient step was not finite and was left out, {self._told} so far: {found}"
            )
        if in_a_row >= self._settings.patience:
            news.append(self._roll_back(in_a_row))
        return news

    def keep(self, bad_row: Mapping[str, Tensor], said: str, env_steps: int) -> str:
        """Write down a bad row of the simulator and the newest steps; returns what to say of it."""
        if not bad_row:
            return said
        state = {"row": dict(bad_row), "steps": newest_steps(self._replay)}
        where = self._save(self._header | {"said": said}, state, env_steps, kind="rows")
        return f"{said}; the row: supple doctor --nan-dump {where}" if where else said

    def row(self) -> dict[str, float]:
        """What to log: nothing, unless something was left out."""
        skipped = self._agent.skips.skipped()
        if not skipped:
            return {}
        found = {"agent/skipped_updates": float(skipped)}
        if self._rollbacks:
            found["agent/rollbacks"] = float(self._rollbacks)
        return found

    def state_dict(self) -> dict[str, int]:
        """What counts over the whole run, however often it is resumed."""
        return {"told": self._told, "dumps": self._dumps, "rollbacks": self._rollbacks}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from ``state_dict()``'s value."""
        self._told, self._dumps = state["told"], state["dumps"]
        self._rollbacks = state["rollbacks"]

    def _describe(self, caught: Caught | None, env_steps: int) -> str:
        if caught is None:
            return "not the newest one, which is all that a GPU keeps"
        where = self._dump(caught, env_steps)
        found = first_bad(self._agent, caught)
        return found + (f"; to repeat it: supple doctor --nan-dump {where}" if where else "")

    def _roll_back(self, in_a_row: int) -> str:
        what = f"{in_a_row} gradient steps in a row were not finite"
        remedy = "lower the learning rate, or look at supple doctor --nan-dump"
        if self._rollbacks >= self._settings.rollbacks:
            raise DivergedError(
                f"{what}, after {self._rollbacks} returns to a checkpoint; the last checkpoint is"
                f" intact: {remedy}"
            )
        # Averaged gradients are bad in all processes at once, so all come here together.
        found = self._newest_finite() if world().first else None
        name = from_first(found.path.name if found else "")
        if not name:
            raise DivergedError(
                f"{what}, before the first checkpoint: {remedy}; --checkpoint.every makes one"
                " earlier"
            )
        # Networks are in the first process's checkpoint alone.
        found = found or checkpoint.load(self._folder.parents[1] / checkpoint.FOLDER / name)
        self._rollbacks += 1
        factor = self._settings.lr_factor
        self._agent.roll_back(found.state["agent"], rate_factor=factor)
        return (
            f"{what}: the networks are those of {found.path.name} again, learning rates times"
            f" {factor:g} (--care.lr-factor)"
        )

    def _newest_finite(self) -> Checkpoint | None:
        """The newest intact checkpoint in which everything learned is finite."""
        for path in reversed(checkpoint.list_checkpoints(self._folder)):
            with contextlib.suppress(InputError):
                found = checkpoint.load(path)
                learned = {name: found.state["agent"][name] for name in self._agent.learned}
                if all(_is_finite(value) for _, value in named_tensors(learned)):
                    return found
        return None

    def _dump(self, caught: Caught, env_steps: int) -> Path | None:
        state = {
            "agent": dict(caught.state),
            "inputs": list(caught.inputs),
            "steps": newest_steps(self._replay),
        }
        return self._save(self._header, state, env_steps)

    def _save(
        self,
        header: Mapping[str, Any],
        state: Mapping[str, Any],
        env_steps: int,
        kind: str = "",
    ) -> Path | None:
        if self._dumps >= MOST_DUMPS:
            return None
        self._dumps += 1
        try:
            return checkpoint.save(self._folder / DUMPS / kind, env_steps, header, state)
        except OSError:  # a full disk must not end what could go on
            return None


def newest_steps(replay: Replay) -> dict[str, Tensor]:
    """The newest vector steps of the first environments, as they were stored: (K, N, ...)."""
    rows = replay.stored_rows()[-KEPT_STEPS:]
    found = {
        name: column[rows][:, :KEPT_ENVS].clone()
        for name, column in replay.columns.items()
        if name not in ("final_slot",)
    }
    for group in replay.storage:
        found[f"observation/{group}"] = replay.ring(group)[rows][:, :KEPT_ENVS].clone()
    return found


# --- naming ----------------------------------------------------------------------------------


def first_bad(agent: Agent, caught: Caught) -> str:
    """Repeat a step that was left out, and say where its first bad number came from.

    The agent is afterwards as it was.
    """
    for name, value in named_tensors(caught.state):
        if not _is_finite(value) and not name.startswith("metrics."):
            return f"{name} held NaN or infinity before the step"
    for number, value in enumerate(caught.inputs):
        if value.is_floating_point() and not _is_finite(value):
            row, *column = (~torch.isfinite(value)).nonzero()[0].tolist()
            at = f", column {column[0]}" if column else ""
            return f"its minibatch held NaN or infinity (input {number}, row {row}{at})"
    before, skips = copy.deepcopy(agent.state_dict()), agent.skips
    watch = FirstBad(agent)
    try:
        agent.load_state_dict(caught.state)
        with eagerly(agent), watch.modules(), watch:
            agent.repeat(caught.inputs)
    finally:
        agent.load_state_dict(before)
        skips.caught = None
    if watch.found or world().size == 1:
        return watch.found or "repeated here it is finite: rounding differs"
    return "this process's part of it is finite, those of the others are in ranks/*/nan"


def named_tensors(state: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    """Floating-point tensors of a nested state with their dotted names."""
    if isinstance(state, Tensor):
        return [(prefix, state)] if state.is_floating_point() else []
    if isinstance(state, Mapping):
        pairs: Any = state.items()
    elif isinstance(state, list | tuple):
        pairs = enumerate(state)
    else:
        return []
    dot = f"{prefix}." if prefix else ""
    return [item for key, each in pairs for item in named_tensors(each, f"{dot}{key}")]


class FirstBad(TorchDispatchMode):
    """Finds the first operation that makes NaN or infinity out of finite numbers.

    Args:
        agent: whose networks' names are told.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.found = ""
        self._names: dict[int, str] = {}
        self._owners: dict[int, str] = {}
        for attribute, network in vars(agent).items():
            if not isinstance(network, nn.Module):
                continue
            for name, part in network.named_modules():
                self._names[id(part)] = f"{attribute}.{name}".rstrip(".")
            for name, value in network.named_parameters():
                self._owners[value.untyped_storage().data_ptr()] = f"{attribute}.{name}"
        self._inside: list[str] = []
        self._newest = ""

    @contextlib.contextmanager
    def modules(self) -> Iterator[None]:
        """Follow which module is being run."""

        def enter(module: nn.Module, inputs: Any) -> None:
            self._inside.append(self._names.get(id(module), type(module).__name__))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self._newest = self._inside.pop()

        handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in tree_leaves((args, kwargs or {})) if _is_number(value)]
        # Before the call, which may write over what it is given.
        fine = not self.found and bool(given) and all(_is_finite(value) for value in given)
        out = func(*args, **(kwargs or {}))
        if fine and not all(_is_finite(value) for value in tree_leaves(out) if _is_number(value)):
            self.found = self._describe(func, given)
        return out

    def _describe(self, func: Any, given: list[Tensor]) -> str:
        owners = (self._owners.get(value.untyped_storage().data_ptr()) for value in given)
        weight = next((owner for owner in owners if owner), "")
        name = str(func).removeprefix("aten.").removesuffix(".default")
        largest = max((float(value.abs().max()) for value in given if value.numel()), default=0.0)
        if self._inside:
            where = f"in {self._inside[-1]}"
        elif weight:
            where = f"with {weight}"
        else:
            where = f"after {self._newest}" if self._newest else "outside of any module"
        return f"{name} {where} made the first one, from finite numbers of size up to {largest:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
