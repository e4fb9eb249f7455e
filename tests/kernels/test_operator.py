"""The operator and its public function."""

import pytest
import torch

from supple.errors import InputError
from supple.kernels.critic_integration import Form, critic_integration, integrate
from supple.kernels.critic_integration.fused import integrate_fused
from supple.kernels.critic_integration.operator import integrate_by_operator
from tests.kernels.fields import BOUNDED, PUBLISHED, plain, problem

SMALL = {"members": 2, "rows": 5, "samples": 3, "steps": 4, "width": 16, "depth": 2}
FORMS = pytest.mark.parametrize("form", [PUBLISHED, BOUNDED], ids=["published", "flow"])


def exact(form, field, start, condition, time, how=integrate_by_operator):
    return how(field, form, start, condition, time, table_points=0, products=None)


def gradients(end, weight, start, condition):
    return torch.autograd.grad((end * weight).sum(), (start, condition))


@FORMS
@pytest.mark.parametrize("shared", [True, False])
def test_t8_its_gradient_is_that_of_the_plain_loop(form, shared):
    given = problem(form, **SMALL, shared=shared)
    field, start, condition, time, weight = given
    end = exact(form, field, start, condition, time)
    expected = plain(form, *given)
    found = (end, *gradients(end, weight, start, condition))
    for each, true in zip(found, expected, strict=True):
        torch.testing.assert_close(each, true, rtol=1e-10, atol=1e-12)


@FORMS
def test_t8_its_gradient_is_the_slope_in_random_directions(form):
    field, start, condition, time, weight = problem(form, **SMALL)
    end = exact(form, field, start, condition, time)
    (gradient,) = torch.autograd.grad((end * weight).sum(), condition)
    random, step = torch.Generator().manual_seed(5), 1e-6
    for _ in range(8):
        way = torch.randn(condition.shape, generator=random, dtype=torch.float64)
        ends = [
            (integrate(field, form, start, (condition + sign * step * way)[:, :, 0], time) * weight)
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]).sum() / (2 * step)
        torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-5, atol=1e-7)


@FORMS
def test_torch_finds_it_well_made(form):
    """Schema, fake implementation, autograd registration and tracing with unknown shapes."""
    field, start, condition, time, _ = problem(form, **SMALL)
    encoding = form.encoding
    arguments = (
        *(start, condition, time, *field, encoding.low, encoding.high, encoding.kind),
        *(encoding.edges, encoding.sigma_bins, form.activation, form.norm, form.norm_first),
        *(9, torch.float64, True),
    )
    torch.library.opcheck(torch.ops.supple.critic_integration.default, arguments)


@FORMS
def test_t9_weights_changed_in_place_change_the_next_result(form):
    field, start, condition, time, _ = problem(form, **SMALL)
    with torch.no_grad():
        before = critic_integration(field, form, start, condition, time)
        for part in (field.value_EHZ, field.hidden_LEHH, field.gain_LEH, field.out_EH):
            part.mul_(1.1)
            after = critic_integration(field, form, start, condition, time)
            assert not torch.allclose(after, before, rtol=1e-6)
            torch.testing.assert_close(
                after, integrate(field, form, start, condition, time), rtol=1e-3, atol=1e-3
            )
            before = after


@FORMS
@torch.no_grad()
def test_reductions_are_over_members_then_samples(form):
    field, start, condition, time, _ = problem(form, **SMALL)
    each = critic_integration(field, form, start, condition, time)
    mean = critic_integration(field, form, start, condition, time, reduce="mean")
    smallest = critic_integration(field, form, start, condition, time, reduce="min")
    torch.testing.assert_close(mean, each.mean((0, 2)))
    torch.testing.assert_close(smallest, each.min(dim=0).values.mean(-1))
    assert mean.shape == smallest.shape == (SMALL["rows"],)


@FORMS
def test_one_graph_with_and_without_the_operator(form):
    field, start, condition, time, _ = problem(form, **SMALL)
    for how in (integrate_fused, integrate_by_operator):
        compiled = torch.compile(exact, fullgraph=True, backend="aot_eager")
        found = compiled(form, field, start, condition, time, how)
        torch.testing.assert_close(found, exact(form, field, start, condition, time, how))
        torch.autograd.grad(found.sum(), (start, condition))


def test_endpoint_networks_are_read_too():
    form = Form(encoding=PUBLISHED.encoding, endpoint=True)
    field, start, condition, time, _ = problem(form, **SMALL)
    found = critic_integration(field, form, start, condition, time, table_points=0)
    torch.testing.assert_close(found, integrate(field, form, start, condition[:, :, 0], time))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("noise", r"noise must be \(1, 5, 3\) or \(2, 5, 3\), got \(3, 5, 3\)"),
        ("condition", r"condition must be \(2, 5, 16\) or .*, got \(2, 4, 1, 16\)"),
        ("time", r"time must be \(4, 2, 16\), got \(4, 1, 16\)"),
        ("table", "table_points must be 0 .exact. or >= 2, got 1"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(broken, message):
    field, start, condition, time, _ = problem(BOUNDED, **SMALL)
    start = start.expand(3, -1, -1) if broken == "noise" else start
    condition = condition[:, :4] if broken == "condition" else condition
    time = time[:, :1] if broken == "time" else time
    points = 1 if broken == "table" else 9
    with pytest.raises(InputError, match=message):
        critic_integration(field, BOUNDED, start, condition, time, table_points=points)
