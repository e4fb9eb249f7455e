"""Random velocity fields and problems, and how far results may lie apart."""

import dataclasses

import pytest
import torch

from supple.kernels.critic_integration import Field, Form, ValueEncoding, integrate
from supple.kernels.critic_integration.fused import integrate_fused
from supple.kernels.critic_integration.operator import integrate_by_operator

PUBLISHED = Form(encoding=ValueEncoding(low=-5.1, high=5.1))
BOUNDED = Form(
    encoding=ValueEncoding(low=-5.1, high=5.1), activation="relu", norm="rms", norm_first=True
)
SCALAR = dataclasses.replace(
    PUBLISHED, encoding=dataclasses.replace(PUBLISHED.encoding, kind="scalar")
)
RANGE = 10.2
FORMS = pytest.mark.parametrize("form", [PUBLISHED, BOUNDED], ids=["published", "flow"])
TINY = {"members": 2, "rows": 5, "samples": 3, "steps": 4, "width": 16, "depth": 2}


def random_field(seed, *, members, width, depth, features, norm_first, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, scale):
        return (torch.randn(shape, generator=random) * scale).to(dtype)

    norms = depth + norm_first
    return Field(
        value_EHZ=normal(members, width, features, scale=1.0),
        hidden_LEHH=normal(depth - 1, members, width, width, scale=width**-0.5),
        bias_LEH=normal(depth - 1, members, width, scale=0.1),
        gain_LEH=1 + normal(norms, members, width, scale=0.1),
        shift_LEH=None if norm_first else normal(norms, members, width, scale=0.1),
        out_EH=normal(members, width, scale=width**-0.5),
        out_bias_E=normal(members, scale=0.1),
    )


def problem(form, *, members, rows, samples, steps, width, depth, shared=True):
    """A float64 field and inputs, z_K and the gradients of a random sum of it."""
    field = random_field(
        1,
        members=members,
        width=width,
        depth=depth,
        features=form.encoding.features,
        norm_first=form.norm_first,
    )
    random = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    condition = normal(members, rows, 1 if shared else samples, width).requires_grad_()
    start = torch.rand(1, rows, samples, generator=random, dtype=torch.float64).requires_grad_()
    time, weight = normal(steps, members, width), normal(members, rows, samples)
    return field, start, condition, time, weight


def plain(form, field, start, condition, time, weight):
    """By autograd through the definition, in the dtype of what is given."""
    end = integrate(field, form, start, condition.expand(-1, -1, start.shape[2], -1), time)
    return end, *torch.autograd.grad((end * weight).sum(), (start, condition))


def in_single_precision(field, start, condition, time, weight):
    """A problem in float32, its noise and condition asking for gradients."""
    single = [field.map(torch.Tensor.float), *(x.detach().float() for x in (start, condition))]
    return *(single[:1]), *(x.requires_grad_() for x in single[1:]), time.float(), weight.float()


def distance(form, found, expected, share=0.9):
    """Relative error of gradients; where there is a kink, the worst member's in a share of rows.

    There a unit whose input is off by a rounding may count as off instead of on, and one
    trajectory's gradient jumps, however good the arithmetic. Of few rows the typical one counts.
    """
    error, size = (x.flatten(2).norm(dim=2) for x in (found - expected, expected))
    if form.activation != "relu":
        return (error.norm() / size.norm()).item()
    if error.shape[1] < 10:
        return (error.median() / size.square().mean().sqrt()).item()
    return (error.quantile(share, dim=1) / size.square().mean(1).sqrt()).max().item()


def fused(form, field, start, condition, time, weight, **options):
    """By the fused form, as ``plain``."""
    end = integrate_fused(field, form, start, condition, time, **options)
    return end, *torch.autograd.grad((end * weight).sum(), (start, condition))


def require_as_good_as_plain_pytorch(form, sizes):
    """The fused form in float32: twice the usual error, and what the table adds."""
    given = problem(form, **sizes)
    exact = plain(form, *given)
    single = in_single_precision(*given)
    usual = plain(form, *single)
    rounding = torch.finfo(torch.float32).eps * RANGE
    for points, table, slack in ((0, 0.0, 1e-6), (257, 1e-4 * RANGE, 2e-3)):
        found = fused(form, *single, table_points=points)
        error = (found[0] - exact[0]).abs().max()
        assert error <= 2 * (usual[0] - exact[0]).abs().max() + table + rounding
        for each, same, true in zip(found[1:], usual[1:], exact[1:], strict=True):
            assert distance(form, each, true) <= 2 * distance(form, same, true) + slack


def exact(form, field, start, condition, time, how=integrate_by_operator):
    """z_K without table and rounded products."""
    return how(field, form, start, condition, time, table_points=0, products=None)


def gradients(end, weight, start, condition):
    """Of a weighted sum of z_K."""
    return torch.autograd.grad((end * weight).sum(), (start, condition))
