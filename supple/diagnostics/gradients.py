"""Weights, gradients and steps: how large, how aligned, how noisy, how far they turn.

Inner products of per-sample gradients come layer by layer from one pass where the layer has a
closed form, else from ``torch.func`` one group of parameters at a time, so that memory is bounded.
Networks are in evaluation mode: with batch norm in training mode per-sample gradients do not exist.

Shapes: ``E`` members, ``n`` samples, ``P`` parameters of one member, ``C`` chunks of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from supple.agents.adam import BETA2, EPS
from supple.agents.nets import UnitBatchNorm, UnitLinear, UnitRMSNorm
from supple.diagnostics.linalg import entropy_rank
from supple.diagnostics.views import View
from supple.errors import InputError

GROUP_NUMBERS = 2**24
"""Per-sample gradients kept at a time, in numbers; a single layer may be larger."""
SEPARABLE = (UnitLinear, nn.Linear, UnitBatchNorm, UnitRMSNorm)
"""Layers whose gradients' inner products have a closed form; in evaluation mode, as views are."""
VECTORS = frozenset({"bias", "scale", "shift", "gain"})
"""Words in the names of parameters that are no linear layer's weight."""
Scalar = Callable[..., Tensor]
"""(module, *rows) -> 0-d, summed over members; of one sample, its rows have a leading 1."""


@torch.no_grad()
def gradient_gram(
    view: View,
    scalar: Scalar,
    rows: Sequence[Tensor],
    others: Sequence[Tensor] | None = None,
    *,
    is_mean: bool = False,
) -> Tensor:
    """Inner products of per-sample gradients, (E, n, m), float64.

    The gradient of a linear layer's weight is an outer product, that of a norm's scale an
    elementwise one: their inner products need no gradient of any sample, only one forward and
    backward pass. What other layers hold is differentiated sample by sample.

    Args:
        view: whose parameters.
        scalar: a loss or an output.
        rows: what it reads, (n, ...) each.
        others: a second set, (m, ...); ``rows`` again by default.
        is_mean: whether ``scalar`` of many rows is the mean over them, not the sum.
    """
    members, left, right = view.members, len(rows[0]), len((others or rows)[0])
    own = _factors(view, scalar, rows, is_mean)
    other = own if others is None else _factors(view, scalar, others, is_mean)
    total = torch.zeros(members, left, right, dtype=torch.float64, device=rows[0].device)
    for name, factors in own.items():
        pairs = zip(factors, other[name], strict=True)
        total += math.prod(_inner(a, b) for a, b in pairs)
    rest = [(name, part) for name, part in view.parameters() if name not in own]
    for names in _groups(rest, max(left, right)):
        left_n = _per_sample(view, scalar, names, rows)
        right_m = left_n if others is None else _per_sample(view, scalar, names, others)
        for a_nEp, b_mEp in zip(left_n, right_m, strict=True):
            for a, b in zip(a_nEp.split(4096, -1), b_mEp.split(4096, -1), strict=True):
                total += _inner(a, b)
    return total


def _inner(a_nEp: Tensor, b_mEp: Tensor) -> Tensor:
    return torch.einsum("nep,mep->enm", a_nEp.double(), b_mEp.double())


