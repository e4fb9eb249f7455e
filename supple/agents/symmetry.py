"""Robots that are their own mirror image: half of what they lived through is learned from mirrored.

What a step to the left taught then counts for steps to the right, and no batch grows. A mirroring
is a signed permutation of each observation group and of the action, which a function of the user's
does and ``mirrors`` finds out.

Source: data augmentation of arXiv:2403.04359, which there doubles the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from supple.envs.base import EnvSpec
from supple.errors import InputError

ACTION = "action"
"""How the function is told that rows are actions."""


@dataclass(frozen=True, slots=True)
class SignedPermutation:
    """Moves each number of a row to one place, as it is or negated."""

    index: Tensor
    """Where each number of the image comes from, (D,) int64."""
    sign: Tensor
    """1 or -1, (D,)."""

    def __call__(self, rows: Tensor) -> Tensor:
        """The image of rows, (..., D)."""
        return rows.index_select(-1, self.index) * self.sign

    @staticmethod
    def side_by_side(parts: Sequence[SignedPermutation]) -> SignedPermutation:
        """Of rows whose columns are those of all parts, in their order."""
        widths = [len(part.index) for part in parts]
        starts = [sum(widths[:number]) for number in range(len(parts))]
        moved = [part.index + start for part, start in zip(parts, starts, strict=True)]
        return SignedPermutation(torch.cat(moved), torch.cat([part.sign for part in parts]))

    @staticmethod
    def of_one(sign: float, device: torch.device) -> SignedPermutation:
        """Of a single number, which becomes ``sign`` times itself."""
        return SignedPermutation(
            torch.zeros(1, dtype=torch.int64, device=device), torch.full((1,), sign, device=device)
        )


class Mirroring(NamedTuple):
    """Of what an agent's networks see and do."""

    actor_obs: SignedPermutation
    critic_obs: SignedPermutation
    action: SignedPermutation


def mirroring(
    name: str, spec: EnvSpec, actor: Sequence[str], critic: Sequence[str], device: torch.device
) -> Mirroring:
    """``mirrors``, for the observation groups that an actor and a critic see."""
    image = mirrors(name, spec, device)
    observed, privileged = (
        SignedPermutation.side_by_side([image[group] for group in groups])
        for groups in (actor, critic)
    )
    return Mirroring(observed, privileged, image[ACTION])


def mirrors(name: str, spec: EnvSpec, device: torch.device) -> Mapping[str, SignedPermutation]:
    """What a mirroring does to each observation group and to actions, by name.

    Args:
        name: ``module:callable`` of a function ``mirror(group, rows) -> rows``. ``group`` is an
            observation group or ``"action"``, ``rows`` a tensor (M, D) of what the environment
            gives, or of what the policy commands, in [-1, 1].
        spec: of the environment.
        device: where the permutations will be needed.

    Raises:
        InputError: there is no such function, or it does anything else.
    """
    from supple.envs.custom import load

    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise InputError(f"--agent.symmetry must look like module:callable, got {name}")
    function = load(name, "--agent.symmetry")
    widths = {**spec.observation, ACTION: spec.action.size}
    return {group: _found(function, name, group, width, device) for group, width in widths.items()}


def _found(
    function: Callable[..., Tensor], name: str, group: str, width: int, device: torch.device
) -> SignedPermutation:
    unit, zeros = torch.eye(width), torch.zeros(1, width)
    others = torch.linspace(-2, 3, 5 * width).view(5, width)
    given = torch.cat((unit, zeros, others))
    try:
        with torch.no_grad():
            found = function(group, given.clone())
        image = found.cpu().float() if isinstance(found, Tensor) else torch.zeros(0)
    except Exception as error:
        raise InputError(
            f"--agent.symmetry {name} failed with {len(given)} rows of {group}, each {width} wide:"
            f" {type(error).__name__}: {' '.join(str(error).split())}; it is called for every"
            f" observation group and for {ACTION}"
        ) from error
    if image.shape != given.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"--agent.symmetry {name}: expected as many rows as it is given, as wide as {group},"
            f" {tuple(given.shape)}, got {got}"
        )
    matrix, of_zeros = image[:width], image[width]
    moved = matrix.abs()
    alone = (moved.sum(0) == 1) & (moved.amax(0) == 1)  # places that one number reaches
    kept = (moved.sum(1) == 1) & (moved @ alone.float() == 1)
    if not kept.all() or of_zeros.any():
        which = f"number {_first(~kept)} does not" if not kept.all() else "zeros become others"
        raise InputError(
            f"--agent.symmetry {name}: expected each of the {width} numbers of {group} to go to a"
            f" place of its own, as it is or negated; {which}"
        )
    back = (matrix @ matrix == unit).all(1)
    if not back.all():
        raise InputError(
            f"--agent.symmetry {name}: expected the image of an image to be what it was; number"
            f" {_first(~back)} of {group} does not come back"
        )
    if not torch.allclose(image[width + 1 :], others @ matrix):
        raise InputError(
            f"--agent.symmetry {name}: expected the same for every row of {group}, whatever numbers"
            " it holds; other rows go elsewhere than those of the unit matrix"
        )
    return SignedPermutation(moved.argmax(0).to(device), matrix.sum(0).to(device))


def _first(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0])


def half_of(rows: int, generator: torch.Generator) -> Tensor:
    """Which rows to learn from mirrored, by chance, (rows, 1) bool."""
    return torch.rand((rows, 1), generator=generator, device=generator.device) < 0.5
