"""``supple bench kernels``: integrating a critic's flows, beside its own hidden products.

A row is only written for a result that is right: the field is fitted for a moment, so that it is
one a critic could have, and every variant is first compared with float64. ``exact`` encodes every
value, as ``flow_official`` does; the others read a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supple.agents.critics import CriticSize
from supple.agents.flow_critics import FlowRange, PublishedFlowCritic
from supple.agents.flow_settings import FlowSettings
from supple.bench.table import interleaved, quantiles
from supple.kernels.critic_integration import critic_integration, integrate, time_features
from supple.kernels.critic_integration.fused import TABLE_POINTS
from supple.kernels.critic_integration.reference import LAYER_NORM_EPS
from supple.region import capture, has_bfloat16

INPUTS, TIMES, FIT_STEPS, VALUE_MAX = 64, 64, 200, 5.0
LIMITS = {
    "supple exact float32": (2e-6, 4e-7),
    "float32": (1e-4, 2e-5),
    "bfloat16": (2e-3, 4e-4),
}
"""Largest and mean error of a variant, or else of its products' precision, relative to the value
range; the table of encoded values alone may have 1e-4 in float32."""


class Size(NamedTuple):
    """Members, rows, noise samples, Euler steps, width, hidden layers."""

    E: int
    B: int
    M: int
    K: int
    H: int
    L: int

    def __str__(self) -> str:
        return " ".join(f"{name}{value}" for name, value in self._asdict().items())

    @property
    def flops(self) -> int:
        """Of the hidden layers' products, which no way of computing avoids."""
        return 2 * self.E * self.B * self.M * self.K * (self.L - 1) * self.H**2


SIZES = (Size(2, 2048, 1, 8, 256, 2), Size(2, 256, 8, 8, 512, 4))


