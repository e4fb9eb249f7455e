"""Directions of the observation along which a policy is unstable, shared by the states it visits.

Works on factors (``sensitivity.py``) in standard deviations of each channel: raw units would let
the channel with the smallest unit win. The signs of eigenvectors are arbitrary, so only outer
products, squares and squared cosines are averaged or compared. Steps of an episode are correlated:
intervals resample episodes.

Shapes: ``N`` states, ``R`` rows of a factor, ``D`` channels that are searched, ``E`` episodes.
Source: Korkmaz 2024, arXiv:2406.16979: the uncentred second moment of per-state gradients, its
first eigenvector, their size over time, and the feature correlation quotient, whose printed
fraction is reconstructed from its range and use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError

DRAWS = 500
"""Bootstrap draws over episodes."""
MOST_EPISODES = 256
"""Resampled units; a ring of many environments holds thousands of episodes."""
MATRIX_NUMBERS = 2**27
"""In all their matrices together: 1 GiB."""
STABLE_COSINE, CLEAR_GAP = 0.9, 0.1
"""Project defaults: below either, a single direction is not identified; its subspace is shown."""
ENERGY, MOST_DIRECTIONS = 0.9, 10
"""A subspace holds this share of the trace, in no more directions than this."""
AT_ONCE = 2**22
"""Numbers of matrices that are decomposed together."""
LARGEST = 4096
"""Channels whose matrix is decomposed."""


class Directions(NamedTuple):
    """Eigenvalues and eigenvectors of the mean sensitivity matrix over states, largest first."""

    matrix_DD: Tensor
    value_D: Tensor
    vector_DD: Tensor
    """One direction per column."""

    @property
    def worst(self) -> Tensor:
        """The shared direction of instability, unit length, arbitrary sign, (D,)."""
        return self.vector_DD[:, 0]

    @property
    def least(self) -> Tensor:
        """The direction that matters least, (D,)."""
        return self.vector_DD[:, -1]

    @property
    def concentration(self) -> float:
        """Share of the worst direction in all, 1/D to 1."""
        return float(self.value_D[0] / self.value_D.sum())

    @property
    def gain(self) -> float:
        """RMS response along the worst direction [decision per standard deviation]."""
        return float(self.value_D[0].sqrt())

    @property
    def anisotropy(self) -> float:
        """Energy along the worst direction over that along a random one, >= 1."""
        return self.concentration * len(self.value_D)

    @property
    def gap(self) -> float:
        """How far the second direction is behind, 0 to 1."""
        if len(self.value_D) == 1:
            return 1.0
        return float((self.value_D[0] - self.value_D[1]) / self.value_D[0])

    @property
    def coordinates(self) -> float:
        """How many channels take part in the worst direction, 1 to D."""
        return float(1 / self.worst.pow(4).sum())

    def subspace(self) -> Tensor:
        """The leading directions that hold ``ENERGY`` of the trace, (D, K)."""
        held_D = self.value_D.cumsum(0) / self.value_D.sum()
        count = int((held_D < ENERGY - 1e-12).sum()) + 1
        return self.vector_DD[:, : min(count, MOST_DIRECTIONS)]


def directions(factor_NRD: Tensor) -> Directions:
    """Of the mean sensitivity matrix, in float64.

    Raises:
        InputError: no state responds to anything, or too many channels.
    """
    return decompose(mean_matrix(factor_NRD))


def mean_matrix(factor_NRD: Tensor) -> Tensor:
    """Mean of R^T R over states, (D, D) float64."""
    rows = factor_NRD.flatten(0, 1).double()
    return rows.mT @ rows / len(factor_NRD)


def decompose(matrix_DD: Tensor) -> Directions:
    """Eigenvalues and eigenvectors, largest first.

    Raises:
        InputError: the matrix is 0, not finite or too large.
    """
    if len(matrix_DD) > LARGEST:
        raise InputError(
            f"directions are searched among at most {LARGEST} channels, got {len(matrix_DD)}"
        )
    if not matrix_DD.isfinite().all():  # LAPACK may end the process where it is given NaN
        raise InputError("the decision's derivatives are not finite: it has no direction")
    value_D, vector_DD = torch.linalg.eigh(matrix_DD)
    if not len(value_D) or value_D[-1] <= 0:
        raise InputError("the decision does not respond to any channel: it has no direction")
    return Directions(matrix_DD, value_D.clamp(min=0).flip(0), vector_DD.flip(1))


def isotropic_concentration(states: int, channels: int) -> float:
    """What ``concentration`` comes to where nothing is shared: random rank-one states."""
    return float((1 + (channels / states) ** 0.5) ** 2 / channels)


def squared_cosine(left_DK: Tensor, right_DK: Tensor) -> float:
    """Mean squared cosine of the principal angles between two subspaces, 0 to 1.

    Args:
        left_DK: orthonormal columns, or one direction (D,).
        right_DK: others of the same space.
    """
    left_DK, right_DK = (x.unsqueeze(-1) if x.dim() == 1 else x for x in (left_DK, right_DK))
    fewer = min(left_DK.shape[1], right_DK.shape[1])
    return float((left_DK.mT @ right_DK).square().sum() / fewer)


class Split(NamedTuple):
    """Whether two halves of the episodes agree."""

    cosine: float
    """|cos| between the worst directions of odd and even episodes."""
    subspace: float
    """Mean squared cosine between their leading subspaces."""
    quotient: float
    """Feature correlation quotient of one half with the other: what it comes to undisturbed."""


def split_half(matrix_EDD: Tensor, states_E: Tensor) -> Split:
    """Odd against even episodes.

    Args:
        matrix_EDD: ``episode_matrices``.
        states_E: how many states each has.

    Raises:
        InputError: fewer than two episodes, or a half of them without any response.
    """
    if len(states_E) < 2:
        raise InputError(f"split halves need 2 episodes, got {len(states_E)}: give more episodes")
    even, odd = (
        decompose(_weighted(matrix_EDD[first::2], states_E[first::2].double())) for first in (0, 1)
    )
    width = min(even.subspace().shape[1], odd.subspace().shape[1])
    shared = squared_cosine(even.vector_DD[:, :width], odd.vector_DD[:, :width])
    cosine = squared_cosine(even.worst, odd.worst) ** 0.5
    return Split(cosine, shared, compare_states(even, odd).quotient)


def identified(cosine: float, gap: float) -> bool:
    """Whether a single direction may be shown."""
    return cosine >= STABLE_COSINE and gap >= CLEAR_GAP


def episode_matrices(factor_NRD: Tensor, episode_N: Tensor) -> tuple[Tensor, Tensor]:
    """The mean matrix of each episode (E, D, D), and its number of states (E,).

    Where there are many, or many channels, several episodes count as one: odd with odd ones.
    """
    found, states = [], []
    number_N = episode_N.unique(return_inverse=True)[1]
    most = max(2, min(MOST_EPISODES, MATRIX_NUMBERS // factor_NRD.shape[-1] ** 2) // 2 * 2)
    number_N = number_N % most
    for episode in number_N.unique():
        own = factor_NRD[number_N == episode]
        found.append(mean_matrix(own))
        states.append(len(own))
    return torch.stack(found), torch.tensor(states)


def _weighted(matrix_EDD: Tensor, weight_E: Tensor) -> Tensor:
    return torch.einsum("e,eij->ij", weight_E / weight_E.sum(), matrix_EDD)


def bootstrap(
    matrix_EDD: Tensor, states_E: Tensor, generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """95 % intervals of what ``Directions`` sums up, over resampled episodes."""
    episodes, channels = len(states_E), matrix_EDD.shape[-1]
    draws = DRAWS if channels <= 128 else DRAWS // 5
    drawn_BE = torch.randint(episodes, (draws, episodes), generator=generator)
    times_BE = torch.zeros(draws, episodes, dtype=torch.float64)
    count_BE = times_BE.scatter_add_(1, drawn_BE, torch.ones_like(times_BE)) * states_E
    weight_BE = count_BE / count_BE.sum(1, keepdim=True)
    found: dict[str, list[Tensor]] = {}
    for own_BE in weight_BE.split(max(1, AT_ONCE // channels**2)):
        value_BD, vector_BDD = torch.linalg.eigh(torch.einsum("be,eij->bij", own_BE, matrix_EDD))
        top_B, concentration_B = value_BD[:, -1], value_BD[:, -1] / value_BD.sum(-1)
        second_B = value_BD[:, -2] if channels > 1 else torch.zeros_like(top_B)
        for name, value_B in (
            ("concentration", concentration_B),
            ("gain", top_B.clamp(min=0).sqrt()),
            ("anisotropy", concentration_B * channels),
            ("coordinates", 1 / vector_BDD[:, :, -1].pow(4).sum(-1)),
            ("gap", 1 - second_B / top_B),
        ):
            found.setdefault(name, []).append(value_B)
    return {name: _percentiles(torch.cat(parts)) for name, parts in found.items()}


def _percentiles(value_B: Tensor) -> tuple[float, float]:
    """The middle 95 % of what is finite: draws of episodes without any response say nothing."""
    value_B = value_B[value_B.isfinite()]
    low, high = torch.quantile(value_B.double(), value_B.new_tensor([0.025, 0.975])).tolist()
    return low, high


# --- time ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Local:
    """The worst direction of each single state."""

    strength_N: Tensor
    """Root of the largest eigenvalue [decision per standard deviation]."""
    vector_ND: Tensor
    """Unit length, 0 where nothing matters."""


def local(factor_NRD: Tensor) -> Local:
    """Of every state, by the small matrices R R^T."""
    factor_NRD = factor_NRD.double()
    value_NR, vector_NRR = torch.linalg.eigh(factor_NRD @ factor_NRD.mT)
    strength_N = value_NR[:, -1].clamp(min=0).sqrt()
    back_ND = (vector_NRR[:, :, -1:].mT @ factor_NRD).squeeze(1)
    return Local(strength_N, back_ND / strength_N.clamp(min=1e-300).unsqueeze(-1))


def over_time(strength_N: Tensor, episode_N: Tensor) -> dict[str, float]:
    """How unsteady the strength of instability is along episodes; states in order of time.

    Returns:
        ``mean``; ``cv``, standard deviation over mean; ``tail``, 99th percentile over median;
        ``tv``, summed change from step to step over summed strength.

    Raises:
        InputError: the strength is 0 in more than half of the states.
    """
    strength_N = strength_N.double()
    mean, middle = strength_N.mean(), strength_N.median()
    if middle <= 0:
        raise InputError("the decision does not respond in most states: no course over time")
    return {
        "mean": float(mean),
        "cv": float(strength_N.std(correction=0) / mean),
        "tail": float(_quantile(strength_N, 0.99) / middle),
        "tv": variation(strength_N, episode_N),
    }


def variation(strength_N: Tensor, episode_N: Tensor) -> float:
    """Summed change from step to step over summed strength; every step, in order of time."""
    strength_N = strength_N.double()
    same = episode_N[1:] == episode_N[:-1]
    change = (strength_N[1:] - strength_N[:-1]).abs()[same].sum()
    return float(change / strength_N.sum())


def _quantile(values_N: Tensor, share: float) -> Tensor:
    """By sorting: ``torch.quantile`` refuses more than 16 million numbers."""
    return values_N.sort().values[int(share * (len(values_N) - 1))]


def alignment(vector_ND: Tensor, worst_D: Tensor) -> Tensor:
    """Squared cosine of each state's direction with the shared one, (N,)."""
    return (vector_ND @ worst_D).square()


