"""Golden vectors: what the trained policy does, written down so that every runtime can be replayed.

Shapes: ``T`` steps of one episode after another, ``D`` observation width, ``A`` commands, ``H``
memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from supple.deploy.plain import PlainPolicy
from supple.errors import InputError
from supple.rng import derive_seed
from supple.signed_json import sha256

STEPS = 256
"""How many are written."""
LEAST_STEPS, LEAST_STARTS = 100, 2
"""Fewer prove too little: the spec asks for 100 steps with a reset among them."""
SPREAD = 3.0
"""Seeded draws stay within so many standard deviations."""
TOLERANCE = 1e-5
"""Largest difference from a golden action, per unit of max(1, |action|); float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """Observations and what the trained policy answers."""

    observation: Tensor
    """(T, D) float32."""
    start: Tensor
    """(T,) bool: the first step of an episode, before which the memory is emptied."""
    action: Tensor
    """(T, A) float32, or choices (T,) int64."""
    command: Tensor
    """(T, A) float32: commands, or the score of each choice."""
    memory: Tensor
    """(T, H) float32: the memory after the step; H is 0 without one."""

    def to_bytes(self) -> bytes:
        """As safetensors."""
        tensors = {name: getattr(self, name).contiguous() for name in self.__slots__}
        return safetensors.torch.save(tensors)

    @staticmethod
    def from_bytes(data: bytes) -> Golden:
        """The inverse.

        Raises:
            InputError: not such a file, or too short to prove anything.
        """
        try:
            found = Golden(**safetensors.torch.load(data))
        except (SafetensorError, TypeError, ValueError) as error:
            raise InputError(f"golden.safetensors is damaged: {error}; export again") from error
        found._check()
        steps = len(found.observation)
        if steps < LEAST_STEPS or int(found.start.sum()) < LEAST_STARTS:
            raise InputError(
                f"golden.safetensors has {steps} steps and {int(found.start.sum())} starts:"
                f" expected at least {LEAST_STEPS} and {LEAST_STARTS}; export again"
            )
        return found

    def _check(self) -> None:
        floats = (2, torch.float32)
        choices = self.action.dtype == torch.int64
        wanted = {
            "observation": floats,
            "start": (1, torch.bool),
            "action": (1, torch.int64) if choices else floats,
            "command": floats,
            "memory": floats,
        }
        for name, (axes, dtype) in wanted.items():
            tensor: Tensor = getattr(self, name)
            rows = len(self.observation) if self.observation.ndim else 0
            if tensor.ndim != axes or tensor.dtype != dtype or len(tensor) != rows:
                raise InputError(
                    f"golden.safetensors is damaged: {name} is {tuple(tensor.shape)} of"
                    f" {tensor.dtype}, expected {axes} axes of {dtype} and {rows} rows; export"
                    " again"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"golden.safetensors is damaged: {name} is not finite; export again"
                )


@torch.no_grad()
def answer(
    trained: torch.nn.Module, policy: PlainPolicy, observation: Tensor, start: Tensor
) -> Golden:
    """What the training policy does with observations.

    Args:
        trained: the agent's own ``policy()``; its actions are what is written down.
        policy: the same in plain layers; turns actions into commands.
        observation: (T, D).
        start: (T,) bool.
    """
    actions, commands, memories = [], [], []
    memory = torch.zeros(1, policy.memory_width)
    for obs, first in zip(observation.split(1), start.tolist(), strict=True):
        if policy.memory_width:
            memory = torch.zeros_like(memory) if first else memory
            command = policy(obs, memory)[1]
            action, memory = trained(obs, memory)
        else:
            command, action = policy(obs)[1], trained(obs)
        if not policy.choices:
            command = policy.command(action)
        actions.append(action)
        commands.append(command)
        memories.append(memory)
    return Golden(
        observation=observation,
        start=start,
        action=torch.cat(actions),
        command=torch.cat(commands),
        memory=torch.cat(memories),
    )


# --- observations without a simulator --------------------------------------------------------


def recorded(
    folder: Path, manifest: Mapping[str, Any], groups: Sequence[str]
) -> tuple[Tensor, Tensor] | None:
    """Consecutive steps of one environment around its newest reset, from the run's replay rows.

    Args:
        folder: where the run keeps its rows.
        manifest: the checkpoint's list of them.
        groups: observation groups that enter the policy.

    Returns:
        Observations (STEPS, D) and starts (STEPS,); None where the rows hold no such stretch.
    """
    newer: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in _segments(folder, manifest["segments"], groups):
        newer.insert(0, rows)
        observation, start, valid = (torch.cat(parts) for parts in zip(*newer, strict=True))
        window = _around_start(start, valid)
        if window is not None:
            begin = torch.zeros(STEPS, dtype=torch.bool)
            begin[0] = True
            return observation[window], start[window] | begin
    return None


def _segments(
    folder: Path, entries: Sequence[Mapping[str, Any]], groups: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Observation, start and validity of environment 0, newest file first, while intact."""
    for entry in reversed(entries):
        path = folder / str(entry["name"])
        data = path.read_bytes() if path.is_file() else b""
        if sha256(data) != entry["sha256"]:
            return
        tensors = safetensors.torch.load(data)
        step = tensors["column/step_in_episode"][:, 0]
        rows = torch.cat([tensors[f"observation/{g}"][:, 0] for g in groups], dim=-1).float()
        # What the quarantine left out is stored as zeros.
        yield rows, step == 0, torch.isfinite(rows).all(1) & (rows != 0).any(1)


def _around_start(start: Tensor, valid: Tensor) -> slice | None:
    """The newest window of STEPS rows with a reset well inside."""
    for row in reversed(start.nonzero().flatten().tolist()):
        begin = min(row - STEPS // 4, len(start) - STEPS)
        if begin >= 0 and row > begin and bool(valid[begin : begin + STEPS].all()):
            return slice(begin, begin + STEPS)
    return None


def drawn(
    policy: PlainPolicy, terms: Sequence[Mapping[str, Any]], seed: int
) -> tuple[Tensor, Tensor]:
    """Seeded draws from a normal distribution with the normaliser's statistics, cut at SPREAD.

    Older frames of a history repeat what was drawn for them before, as they would on the robot.

    Returns:
        Observations (STEPS, D) and starts (STEPS,): the first step and one in the middle.
    """
    random = torch.Generator().manual_seed(derive_seed(seed, "golden"))
    noise = torch.randn(STEPS, policy.inputs, generator=random).clamp(-SPREAD, SPREAD)
    start = torch.zeros(STEPS, dtype=torch.bool)
    start[[0, STEPS // 2]] = True
    if policy.normaliser:
        noise = policy.normaliser.mean + torch.tensor(policy.normaliser.std) * noise
    for newer, older in history_pairs(terms):
        noise[1:, older] = noise[:-1, newer]
        noise[start, older] = noise[start, newer]
    return noise, start


def channel_of(term: Mapping[str, Any]) -> tuple[str, int]:
    """A term's channel and how many frames old it is."""
    age = term.get("history") or 0
    return str(term["name"]).removesuffix(f"@{age}" if age else ""), age


def history_pairs(terms: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """A channel of one frame and the same channel one frame older, newest frames first."""
    places: dict[tuple[str, int], int] = {}
    for index, term in enumerate(terms):
        places[channel_of(term)] = index
    return [
        (places[name, age - 1], places[name, age])
        for name, age in sorted(places, key=itemgetter(1))
        if age > 0 and (name, age - 1) in places
    ]