@torch.enable_grad()
def _factors(
    view: View, scalar: Scalar, rows: Sequence[Tensor], is_mean: bool
) -> dict[str, tuple[Tensor, ...]]:
    """By parameter, what the inner product of its gradients is the product of, (n, E, .) each.

    Only parameters of layers that see every sample as one row and are called once.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
    known = {n: part for n, part in view.module.named_modules() if isinstance(part, SEPARABLE)}

    def catch(name: str, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        out = out if out.requires_grad else out.detach().requires_grad_()
        calls.setdefault(name, []).append((given[0].detach(), out))
        return out

    hooks = [
        part.register_forward_hook(lambda _, given, out, name=name: catch(name, given, out))
        for name, part in known.items()
    ]
    try:
        value = scalar(view.module, *rows)
    finally:
        for hook in hooks:
            hook.remove()
    count = len(rows[0])
    once = {
        name: found[0]
        for name, found in calls.items()
        if len(found) == 1 and found[0][1].shape[0] == count and found[0][1].dim() <= 3
    }
    if not once:
        return {}
    outs = [out for _, out in once.values()]
    slopes = torch.autograd.grad(value, outs, allow_unused=True, materialize_grads=True)
    factors: dict[str, tuple[Tensor, ...]] = {}
    for (name, (x, _)), slope in zip(once.items(), slopes, strict=True):
        slope = count * slope if is_mean else slope
        prefix = f"{name}." if name else ""
        for own, each in _of_layer(known[name], x, slope).items():
            factors[prefix + own] = tuple(_rows(part) for part in each)
    return factors


def _of_layer(layer: nn.Module, x: Tensor, slope: Tensor) -> dict[str, tuple[Tensor, ...]]:
    if isinstance(layer, UnitLinear | nn.Linear):
        found = {"weight": (slope, x)}
        return found | ({"bias": (slope,)} if layer.bias is not None else {})
    plain = {name: torch.full_like(p, name == "scale") for name, p in layer.named_parameters()}
    mode = {"train": False} if isinstance(layer, UnitBatchNorm) else {}
    with torch.no_grad():
        normal = functional_call(layer, plain, (x,), mode)
    return {name: (slope * normal if name == "scale" else slope,) for name in plain}


def _rows(value: Tensor) -> Tensor:
    return value.unsqueeze(1) if value.dim() == 2 else value


def _groups(parameters: Sequence[tuple[str, Tensor]], samples: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, part in parameters:
        if names and (size + part.numel()) * samples > GROUP_NUMBERS:
            yield names
            names, size = [], 0
        names.append(name)
        size += part.numel()
    if names:
        yield names


class _Call(nn.Module):
    """A function of a network as a module, so that parameters can be given from outside."""

    def __init__(self, network: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self._function = function

    def forward(self, *rows: Tensor) -> Tensor:
        return self._function(self.network, *rows)


def substituted(
    module: nn.Module, parameters: Mapping[str, Tensor], function: Callable[..., Any], *rows: Tensor
) -> Any:
    """``function(module, *rows)`` as if the module had these parameters."""
    named = {f"network.{name}": value for name, value in parameters.items()}
    return functional_call(_Call(module, function), named, rows)


def _per_sample(
    view: View, scalar: Scalar, names: Sequence[str], rows: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of each sample by parameter, (n, E, p)."""
    parameters = {n: part.detach() for n, part in view.parameters() if n in set(names)}

    def of_one(given: Mapping[str, Tensor], *row: Tensor) -> Tensor:
        one = [part.unsqueeze(0) for part in row]
        found: Tensor = substituted(view.module, given, scalar, *one)
        return found

    dims = (None, *(0 for _ in rows))
    # Every sample gets a copy of each weight, of all layers.
    chunk = max(1, GROUP_NUMBERS // sum(part.numel() for _, part in view.parameters()))
    found: dict[str, Tensor] = vmap(grad(of_one), in_dims=dims, chunk_size=chunk)(parameters, *rows)
    return [_by_member(view, name, found[name]) for name in names]


def _by_member(view: View, name: str, gradient_n: Tensor) -> Tensor:
    own = torch.stack([view.split(name, each) for each in gradient_n])
    return own.flatten(2) if own.dim() > 2 else own.unsqueeze(-1)


class Alignment(NamedTuple):
    """How the gradients of single samples lie to each other, per member."""

    mean_E: Tensor
    """Mean cosine of two samples."""
    absolute_E: Tensor
    """Mean |cosine|: near 1, samples cannot be fitted independently."""
    negative_E: Tensor
    """Share of negative cosines: interference."""
    rank_E: Tensor
    """Effective rank over the number of samples, 1/n to 1."""
    cosine_Enn: Tensor
    dropped: int
    """Samples without a gradient, left out."""


def alignment(gram_Enn: Tensor) -> Alignment:
    """From ``gradient_gram`` of a loss (Lyle et al., 2023).

    Raises:
        InputError: fewer than two samples have a gradient.
    """
    kept = (gram_Enn.diagonal(dim1=-2, dim2=-1) > 1e-24).all(0)
    count = int(kept.sum())
    if count < 2:
        raise InputError("the alignment of gradients needs two samples whose gradient is not 0")
    gram_Enn = gram_Enn[:, kept][:, :, kept]
    norm = gram_Enn.diagonal(dim1=-2, dim2=-1).sqrt()
    cosine = (gram_Enn / (norm[:, :, None] * norm[:, None])).clamp(-1, 1)
    off = ~torch.eye(count, dtype=torch.bool, device=cosine.device)
    pairs = cosine[:, off]
    eigenvalues = torch.linalg.eigvalsh(cosine).clamp(min=0)
    return Alignment(
        pairs.mean(-1),
        pairs.abs().mean(-1),
        (pairs < 0).double().mean(-1),
        entropy_rank(eigenvalues) / count,
        cosine,
        len(kept) - count,
    )


def gradient_cosine(first: Tensor, second: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Between the gradients of two losses, of two time bins or two sets of targets, 0-d."""
    flat = []
    for loss in (first, second):
        found = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        flat.append(torch.cat([part.flatten() for part in found]).double())
    product = flat[0].norm() * flat[1].norm()
    if product == 0:
        raise InputError("the direction of a gradient that is 0 is undefined")
    cosine: Tensor = flat[0] @ flat[1] / product
    return cosine


def kernel_ranks(gram_Enn: Tensor) -> tuple[Tensor, Tensor]:
    """Effective rank, and eigenvalues above 1e-3 of the largest, over n: tangent kernel, (E,)."""
    values = torch.linalg.eigvalsh(gram_Enn).clamp(min=0)
    if not values[:, -1].all():
        raise InputError("the tangent kernel is 0: no parameter moves the output")
    count = values.shape[-1]
    return entropy_rank(values) / count, (values > 1e-3 * values[:, -1:]).double().mean(-1)


class NoiseScale(NamedTuple):
    """Of McCandlish et al., 2018; average numerator and denominator separately over calls."""

    noise_E: Tensor
    """Summed variance of a sample's gradient."""
    signal_E: Tensor
    """Squared norm of the true gradient; an estimate that may be negative."""


def noise_scale(gradient_CEP: Tensor, chunk_rows: int) -> NoiseScale:
    """From the gradients of the equal chunks of one batch."""
    chunks = len(gradient_CEP)
    exact = gradient_CEP.double()
    of_small_E = exact.square().sum(-1).mean(0)
    of_large_E = exact.mean(0).square().sum(-1)
    return noise_of(of_small_E, of_large_E, chunk_rows, chunk_rows * chunks)


def noise_of(of_small_E: Tensor, of_large_E: Tensor, small: int, large: int) -> NoiseScale:
    """From mean squared gradient norms at two batch sizes."""
    signal_E = (large * of_large_E - small * of_small_E) / (large - small)
    noise_E = (of_small_E - of_large_E) / (1 / small - 1 / large)
    return NoiseScale(noise_E, signal_E)


def weight_rms(parts: Sequence[Tensor]) -> Tensor:
    """Root mean square over everything of each member, (E,); parts are (E, ...)."""
    flat = torch.cat([part.double().reshape(len(part), -1) for part in parts], dim=-1)
    return flat.square().mean(-1).sqrt()


def norm_ratio(numerators: Sequence[Tensor], denominators: Sequence[Tensor]) -> Tensor:
    """Mean over layers, weighted by their size, of |numerator| / |denominator|, (E,).

    Args:
        numerators: gradients, or changes, of each layer, (E, ...).
        denominators: its weights; layers that are all 0 are left out.
    """
    total: Tensor | float = 0.0
    weight: Tensor | float = 0.0
    for top, bottom in zip(numerators, denominators, strict=True):
        members = len(bottom)
        above = torch.linalg.vector_norm(top.double().reshape(members, -1), dim=-1)
        below = torch.linalg.vector_norm(bottom.double().reshape(members, -1), dim=-1)
        known = below > 0
        size = bottom[0].numel()
        total = total + torch.where(known, size * above / below.clamp_min(1e-300), 0.0)
        weight = weight + size * known.double()
    assert isinstance(total, Tensor)
    return total / weight


def is_matrix(name: str, weight_E: Tensor) -> bool:
    """Whether a parameter is a linear layer's weight; what begins at 0 has no size to compare with.

    Vectors are told by name: behind the member axis those of stacked layers look like matrices.

    Args:
        name: of the parameter.
        weight_E: itself by member, (E, ...).
    """
    words = set(name.rsplit(".", 1)[-1].split("_"))
    return weight_E.dim() > 2 and not words & VECTORS


def matrices(
    names: Sequence[str], numerators: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of linear layers only."""
    parts = zip(names, numerators, weights, strict=True)
    kept = [(top, bottom) for name, top, bottom in parts if is_matrix(name, bottom)]
    return [top for top, _ in kept], [bottom for _, bottom in kept]


def spectral_norm(weight: Tensor) -> Tensor:
    """Largest singular value, (..., outputs, inputs) -> (...); NaN where numbers are not finite."""
    wide = weight.double().nan_to_num(0.0, 0.0, 0.0)
    gram = wide @ wide.mT if weight.shape[-2] < weight.shape[-1] else wide.mT @ wide
    norm: Tensor = torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()
    return norm.where(weight.isfinite().flatten(-2).all(-1), math.nan)


def turned(before: Tensor, after: Tensor) -> Tensor:
    """Mean angle [rad] by which rows of unit length turned, (E, ..., H) -> (E,).

    By the chord, since the arc cosine of nearly 1 has no digits left.
    """
    chord = torch.linalg.vector_norm(after.double() - before.double(), dim=-1)
    angle = 2 * torch.asin((chord / 2).clamp(max=1))
    return angle.reshape(len(angle), -1).mean(-1)


def epsilon_share(square: Sequence[Tensor], steps: int) -> Tensor:
    """Share of parameters whose Adam step is shrunk by its epsilon, 0-d (Wortsman et al., 2023).

    Args:
        square: the optimiser's second moments, as it keeps them.
        steps: taken so far; corrects the moments' start at 0.

    Raises:
        InputError: no step yet.
    """
    if steps < 1:
        raise InputError("the optimiser has not taken a step yet")
    root = torch.cat([part.flatten() for part in square]).double().sqrt()
    return (root / math.sqrt(1 - BETA2**steps) < 10 * EPS).double().mean()