# --- comparing -------------------------------------------------------------------------------


class Shift(NamedTuple):
    """Nominal against other states of one policy."""

    quotient: float
    """How much of the nominal worst energy the other states' direction finds, 0 to 1."""
    swapped: float
    cosine2: float
    """Squared cosine between the two directions."""


def compare_states(nominal: Directions, other: Directions) -> Shift:
    """The feature correlation quotient, both ways round."""

    def quotient(direction_D: Tensor, own: Directions) -> float:
        return float(direction_D @ own.matrix_DD @ direction_D / own.value_D[0])

    return Shift(
        quotient(other.worst, nominal),
        quotient(nominal.worst, other),
        squared_cosine(nominal.worst, other.worst),
    )


class Overlap(NamedTuple):
    """Two policies on the same states."""

    cosine2: float
    jaccard: float
    """Of the tenth of the channels that each direction weighs most."""


def compare_policies(left: Directions, right: Directions) -> Overlap:
    """Whether two training methods are unstable along the same inputs."""
    count = max(1, round(len(left.worst) / 10))
    top = [set(found.worst.abs().topk(count).indices.tolist()) for found in (left, right)]
    shared = len(top[0] & top[1]) / len(top[0] | top[1])
    return Overlap(squared_cosine(left.worst, right.worst), shared)


def by_group(found: Directions, groups: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """Shares of each group of channels: in the worst direction, and in all of them.

    Args:
        found: the directions.
        groups: the group of each channel, D names.
    """
    square_D, diagonal_D = found.worst.square(), found.matrix_DD.diagonal()
    shares = {}
    for group in dict.fromkeys(groups):
        own = torch.tensor([name == group for name in groups])
        shares[group] = (
            float(square_D[own].sum()),
            float(diagonal_D[own].sum() / diagonal_D.sum()),
        )
    return shares
