"""The operator and its public function."""

import pytest
import torch

from supple.errors import InputError
from supple.kernels.critic_integration import Form, critic_integration, integrate
from supple.kernels.critic_integration.fused import integrate_fused
from supple.kernels.critic_integration.operator import integrate_by_operator
from tests.kernels.fields import BOUNDED, FORMS, PUBLISHED, TINY, exact, problem


@FORMS
def test_torch_finds_it_well_made(form):
    """Schema, fake implementation, autograd registration and tracing with unknown shapes."""
    field, start, condition, time, _ = problem(form, **TINY)
    encoding = form.encoding
    arguments = (
        *(start, condition, time, *field, encoding.low, encoding.high, encoding.kind),
        *(encoding.edges, encoding.sigma_bins, form.activation, form.norm, form.norm_first),
        *(9, torch.float64, True),
    )
    torch.library.opcheck(torch.ops.supple.critic_integration.default, arguments)


@FORMS
@torch.no_grad()
def test_reductions_are_over_members_then_samples(form):
    field, start, condition, time, _ = problem(form, **TINY)
    each = critic_integration(field, form, start, condition, time)
    mean = critic_integration(field, form, start, condition, time, reduce="mean")
    smallest = critic_integration(field, form, start, condition, time, reduce="min")
    torch.testing.assert_close(mean, each.mean((0, 2)))
    torch.testing.assert_close(smallest, each.min(dim=0).values.mean(-1))
    assert mean.shape == smallest.shape == (TINY["rows"],)


@FORMS
def test_one_graph_with_and_without_the_operator(form):
    field, start, condition, time, _ = problem(form, **TINY)
    for how in (integrate_fused, integrate_by_operator):
        compiled = torch.compile(exact, fullgraph=True, backend="aot_eager")
        found = compiled(form, field, start, condition, time, how)
        torch.testing.assert_close(found, exact(form, field, start, condition, time, how))
        torch.autograd.grad(found.sum(), (start, condition))


def test_endpoint_networks_are_read_too():
    form = Form(encoding=PUBLISHED.encoding, endpoint=True)
    field, start, condition, time, _ = problem(form, **TINY)
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
    field, start, condition, time, _ = problem(BOUNDED, **TINY)
    start = start.expand(3, -1, -1) if broken == "noise" else start
    condition = condition[:, :4] if broken == "condition" else condition
    time = time[:, :1] if broken == "time" else time
    points = 1 if broken == "table" else 9
    with pytest.raises(InputError, match=message):
        critic_integration(field, BOUNDED, start, condition, time, table_points=points)


@FORMS
@torch.no_grad()
def test_autocast_reaches_the_products_and_nothing_else(form):
    field, start, condition, time, _ = problem(form, **TINY)
    given = (field.map(torch.Tensor.float), form, start.float(), condition.float(), time.float())
    plain_end = critic_integration(*given)
    asked = critic_integration(*given, products=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(critic_integration(*given), asked)
        assert torch.equal(critic_integration(*given, products=torch.float32), plain_end)
    assert not torch.equal(plain_end, asked)
