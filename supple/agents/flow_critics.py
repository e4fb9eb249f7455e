"""Flow critics: a value is where a learned velocity field carries noise.

The field of each member is regressed onto y - z0 along straight lines from noise z0 to the Bellman
target y; the value is read by Euler integration (``kernels/critic_integration``). Noise and flow
times are uniform numbers handed in, the same for all members.

Shapes: ``E`` members, ``B`` rows, ``M`` noise samples, ``D`` observation plus action width, ``H``
width of the condition. Values are in scaled reward units, in [-G, G].
Source: floq, arXiv:2509.06863, and CMU-AIRe/floq (agents/floq.py), whose recorded numbers
``PublishedFlowCritic`` reproduces (tests/parity/test_floq.py).
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from supple.agents.critics import ALL_ROWS, Critic, CriticSize, Draws
from supple.agents.flow_settings import FlowSettings
from supple.agents.nets import UnitLinear
from supple.agents.velocity import (
    MLPSize,
    PublishedMLP,
    PublishedVelocityNet,
    UnitVelocityNet,
    VelocityNet,
)
from supple.errors import InputError
from supple.kernels.critic_integration import (
    Form,
    ValueEncoding,
    critic_integration,
    euler,
    on_grid,
    velocity,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowRange:
    """Where values and noise lie [scaled reward]."""

    value_low: float
    value_high: float
    """Support of the state's encoding: the value range and a margin."""
    noise_low: float
    noise_high: float

    @staticmethod
    def of(settings: FlowSettings, value_max: float) -> FlowRange:
        """For values in [-value_max, value_max]."""
        reach = settings.kappa * value_max
        end = value_max * (1 + settings.support_margin)
        paper = settings.noise_rule == "paper"
        return FlowRange(
            value_low=-end,
            value_high=end,
            noise_low=value_max - 2 * reach if paper else -reach,
            noise_high=value_max if paper else reach,
        )


class FlowPrediction(NamedTuple):
    """What is worked out once per row, whatever is integrated from it."""

    features_EBH: Tensor
    """What the fields are conditioned on; (1, B, D) where all members read the input itself."""
    condition_EBH: Tensor
    """Its share of the velocity network's first layer."""