def bench_kernels(size: Size, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way to integrate, in turn; refuses to time one whose values are wrong."""
    device = options.device
    critic, x_BD, start_BM = fitted(size, device)
    net = critic.net
    half = has_bfloat16(device)

    def definition() -> Tensor:
        condition = net.condition(x_BD[None])
        return integrate(net.field(), net.form, start_BM[None], condition, net.grid(size.K))

    def in_bfloat16() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return definition()

    def fast(products: torch.dtype, points: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            return critic_integration(
                net.field(),
                net.form,
                start_BM[None],
                net.condition(x_BD[None]),
                net.grid(size.K),
                table_points=points,
                products=products,
            )

        compiled: Callable[[], Tensor] = torch.compile(run, dynamic=False)
        return compiled

    loop = straightforward(critic, x_BD, start_BM, size.K)
    variants: dict[str, Callable[[], Tensor]] = {
        "eager loop float32": loop,
        "compiled definition float32": torch.compile(definition, dynamic=False),
        "supple float32": fast(torch.float32, TABLE_POINTS),
        "supple exact float32": fast(torch.float32, 0),
    }
    ceilings = {"float32": products(size, torch.float32, device)}
    if half:
        variants["compiled definition bfloat16"] = torch.compile(in_bfloat16, dynamic=False)
        variants["supple bfloat16"] = fast(torch.bfloat16, TABLE_POINTS)
        variants["supple exact bfloat16"] = fast(torch.bfloat16, 0)
        ceilings["bfloat16"] = products(size, torch.bfloat16, device)
    with torch.no_grad():
        errors = check(variants, critic, x_BD, start_BM, size.K)
        timed: dict[str, Callable[[], object]] = {
            **variants,
            **{f"products alone {dtype}": run for dtype, run in ceilings.items()},
        }
        if device.type == "cuda":
            # As a run replays them: the host takes longer to launch these kernels than they take.
            timed = {name: capture(run).replay for name, run in timed.items()}
        seconds = interleaved(timed, options.rounds)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        dtype = name.split()[-1]
        plain = median.get(f"compiled definition {dtype}", median["eager loop float32"])
        rows.append(
            {
                "variant": name,
                "size": str(size),
                "device": str(device),
                **quantiles(values),
                "GFLOP/s": f"{size.flops / median[name] / 1e9:.0f}",
                "of ceiling": f"{median[f'products alone {dtype}'] / median[name]:.2f}",
                "x eager loop": f"{median['eager loop float32'] / median[name]:.2f}",
                "x compiled": f"{plain / median[name]:.2f}",
                "max error": f"{errors[name][0]:.1e}" if name in errors else "",
                "mean error": f"{errors[name][1]:.1e}" if name in errors else "",
            }
        )
    return rows


def fitted(size: Size, device: torch.device) -> tuple[PublishedFlowCritic, Tensor, Tensor]:
    """A published critic whose flows end at a smooth function of the input; rows and noise."""
    random = torch.Generator().manual_seed(0)
    settings = FlowSettings(
        width=size.H,
        depth=size.L,
        train_samples=1,
        target_samples=size.M,
        time_features=TIMES,
        activation="gelu",
        norm="layer",
        reduction="sum",
    )
    critic = PublishedFlowCritic(
        CriticSize(inputs=INPUTS, hidden=1, blocks=0, members=size.E),
        settings=settings,
        spans=FlowRange.of(settings, VALUE_MAX),
        generator=random,
    )
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    mix = torch.randn(INPUTS, generator=random) / INPUTS**0.5
    for _ in range(FIT_STEPS):
        x_BD = torch.randn(128, INPUTS, generator=random)
        uniform = torch.rand(128, critic.draws.loss, generator=random)
        optimizer.zero_grad()
        goal_B = 0.8 * VALUE_MAX * torch.sin(2 * x_BD @ mix)
        critic.loss(critic(x_BD, train=True), goal_B, uniform).backward()
        optimizer.step()
    critic.requires_grad_(False).to(device)
    x_BD = torch.randn(size.B, INPUTS, generator=random)
    start_BM = critic.noise(torch.rand(size.B, size.M, generator=random))
    return critic, x_BD.to(device), start_BM.to(device)


def straightforward(
    critic: PublishedFlowCritic, x_BD: Tensor, start_BM: Tensor, steps: int
) -> Callable[[], Tensor]:
    """The loop one would write first: every input side by side, the whole network every step."""
    net = critic.net
    field, form = net.field(), net.form
    layer = net.first_layer()
    weight_EDH = torch.cat((layer.condition_EHD, layer.state_EHZ, layer.time_EHT), -1).mT
    members, samples = len(weight_EDH), start_BM.shape[1]
    depth, width = len(field.gain_LEH), weight_EDH.shape[-1]

    def run() -> Tensor:
        rows = x_BD.repeat_interleave(samples, 0).expand(members, -1, -1)
        z = start_BM.flatten().expand(members, -1)
        for k in range(steps):
            t = torch.full_like(z, k / steps)
            times = time_features(t, net.time_kind, net.time_count)
            x = torch.baddbmm(
                layer.bias_EH[:, None], torch.cat((rows, form.encoding(z), times), -1), weight_EDH
            )
            for number in range(depth):
                x = F.layer_norm(F.gelu(x, approximate="tanh"), (width,), eps=LAYER_NORM_EPS)
                x = x * field.gain_LEH[number][:, None]
                if field.shift_LEH is not None:
                    x = x + field.shift_LEH[number][:, None]
                if number + 1 < depth:
                    hidden = field.hidden_LEHH[number].mT
                    x = torch.baddbmm(field.bias_LEH[number][:, None], x, hidden)
            velocity = (x * field.out_EH[:, None]).sum(-1) + field.out_bias_E[:, None]
            z = z + velocity / steps
        end: Tensor = z.unflatten(1, start_BM.shape)
        return end

    return run


def products(size: Size, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """The hidden layers' products alone."""
    rows = torch.randn(size.E, size.B * size.M, size.H, device=device).to(dtype)
    weights = torch.randn(size.L - 1, size.E, size.H, size.H, device=device).to(dtype)
    out = torch.empty_like(rows)

    def run() -> Tensor:
        for _ in range(size.K):
            for weight in weights:
                torch.bmm(rows, weight.mT, out=out)
        return out

    return run


def check(
    variants: dict[str, Callable[[], Tensor]],
    critic: PublishedFlowCritic,
    x_BD: Tensor,
    start_BM: Tensor,
    steps: int,
) -> dict[str, tuple[float, float]]:
    """Largest and mean error of each variant, relative to the value range.

    Raises:
        RuntimeError: a variant is further from float64 than that.
    """
    net, exact = critic.net, torch.float64
    field = net.field().map(lambda part: part.to(exact))
    condition, time = net.condition(x_BD[None]).to(exact), net.grid(steps).to(exact)
    truth = integrate(field, net.form, start_BM[None].to(exact), condition, time)
    extent = critic.range.value_high - critic.range.value_low
    errors = {}
    for name, run in variants.items():
        error = (run() - truth).abs() / extent
        errors[name] = found = float(error.max()), float(error.mean())
        limits = LIMITS.get(name, LIMITS[name.split()[-1]])
        right = all(own <= limit for own, limit in zip(found, limits, strict=True))  # never NaN
        if name.startswith("supple") and not right:
            raise RuntimeError(f"{name}: errors {found} of the value range, not timed")
    return errors
