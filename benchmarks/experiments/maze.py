"""A walled unit square: the problem of both experiments, and how to walk it.

A step that crosses a wall outside its gap keeps its first coordinate. The reward is -1 per step;
an episode terminates within ``REACH`` of the goal.

Shapes: ``N`` positions, ``T`` transitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from supple.envs.toy_base import State, ToyEnv
from supple.files import replace_file
from supple.rng import derive_seed

STRIDE = 0.04
REACH = 0.06
GOAL = (0.9, 0.1)
TIME_LIMIT = 200
CONTROL_NOISE = 0.01
"""Standard deviation of each coordinate of a step of ``MazeEnv``."""


class Wall(NamedTuple):
    """A wall at first coordinate ``at``, open where the second is in (``low``, ``high``]."""

    at: float
    low: float
    high: float


Maze = tuple[Wall, ...]
"""Walls from left to right."""
ONE_WALL: Maze = (Wall(0.5, 0.8, 1.0),)
THREE_WALLS: Maze = (Wall(0.25, 0.8, 1.0), Wall(0.5, 0.0, 0.2), Wall(0.75, 0.8, 1.0))


def moved(maze: Maze, at_N2: Tensor, by_N2: Tensor) -> Tensor:
    """Where a step ends, (..., 2)."""
    x, next_x = at_N2[..., 0], (at_N2[..., 0] + by_N2[..., 0]).clamp(0, 1)
    next_y = (at_N2[..., 1] + by_N2[..., 1]).clamp(0, 1)
    for wall in maze:
        crosses = (x < wall.at) != (next_x < wall.at)
        gap = (next_y > wall.low) & (next_y <= wall.high)
        next_x = torch.where(crosses & ~gap, x, next_x)
    return torch.stack((next_x, next_y), dim=-1)


def reached(at_N2: Tensor) -> Tensor:
    """Whether the goal is within reach, (...)."""
    distance: Tensor = torch.linalg.vector_norm(at_N2 - at_N2.new_tensor(GOAL), dim=-1)
    return distance < REACH


def towards(maze: Maze, at_N2: Tensor, goal_N2: Tensor) -> Tensor:
    """Unit directions to goals, through the middle of each gap between, (..., 2)."""
    x, goal_x = at_N2[..., 0], goal_N2[..., 0]
    next_N2 = goal_N2.expand_as(at_N2)
    for from_left, walls in ((True, maze[::-1]), (False, maze)):  # the nearest wall last
        for wall in walls:
            beyond = STRIDE / 2 if from_left else -STRIDE / 2
            gap = at_N2.new_tensor((wall.at + beyond, (wall.low + wall.high) / 2))
            between = ((x < wall.at) == from_left) & ((goal_x < wall.at) != from_left)
            next_N2 = torch.where(between[..., None], gap, next_N2)
    return torch.nn.functional.normalize(next_N2 - at_N2, dim=-1)


class MazeEnv(ToyEnv):
    """Control: actions in [-1, 1]^2 of ``STRIDE`` each, starts in the left half.

    Args:
        num_envs: how many side by side.
        device: where tensors live.
        maze: the walls.
    """

    def __init__(self, num_envs: int, device: torch.device, maze: Maze = ONE_WALL) -> None:
        super().__init__(
            f"maze/{len(maze)}",
            num_envs,
            device,
            observation={"policy": 2},
            bounds=(1.0, 1.0),
            max_episode_steps=TIME_LIMIT,
        )
        self.maze = maze

    def _start(self) -> State:
        low, high = torch.tensor([[0.0, 0.0], [0.5, 1.0]], device=self.spec.device)
        unit_N2 = (self._uniform(2) + 1) / 2
        return {"at": low + (high - low) * unit_N2, "step": self._zeros(torch.int64)}

    def _advance(self, state: State, action: Tensor) -> tuple[State, dict[str, Tensor]]:
        by_N2 = STRIDE * action.clamp(-1, 1) + CONTROL_NOISE * self._normal(2)
        at_N2, step = moved(self.maze, state["at"], by_N2), state["step"] + 1
        terminated = reached(at_N2)
        outcome = {
            "reward": self._zeros(torch.float32) - 1,
            "terminated": terminated,
            "truncated": step >= TIME_LIMIT,
            "success": terminated,
        }
        return {"at": at_N2, "step": step}, outcome

    def _observe(self, state: State) -> dict[str, Tensor]:
        return {"policy": state["at"].clone()}


def one_wall(num_envs: int, device: torch.device) -> MazeEnv:
    """``supple train benchmarks.experiments.maze:one_wall``."""
    return MazeEnv(num_envs, device)


def three_walls(num_envs: int, device: torch.device) -> MazeEnv:
    """``supple train benchmarks.experiments.maze:three_walls``."""
    return MazeEnv(num_envs, device, THREE_WALLS)


def prior_data(maze: Maze, transitions: int, seed: int) -> Mapping[str, Tensor]:
    """Transitions of noisy walkers from the left half towards random goals of their own.

    Half of the walkers know the gaps, the others run into the walls, so that about a quarter of
    the episodes pass the last wall. An episode ends after 60 steps, or within reach of ``GOAL``.

    Returns:
        The tensors of a ``--replay.prefill`` file, (T, ...), episode after episode.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "prior data"))
    length, walkers = 60, math.ceil(transitions / 20)
    at_N2 = torch.rand(walkers, 2, generator=generator) * torch.tensor([0.5, 1.0])
    goal_N2 = torch.rand(walkers, 2, generator=generator)
    knows_N1 = torch.rand(walkers, 1, generator=generator) < 0.5
    alive_N = torch.ones(walkers, dtype=torch.bool)
    columns: dict[str, list[Tensor]] = {}
    for step in range(length):
        noise_N2 = torch.randn(walkers, 2, generator=generator)
        way_N2 = torch.where(knows_N1, towards(maze, at_N2, goal_N2), towards((), at_N2, goal_N2))
        action_N2 = (way_N2 + 0.5 * noise_N2).clamp(-1, 1)
        slip_N2 = CONTROL_NOISE * torch.randn(walkers, 2, generator=generator)
        next_N2 = moved(maze, at_N2, STRIDE * action_N2 + slip_N2)
        ended_N = reached(next_N2)
        row = {
            "observation/policy": at_N2,
            "next_observation/policy": next_N2,
            "action": action_N2,
            "reward": torch.full((walkers,), -1.0),
            "terminated": ended_N,
            "truncated": torch.full_like(ended_N, step == length - 1),
            "alive": alive_N,
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
        at_N2, alive_N = next_N2, alive_N & ~ended_N
    by_walker = {name: torch.stack(rows, dim=1).flatten(0, 1) for name, rows in columns.items()}
    alive = by_walker.pop("alive")
    return {name: rows[alive][:transitions].contiguous() for name, rows in by_walker.items()}


def write_prior_data(path: Path, maze: Maze, transitions: int, seed: int) -> None:
    """What ``--replay.prefill`` reads."""
    replace_file(path, save(dict(prior_data(maze, transitions, seed))))