class FlowCritic(Critic):
    """Targets, loss and readouts; a subclass says what the fields are and what they read.

    Args:
        size: of the trunk, where there is one, and of the ensemble.
        settings: of the flow.
        spans: where values and noise lie.
        clip: targets are clipped to [-clip, clip].
        velocity_scale: velocities are divided by it in the loss.
    """

    net: VelocityNet

    def __init__(
        self,
        size: CriticSize,
        *,
        settings: FlowSettings,
        spans: FlowRange,
        clip: float,
        velocity_scale: float,
    ) -> None:
        super().__init__(size)
        settings.check()
        self.settings = settings
        self.joins = settings.aggregate
        self.range = spans
        self.clip = clip
        self.velocity_scale = velocity_scale
        reads = 0 if settings.readout == "distilled" else settings.read_samples
        self.draws = Draws(
            value=reads, target=settings.target_samples, loss=2 * settings.train_samples
        )

    @property
    def target_range(self) -> tuple[float, float]:
        """Where targets are clipped to, or should lie by themselves."""
        return max(-self.clip, self.range.value_low), min(self.clip, self.range.value_high)

    def facts(self) -> dict[str, Any]:
        """Noise interval, how state and time are encoded, and what the networks say."""
        return {
            "noise": [self.range.noise_low, self.range.noise_high],
            "time_encoding": self.net.time_kind,
            **dataclasses.asdict(self.net.form),
        }

    def _form(self, *, norm_first: bool) -> Form:
        settings = self.settings
        encoding = ValueEncoding(
            low=self.range.value_low,
            high=self.range.value_high,
            kind=settings.value_encoding,
            edges=settings.edges,
            sigma_bins=settings.sigma_bins,
        )
        return Form(
            encoding=encoding,
            activation=settings.activation,
            norm=settings.norm,
            norm_first=norm_first,
            endpoint=settings.predict == "endpoint",
        )

    def _prediction(self, features_EBH: Tensor) -> FlowPrediction:
        """In float32 from here on."""
        with torch.autocast(features_EBH.device.type, enabled=False):
            features_EBH = features_EBH.float()
            return FlowPrediction(features_EBH, self.net.condition(features_EBH))

    @abstractmethod
    def distilled_value(self, features_EBH: Tensor) -> Tensor:
        """The network that regresses onto the integrated value, (E, B)."""

    def noise(self, uniform_BM: Tensor) -> Tensor:
        """z0 for uniform numbers in [0, 1), (B, M)."""
        low, high = self.range.noise_low, self.range.noise_high
        return low * (1 - uniform_BM) + high * uniform_BM

    def integrated(self, prediction: FlowPrediction, start_BM: Tensor, steps: int) -> Tensor:
        """Where each member's flow carries the noise, (E, B, M); its gradient is the inputs'."""
        return critic_integration(
            self.net.field(),
            self.net.form,
            start_BM[None],
            prediction.condition_EBH,
            self.net.grid(steps),
            table_points=self.settings.table_points,
        )

    def velocity_at(self, prediction: FlowPrediction) -> Callable[[float, Tensor], Tensor]:
        """The members' fields for these rows: (t, z_EBM) -> v_EBM; z may be (1, B, M).

        Raises:
            InputError: the networks were trained to say end points.
        """
        if self.net.form.endpoint:
            raise InputError("a flow critic with predict=endpoint has no velocity field to measure")
        field, condition_EB1H = self.net.field(), prediction.condition_EBH.unsqueeze(2)

        def at(t: float, z_EBM: Tensor) -> Tensor:
            time_E11H = self.net.time(condition_EB1H.new_full((1, 1), t))
            return velocity(field, self.net.form, z_EBM, condition_EB1H, time_E11H)

        return at

    def _read(self, prediction: FlowPrediction, uniform_BM: Tensor) -> Tensor:
        """What the actor climbs, per noise sample, (E, B, M)."""
        settings, start_BM = self.settings, self.noise(uniform_BM)
        steps = 1 if settings.readout == "one_step" else settings.read_steps
        if settings.readout != "last_step":
            return self.integrated(prediction, start_BM, steps)
        condition_EBH = prediction.condition_EBH
        at = on_grid(self.net.field(), self.net.form, condition_EBH, self.net.grid(steps))
        with torch.no_grad():
            before_EBM = euler(at, start_BM.expand(len(condition_EBH), -1, -1), steps)[-2]
        return before_EBM + at(steps - 1, before_EBM) / steps

    def value(self, prediction: FlowPrediction, uniform_BM: Tensor | None = None) -> Tensor:
        """Readout of each member, averaged over noise, (E, B)."""
        if self.settings.readout == "distilled":
            return self.distilled_value(prediction.features_EBH)
        return self._read(prediction, _given(uniform_BM)).mean(-1)

    def climbed(self, prediction: FlowPrediction, uniform_BM: Tensor | None = None) -> Tensor:
        """Members are joined for each noise sample; distilled ones are always averaged, (B,)."""
        if self.settings.readout == "distilled":
            return self.distilled_value(prediction.features_EBH).mean(0)
        return self._joined(self._read(prediction, _given(uniform_BM))).mean(-1)

    def _joined(self, value_EBM: Tensor) -> Tensor:
        if self.joins == "min":
            return value_EBM.min(dim=0).values
        return value_EBM.mean(dim=0)

    def target(
        self,
        prediction: FlowPrediction,
        reward_B: Tensor,
        discount_B: Tensor,
        entropy_B: Tensor,
        uniform_BM: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """y, (B,), or (B, M) for the distributional backup; and the fraction of it out of range.

        That is what is clipped, and where nothing is, what lies outside the encoding's support.
        Of several next actions each one's target is clipped, then ``averaged``: the published rule
        averages first, which differs where some lie outside the range.
        """
        start_BM = self.noise(_given(uniform_BM))
        steps = self.settings.target_steps
        next_BM = self._joined(self.integrated(prediction, start_BM, steps))
        target = reward_B[:, None] + discount_B[:, None] * (next_BM - entropy_B[:, None])
        if self.settings.backup == "expected":
            target = target.mean(-1)
        low, high = self.target_range
        outside = ((target < low) | (target > high)).float().mean()
        return target.clamp(-self.clip, self.clip), outside

    def averaged(self, target_JB: Tensor) -> Tensor:
        """The distributional backup keeps one target per noise sample."""
        if self.settings.backup == "expected":
            return target_JB.mean(0)
        return target_JB.transpose(0, 1).flatten(1)

    def regression(
        self, prediction: FlowPrediction, target: Tensor, uniform_BR: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the velocity network says at random times, (E, B, M), what it should, the noise.

        Arguments as ``loss`` takes them.
        """
        noise_uniform, t_BM = uniform_BR.chunk(2, dim=-1)
        start_BM = self.noise(noise_uniform)
        if self.settings.train_time == "zero":
            t_BM = torch.zeros_like(t_BM)
        end = target[:, None] if target.dim() == 1 else target
        state = (1 - t_BM) * start_BM + t_BM * end
        found_EBM = velocity(
            self.net.field(),
            self.net.form,
            state if state.dim() == 3 else state[None],
            prediction.condition_EBH.unsqueeze(2),
            self.net.time(t_BM),
        )
        goal = end.expand_as(state) if self.net.form.endpoint else end - start_BM
        return found_EBM, goal, start_BM

    def loss(
        self, prediction: FlowPrediction, target: Tensor, uniform_BR: Tensor | None = None
    ) -> Tensor:
        """Squared error of the velocity at random times, and of the distilled critic, 0-d.

        Args:
            prediction: of the rows, from ``forward``.
            target: y, (B,), or (B, M) with one per noise sample; (E, B, 1) or (E, B, M) where
                members regress onto targets of their own.
            uniform_BR: ``draws.loss`` numbers per row.
        """
        settings = self.settings
        found_EBM, goal, start_BM = self.regression(prediction, target, _given(uniform_BR))
        error_EBM = ((found_EBM - goal) / self.velocity_scale).square()
        over_samples = error_EBM.sum(-1) if settings.reduction == "sum" else error_EBM.mean(-1)
        loss = over_samples.mean()
        if settings.readout != "distilled":
            return loss
        with torch.no_grad():
            value_EBM = self.integrated(prediction, start_BM, settings.target_steps)
            mean_B = value_EBM.mean(dim=(0, 2))
        # The trunk belongs to the field: what is distilled only reads it.
        distilled_EB = self.distilled_value(prediction.features_EBH.detach())
        return loss + (distilled_EB - mean_B).square().mean()


class BoundedFlowCritic(FlowCritic):
    """FlashSAC's trunk once per row, then a small velocity head whose norms are bounded.

    Args:
        size: of the trunk and the ensemble.
        settings: of the flow.
        value_max: G; targets are clipped to [-G, G].
        generator: draws the initial weights.
    """

    def __init__(
        self,
        size: CriticSize,
        *,
        settings: FlowSettings,
        value_max: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(
            size,
            settings=settings,
            spans=FlowRange.of(settings, value_max),
            clip=value_max,
            velocity_scale=2 * value_max,
        )
        self.trunk = size.trunk(generator)
        self.net = UnitVelocityNet(
            _mlp(settings, inputs=size.hidden, members=size.members),
            form=self._form(norm_first=True),
            time_kind=settings.time_encoding,
            time_count=settings.time_features,
            bound=self.velocity_scale,
            generator=generator,
        )
        if settings.readout == "distilled":
            self.distilled = UnitLinear(size.hidden, 1, generator, members=size.members, bias=True)

    def facts(self) -> dict[str, Any]:
        """Those of the flow, and the norm of the trunk's blocks."""
        return {"critic_norm": self.size.norm, **super().facts()}

    def forward(self, x_MD: Tensor, *, train: bool, rows: slice = ALL_ROWS) -> FlowPrediction:
        """Features and their share of the first layer."""
        return self._prediction(self.trunk(x_MD, train=train)[rows].transpose(0, 1))

    def distilled_value(self, features_EBH: Tensor) -> Tensor:
        """A linear head of its own on the trunk's features, (E, B)."""
        out: Tensor = self.distilled(features_EBH.transpose(0, 1))
        return out.squeeze(-1).transpose(0, 1)


class PublishedFlowCritic(FlowCritic):
    """The critic of CMU-AIRe/floq: no trunk, no bounded norm, no clipped target.

    Args:
        size: input width and members; the networks' own sizes are in ``settings``.
        settings: of the flow, usually from ``flow_settings.published``.
        spans: where values and noise lie.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        size: CriticSize,
        *,
        settings: FlowSettings,
        spans: FlowRange,
        generator: torch.Generator,
    ) -> None:
        super().__init__(size, settings=settings, spans=spans, clip=math.inf, velocity_scale=1.0)
        form = self._form(norm_first=False)
        mlp = _mlp(settings, inputs=size.inputs, members=size.members)
        self.net = PublishedVelocityNet(
            mlp,
            form=form,
            time_kind=settings.time_encoding,
            time_count=settings.time_features,
            generator=generator,
        )
        if settings.readout == "distilled":
            self.distilled = PublishedMLP(mlp, form=form, generator=generator)

    def forward(self, x_MD: Tensor, *, train: bool, rows: slice = ALL_ROWS) -> FlowPrediction:
        """The input itself; there are no statistics to train."""
        return self._prediction(x_MD[rows][None])

    def distilled_value(self, features_EBH: Tensor) -> Tensor:
        """An MLP ensemble of its own on observation and action, (E, B)."""
        found: Tensor = self.distilled(features_EBH[0])
        return found


def _mlp(settings: FlowSettings, *, inputs: int, members: int) -> MLPSize:
    return MLPSize(inputs=inputs, width=settings.width, depth=settings.depth, members=members)


def _given(uniform: Tensor | None) -> Tensor:
    if uniform is None:
        raise ValueError("a flow critic needs the uniform numbers its draws name")
    return uniform
