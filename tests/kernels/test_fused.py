"""The fused form against the definition; the sizes are those of the kernel's acceptance."""

import itertools
from typing import Literal

import pytest
import torch

from supple.kernels.critic_integration import Form, ValueEncoding, integrate
from supple.kernels.critic_integration.fused import integrate_fused
from tests.kernels.fields import (
    BOUNDED,
    PUBLISHED,
    RANGE,
    TINY,
    distance,
    fused,
    in_single_precision,
    plain,
    problem,
    require_as_good_as_plain_pytorch,
)

ENCODING = ValueEncoding(low=-5.1, high=5.1)
ACTIVATIONS: tuple[Literal["gelu", "relu"], ...] = ("gelu", "relu")
NORMS: tuple[Literal["layer", "rms"], ...] = ("layer", "rms")
FORMS = [
    Form(encoding=ENCODING, activation=activation, norm=norm, norm_first=first, endpoint=endpoint)
    for activation, norm, first, endpoint in itertools.product(
        ACTIVATIONS, NORMS, (False, True), (False, True)
    )
]
SMALL = {"members": 2, "rows": 7, "samples": 3, "steps": 4, "width": 32, "depth": 3}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_with_exact_features_it_is_the_definition(form, shared):
    given = problem(form, **SMALL, shared=shared)
    expected = plain(form, *given)
    for found, true in zip(fused(form, *given, table_points=0), expected, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-11, atol=1e-12)


def test_the_scalar_encoding_needs_no_table():
    form = Form(encoding=ValueEncoding(low=-5.1, high=5.1, kind="scalar"))
    given = problem(form, **SMALL)
    for found, true in zip(fused(form, *given), plain(form, *given), strict=True):
        torch.testing.assert_close(found, true, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", [PUBLISHED, BOUNDED], ids=["published", "flow"])
@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 63, 257])
@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (3, 4), (8, 16), (1, 8)])
@pytest.mark.parametrize(("width", "depth"), [(64, 2), (64, 4)])
def test_single_precision_is_as_good_as_plain_pytorch(
    form, members, rows, samples, steps, width, depth
):
    sizes = {"members": members, "rows": rows, "samples": samples}
    require_as_good_as_plain_pytorch(form, sizes | {"steps": steps, "width": width, "depth": depth})


@pytest.mark.parametrize("form", [PUBLISHED, BOUNDED], ids=["published", "flow"])
def test_bfloat16_products_stay_within_their_rounding(form):
    given = problem(form, **SMALL | {"width": 64, "rows": 63})
    exact = plain(form, *given)
    single = in_single_precision(*given)
    found = fused(form, *single, products=torch.bfloat16)
    assert 0 < (found[0] - exact[0]).abs().max() <= 2e-3 * RANGE
    assert distance(form, found[2], exact[2], share=0.5) <= 2e-2  # more rows cross a kink


def test_weights_are_constants():
    field, start, condition, time, _ = problem(BOUNDED, **SMALL)
    field.out_EH.requires_grad_()
    integrate(field, BOUNDED, start, condition.expand(-1, -1, 3, -1), time).sum().backward()
    assert field.out_EH.grad is not None
    field.out_EH.grad = None
    integrate_fused(field, BOUNDED, start, condition, time).sum().backward()
    assert field.out_EH.grad is None


def test_a_wrong_member_is_noticed_where_there_is_a_kink():
    """The rule that forgives single rows must not forgive a member, or a fifth of the rows."""
    sizes = {**TINY, "members": 2, "rows": 40}
    _, _, gradient = plain(BOUNDED, *problem(BOUNDED, **sizes))
    for spoil in (lambda x: x[1].mul_(-7), lambda x: x[:, ::5].zero_()):
        wrong = gradient.clone()
        spoil(wrong)
        assert distance(BOUNDED, wrong, gradient) > 0.1
    assert distance(BOUNDED, gradient, gradient) == 0
