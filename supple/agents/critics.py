"""Critic ensembles: interchangeable ways to represent and regress a value.

Each critic says how an input row becomes a *prediction*, what its expected value is, which value
the actor climbs, how a Bellman target is built from the target network's predictions, and what the
loss is. FlashSAC knows only these, so critics are compared under the same actor, data and budget.
A critic draws no random numbers: it says how many it needs.

Shapes: ``E`` members, ``M`` or ``B`` rows, ``K`` atoms, ``D`` = observation plus action width.
Values are in scaled reward units (``agents/reward_scaling.py``).

Source: FlashSAC, arXiv:2604.04539; Holiday-Robot/FlashSAC@87edc90 (update.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.agents.nets import Trunk, UnitLinear
from supple.errors import InputError

ALL_ROWS = slice(None)


@dataclass(kw_only=True, slots=True)
class CriticSize:
    """What every critic network is built from."""

    inputs: int
    """Observation plus action width D."""
    hidden: int
    blocks: int
    members: int
    """Ensemble size E; targets take the member with the smaller value."""
    norm: str = "batch"
    """Of the trunk's blocks: batch, layer or none."""

    def trunk(self, generator: torch.Generator) -> Trunk:
        """Of these sizes."""
        return Trunk(
            self.inputs,
            self.hidden,
            self.blocks,
            generator,
            members=self.members,
            norm=self.norm,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """Uniform numbers in [0, 1) that a critic's functions take per row."""

    value: int = 0
    target: int = 0
    loss: int = 0


class Critic(nn.Module, ABC):
    """An ensemble of independent members that see the same rows."""

    draws = Draws()
    joins: Literal["min", "mean"] = "min"
    """How targets join the members' values, for those who read them."""

    def __init__(self, size: CriticSize) -> None:
        super().__init__()
        self.size = size

    def facts(self) -> dict[str, Any]:
        """Plain values without which trained weights mean other values; no shape shows them."""
        return {}

    @abstractmethod
    def forward(self, x_MD: Tensor, *, train: bool, rows: slice = ALL_ROWS) -> Any:
        """Predictions of every member, for example (E, rows).

        Args:
            x_MD: observations and actions, side by side.
            train: batch norm mode.
            rows: which rows to predict for; batch statistics still see all M.
        """

    @abstractmethod
    def value(self, prediction: Any, uniform_BR: Tensor | None = None) -> Tensor:
        """Expected value of each prediction, (E, M)."""

    def climbed(self, prediction: Any, uniform_BR: Tensor | None = None) -> Tensor:
        """The value the actor climbs, (M,): the smallest of the members'."""
        return self.value(prediction, uniform_BR).min(dim=0).values

    @abstractmethod
    def target(
        self,
        prediction: Any,
        reward_B: Tensor,
        discount_B: Tensor,
        entropy_B: Tensor,
        uniform_BR: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Bellman target from this, the target network's predictions at the next step.

        Args:
            prediction: what ``forward`` returned for the next rows, (E, B, ...).
            reward_B: scaled n-step reward, (B,).
            discount_B: bootstrap discount, already 0 where the episode terminated, (B,).
            entropy_B: alpha * log-probability of the next action, subtracted from its value, (B,).
            uniform_BR: ``draws.target`` numbers per row.

        Returns:
            The regression target, (B, ...), and the fraction of it out of range, 0-d.
        """

    def averaged(self, target_JB: Tensor) -> Tensor:
        """One target per row from those of J next actions, (J, B, ...) -> (B, ...)."""
        return target_JB.mean(0)

    @abstractmethod
    def loss(self, prediction: Any, target: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """Mean over members and rows, 0-d. Every member regresses onto the same target."""


@torch.no_grad()
def check_critic(critic: Critic, device: torch.device) -> None:
    """Refuse a critic whose functions give other shapes than theirs: many would learn, wrongly.

    Args:
        critic: of one's own.
        device: where it is.

    Raises:
        InputError: names the function, what was expected and got.
    """

    def require(what: str, right: bool, expected: str, got: Any) -> None:
        if not right:
            got = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise InputError(f"{type(critic).__name__}.{what} gave {got}, expected {expected}")

    if critic.joins not in ("min", "mean"):
        raise InputError(
            f"{type(critic).__name__}.joins is {critic.joins!r}, expected 'min' or 'mean'"
        )
    members, widths = critic.size.members, []
    generator = torch.Generator(device).manual_seed(0)
    for rows in (members + 2, members + 3):  # as many rows as members would hide a transposition

        def drawn(count: int, rows: int = rows) -> Tensor | None:
            shape = (rows, count)
            return torch.rand(shape, generator=generator, device=device) if count else None

        size, draws = (rows, critic.size.inputs), critic.draws
        x_BD = torch.randn(size, generator=generator, device=device)
        prediction, some_B = critic(x_BD, train=False), x_BD[:, 0].abs()
        value = critic.value(prediction, drawn(draws.value))
        require("value", _is(value, members, rows), f"({members}, {rows}), members x rows", value)
        climbed = critic.climbed(prediction, drawn(draws.value))
        require("climbed", _is(climbed, rows), f"({rows},), rows", climbed)
        found = critic.target(prediction, some_B, some_B, some_B, drawn(draws.target))
        pair = isinstance(found, tuple) and len(found) == 2
        require("target", pair, "a pair, the target and the fraction out of range", found)
        target, outside = found
        by_row = isinstance(target, Tensor) and target.shape[:1] == (rows,)
        require("target", by_row, f"({rows}, ...), one per row", target)
        widths.append(target.shape[1:])
        fixed = widths[0] == widths[-1]
        require("target", fixed, f"({rows}, {', '.join(map(str, widths[0]))}) as before", target)
        require("target", _is(outside), "a fraction out of range that is 0-d", outside)
        loss = critic.loss(prediction, target, drawn(draws.loss))
        require("loss", _is(loss), "one number, 0-d", loss)
        if not torch.is_inference_mode_enabled():
            require(
                "loss",
                _has_gradient(critic, x_BD, target, drawn(draws.loss)),
                "one with a gradient: read no value back",
                loss,
            )


def _has_gradient(critic: Critic, x_BD: Tensor, target: Tensor, uniform_BR: Tensor | None) -> bool:
    """Whether a loss can be learned from; what training changes of the buffers is undone."""
    buffers = dict(critic.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    with torch.enable_grad():  # as in training, behind as many rows of next states
        prediction = critic(torch.cat([x_BD, x_BD]), train=True, rows=slice(len(x_BD)))
        loss = critic.loss(prediction, target, uniform_BR)
    for name, buffer in buffers.items():
        owner, _, own = name.rpartition(".")
        setattr(critic.get_submodule(owner), own, buffer.copy_(before[name]))
    return loss.requires_grad


def _is(value: Any, *shape: int) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == shape


class HeadCritic(Critic):
    """Trunks with a linear head each."""

    def __init__(self, size: CriticSize, outputs: int, generator: torch.Generator) -> None:
        super().__init__(size)
        self.trunk = size.trunk(generator)
        self.head = UnitLinear(size.hidden, outputs, generator, members=size.members, bias=True)

    def facts(self) -> dict[str, Any]:
        """The blocks' norm: batch and layer norm have the same tensors."""
        return {"critic_norm": self.size.norm}

    def heads(self, x_MD: Tensor, *, train: bool, rows: slice) -> Tensor:
        """Raw head outputs, (E, rows, outputs), in float32."""
        out: Tensor = self.head(self.trunk(x_MD, train=train)[rows])
        return out.transpose(0, 1)


def smaller_member(value_EB: Tensor) -> Tensor:
    """Index of the member with the smaller value per row, ties to the first, (B,)."""
    return value_EB.argmin(dim=0)


class CategoricalCritic(HeadCritic):
    """A distribution over ``K`` fixed atoms on [-value_max, value_max], trained by cross-entropy.

    Predictions are log-probabilities (E, M, K). The per-sample gradient on the logits is at most
    sqrt(2) for any reward, and |value| <= value_max always.

    Args:
        size: network sizes.
        num_atoms: K >= 2.
        value_max: end of the support [scaled reward], > 0.
        generator: draws the initial weights.

    Raises:
        InputError: there is no such support.
    """

    atoms: Tensor

    def __init__(
        self, size: CriticSize, *, num_atoms: int, value_max: float, generator: torch.Generator
    ) -> None:
        if num_atoms < 2 or not value_max > 0:
            raise InputError(
                f"expected num_atoms >= 2 and value_max > 0, got {num_atoms} and {value_max}"
            )
        super().__init__(size, num_atoms, generator)
        self.value_max = value_max
        self.num_atoms = num_atoms
        atoms = torch.linspace(-value_max, value_max, num_atoms, device=generator.device)
        self.register_buffer("atoms", atoms, persistent=False)

    def forward(self, x_MD: Tensor, *, train: bool, rows: slice = ALL_ROWS) -> Tensor:
        """Log-probabilities, (E, rows, K), in float32."""
        return F.log_softmax(self.heads(x_MD, train=train, rows=rows), dim=-1)

    def value(self, prediction: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """Mean of each distribution, (E, M)."""
        return prediction.exp() @ self.atoms

    def target(
        self,
        prediction: Tensor,
        reward_B: Tensor,
        discount_B: Tensor,
        entropy_B: Tensor,
        uniform_BR: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The moved and re-gridded distribution, (B, K), and its clipped mass.

        The member with the smaller expected value is used whole (ties: the first).
        """
        probability_EBK = prediction.exp()
        member_B = smaller_member(probability_EBK @ self.atoms)
        index = member_B[None, :, None].expand(1, -1, self.num_atoms)
        probability_BK = probability_EBK.gather(0, index)[0]
        moved_BK = reward_B[:, None] + discount_B[:, None] * (self.atoms - entropy_B[:, None])
        clipped = (probability_BK * (moved_BK.abs() > self.value_max)).sum(-1).mean()
        return project_to_atoms(probability_BK, moved_BK, self.value_max), clipped

    def loss(self, prediction: Tensor, target: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """Cross-entropy, 0-d."""
        return -(target * prediction).sum(-1).mean()


def project_to_atoms(probability_BK: Tensor, position_BK: Tensor, value_max: float) -> Tensor:
    """Put mass at arbitrary positions onto the even grid, by linear splitting.

    Args:
        probability_BK: mass, (B, K).
        position_BK: where each mass lies, (B, K); clipped to [-value_max, value_max].
        value_max: end of the grid.

    Returns:
        Mass per grid point, (B, K); the mean is kept where nothing was clipped.
    Source: C51, arXiv:1707.06887, algorithm 1.
    """
    atoms = position_BK.shape[-1]
    spacing = 2 * value_max / (atoms - 1)
    offset_BK = (position_BK.clamp(-value_max, value_max) + value_max) / spacing
    # Rounding may lift the top end a hair above K - 1.
    offset_BK = offset_BK.clamp(0, atoms - 1)
    lower_BK = offset_BK.floor()
    upper_share_BK = probability_BK * (offset_BK - lower_BK)
    lower = lower_BK.nan_to_num(0).long()  # NaN has no place: its mass stays NaN, at the first
    upper = (lower + 1).clamp(max=atoms - 1)
    add = _added_in_order if probability_BK.is_cuda else _scattered
    return add(probability_BK - upper_share_BK, lower, upper_share_BK, upper)


def _scattered(low_BK: Tensor, lower: Tensor, up_BK: Tensor, upper: Tensor) -> Tensor:
    found = torch.zeros_like(low_BK)
    return found.scatter_add_(1, lower, low_BK).scatter_add_(1, upper, up_BK)


def _added_in_order(low_BK: Tensor, lower: Tensor, up_BK: Tensor, upper: Tensor) -> Tensor:
    """The same on a GPU, where a scattered sum would be taken in whichever order threads arrive.

    Every grid point looks at all masses, which compiles to one sum and no (B, K, K) tensor.
    """
    grid_K = torch.arange(low_BK.shape[1], device=low_BK.device)
    low_BKK = torch.where(lower.unsqueeze(2) == grid_K, low_BK.unsqueeze(2), 0.0)
    up_BKK = torch.where(upper.unsqueeze(2) == grid_K, up_BK.unsqueeze(2), 0.0)
    return (low_BKK + up_BKK).sum(1)


class ScalarCritic(HeadCritic):
    """A plain value per member, trained by squared error: the control for the categorical one."""

    def __init__(self, size: CriticSize, *, generator: torch.Generator) -> None:
        super().__init__(size, 1, generator)

    def forward(self, x_MD: Tensor, *, train: bool, rows: slice = ALL_ROWS) -> Tensor:
        """Values, (E, rows), in float32."""
        return self.heads(x_MD, train=train, rows=rows).squeeze(-1)

    def value(self, prediction: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """The prediction itself, (E, M)."""
        return prediction

    def target(
        self,
        prediction: Tensor,
        reward_B: Tensor,
        discount_B: Tensor,
        entropy_B: Tensor,
        uniform_BR: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Clipped double-Q target, (B,); nothing is ever clipped."""
        smaller_B = prediction.min(dim=0).values
        target_B = reward_B + discount_B * (smaller_B - entropy_B)
        return target_B, torch.zeros((), device=prediction.device)

    def loss(self, prediction: Tensor, target: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """Half the mean squared error, 0-d."""
        return 0.5 * (prediction - target).square().mean()
